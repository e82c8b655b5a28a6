"""Proves that plugins are found by name, imported only when enabled, and that their faults are named."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import cogo
from cogo.core import registry as registries
from cogo.core.errors import InvalidSetting, PluginFailed, UnknownRole
from cogo.core.model import Lane
from cogo.core.registry import Registry, enabled_names, lane_rows, lanes_of, resolve
from cogo.core.settings import Settings

GOOD = """
import msgspec
from cogo import Role, hookimpl

class Options(msgspec.Struct, frozen=True):
    depth: int = 3

async def handle(task, ctx): ...

@hookimpl
def cogo_settings():
    return Options

@hookimpl
def cogo_role():
    return Role("good", "work", handle=handle, intents=("x",), events="good")
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(name, source)`: a real distribution on sys.path, with metadata and an entry point."""
    monkeypatch.syspath_prepend(tmp_path)
    modules: list[str] = []

    def put(name: str, source: str, *, module: str | None = None, distribution: str | None = None) -> None:
        module = module or f"throwaway_{name.replace('-', '_')}"
        distribution = distribution or f"cogo-{name}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"[cogo]\n{name} = {module}\n")

    yield put
    for module in modules:
        sys.modules.pop(module, None)


def load(*roles: str, **plugins: dict[str, Any]) -> Registry:
    return Registry.load(Settings(roles=roles, plugins=plugins))


def test_an_installed_plugin_is_found_and_only_enabled_ones_are_imported(install: Install) -> None:
    install("good", GOOD)
    install("other", "raise RuntimeError('imported')")
    registry = load("good", good={"depth": 5})
    plugin = registry.plugins["good"]
    assert plugin.about == "good (cogo-good 1.2)"
    assert plugin.settings.depth == 5
    assert plugin.role is not None
    assert (plugin.role.service, plugin.role.role) == ("good", "work")
    assert "throwaway_other" not in sys.modules
    names = {found.name: (found.distribution, found.version) for found in registries.installed()}
    assert names["other"] == ("cogo-other", "1.2")


@pytest.mark.parametrize(
    ("asked", "near"),
    [("gooood", "good"), ("executer", "executor"), ("cogo-gateway-chatt", "cogo-gateway-chat")],
)
def test_an_unknown_role_names_the_nearest_and_the_installed(install: Install, asked: str, near: str) -> None:
    install("good", GOOD)
    with pytest.raises(UnknownRole) as caught:
        load(asked)
    assert f"did you mean {near!r}?" in str(caught.value)
    assert "installed: " in str(caught.value)
    assert "executor, gateway, good, ingress" in str(caught.value)


def test_process_names_and_old_names_resolve(caplog: pytest.LogCaptureFixture) -> None:
    for process, short in registries.PROCESS_NAMES.items():
        assert resolve(process) == short
    assert "role.renamed" not in caplog.text
    assert resolve("orchestrator-bus-worker") == "orchestrator"
    assert "role.renamed old=orchestrator-bus-worker now=orchestrator" in caplog.text


BROKEN: dict[str, tuple[str, str]] = {
    "an import that fails": ("import not_there_at_all", "could not be loaded: ModuleNotFoundError"),
    "a syntax error": ("def (:", "could not be loaded: SyntaxError"),
    "an exit on import": ("raise SystemExit(1)", "could not be loaded: SystemExit"),
    "a hook that does not exist": (
        "from cogo import hookimpl\n@hookimpl\ndef cogo_rolle(): ...", "has a hook that does not exist: "),
    "an argument that the hook does not offer": (
        "from cogo import hookimpl\n@hookimpl\ndef cogo_role(runtimes): ...", "could not be loaded: PluginValidationError"),
    "an async hook": (
        "from cogo import hookimpl\n@hookimpl\nasync def cogo_role(): ...", "cogo_role is `async def`"),
    "an async generator as lifespan": (
        "from cogo import hookimpl\n@hookimpl\nasync def cogo_lifespan(runtime):\n  yield", "cogo_lifespan is `async def`"),
    "a hook that fails": (
        "from cogo import hookimpl\n@hookimpl\ndef cogo_role():\n  return 1/0", "cogo_role failed: ZeroDivisionError"),
    "a role that is none": (
        "from cogo import hookimpl\n@hookimpl\ndef cogo_role():\n  return 'text/summarise'", "cogo_role returned str, not Role"),
    "settings that are none": (
        "from cogo import hookimpl\n@hookimpl\ndef cogo_settings():\n  return {'a': 1}", "cogo_settings returned dict"),
    "a role without a lane": (
        "from cogo import Role, hookimpl\nasync def h(t, c): ...\n@hookimpl\ndef cogo_role():\n  return Role(handle=h)",
        "has a handler but no service and role"),
    "a lane with a bad name": (
        "from cogo import Role, hookimpl\nasync def h(t, c): ...\n@hookimpl\ndef cogo_role():\n  return Role('Text', 'x', handle=h)",
        "'Text/x' is not a lane"),
    "a role that can't work": (
        "from cogo import Role, hookimpl\nasync def h(t, c): ...\n@hookimpl\ndef cogo_role():\n  return Role('t', 'x', handle=h, concurrency=0)",
        "concurrency"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plugin_is_named_with_distribution_and_version(install: Install, what: str) -> None:
    source, says = BROKEN[what]
    install("broken", source)
    install("good", GOOD)
    with pytest.raises(PluginFailed) as caught:
        load("broken", "good")
    assert "broken (cogo-broken 1.2)" in str(caught.value)
    assert says in str(caught.value)
    assert load("good").plugins.keys() == {"good"}, "it stops only those who enabled it"


def test_two_distributions_with_one_name_are_refused(install: Install) -> None:
    """Else whichever comes first on the path would quietly replace the other."""
    install("good", GOOD)
    install("good", GOOD, module="throwaway_rival", distribution="cogo-rival")
    with pytest.raises(PluginFailed, match=r"cogo-good.*cogo-rival|cogo-rival.*cogo-good"):
        load("good")


@pytest.mark.parametrize(
    ("given", "says"),
    [({"dept": 1}, r"plugins\.good\.dept is not a setting .* did you mean 'depth'"),
     ({"depth": "deep"}, r"plugins\.good: Expected `int`, got `str` - at `\$\.depth`")],
)  # fmt: skip
def test_settings_of_a_plugin_are_checked(install: Install, given: dict[str, Any], says: str) -> None:
    install("good", GOOD)
    with pytest.raises(InvalidSetting, match=says):
        load("good", good=given)


def test_a_plugin_without_settings_takes_none(install: Install) -> None:
    install("plain", "from cogo import hookimpl, Role\n@hookimpl\ndef cogo_role(): return None\n")
    assert load("plain").plugins["plain"].role is None
    with pytest.raises(InvalidSetting, match="takes no settings"):
        load("plain", plain={"a": 1})


def test_what_is_enabled(install: Install) -> None:
    install("good", GOOD)
    assert enabled_names(Settings(roles=("good", "cogo-executor-dispatcher", "executor"))) == [
        "good",
        "executor",
    ]
    assert enabled_names(Settings(agent_service="good", agent_role="work")) == ["good"]
    assert enabled_names(Settings(agent_service="orchestrator", agent_role="execute")) == ["executor"]
    with pytest.raises(UnknownRole, match="serves the lane nobody/here"):
        enabled_names(Settings(agent_service="nobody", agent_role="here"))
    everything = enabled_names(Settings())
    assert "good" not in everything
    assert {"orchestrator", "executor", "gateway", "reclaimer"} <= set(everything)


def test_a_broken_stranger_does_not_hide_a_lane(install: Install) -> None:
    install("aaa-broken", "raise RuntimeError")
    install("aab-broken", "from cogo import hookimpl\n@hookimpl\ndef cogo_role():\n  return 1/0")
    install("good", GOOD)
    assert enabled_names(Settings(agent_service="good", agent_role="work")) == ["good"]


def test_inline_roles_and_their_lanes() -> None:
    async def handle(task: Any, ctx: cogo.Context) -> None: ...

    role = cogo.Role("text", "summarise", handle=handle, timeout_s=1.5, backoff_base_s=0.25, intents=("s",))
    registry = Registry.load(Settings(), [role])
    assert registry.plugins.keys() == {"text-summarise"}
    assert lanes_of(role, Settings(agent_shard=(0, 2))) == [
        Lane("text", "summarise", 0),
        Lane("text", "summarise", 2),
    ]
    pinned = msgspec.structs.replace(role, shards=(5,))
    assert lanes_of(pinned, Settings(agent_shard=(0, 2))) == [Lane("text", "summarise", 5)]
    (policy,) = lane_rows([role, cogo.Role(loop=handle)])
    assert (policy["timeout_ms"], policy["backoff_base_ms"], policy["intents"]) == (1_500, 250, ["s"])


def test_two_roles_for_one_lane_are_refused() -> None:
    """Which of them a message meets would be chance."""

    async def handle(task: Any, ctx: cogo.Context) -> None: ...

    async def other(task: Any, ctx: cogo.Context) -> None: ...

    with pytest.raises(PluginFailed, match="two roles are named 'text-summarise'"):
        Registry.load(
            Settings(),
            [cogo.Role("text", "summarise", handle=handle), cogo.Role("text", "summarise", handle=other)],
        )
