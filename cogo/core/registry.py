"""Plugins by name: found in metadata, imported only when enabled, their hooks called once at boot.

pluggy's traps are closed here: an unknown name, a broken import, a mistyped hook, an `async def` hook
and a failing hook each become one error that names plugin, version and hook.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from types import ModuleType
from typing import Any

import msgspec
import pluggy

from .. import hookspecs
from . import telemetry
from .errors import CogoError, InvalidSetting, PluginFailed, UnknownRole
from .model import NAME_PATTERN, SHARD_MAX, Lane, Role
from .settings import Settings

GROUP = "cogo"

# Process names of the specification, then the names that its renaming table replaces.
PROCESS_NAMES = {
    "cogo-orchestrator-brain": "orchestrator",
    "cogo-executor-dispatcher": "executor",
    "cogo-gateway-chat": "gateway",
    "cogo-rag-embed": "rag-embed",
    "cogo-kg-builder": "kg-builder",
    "cogo-rag-dispatcher": "rag-dispatcher",
    "cogo-bus-reclaimer": "reclaimer",
    "cogo-bus-retention": "retention",
    "cogo-metrics-server": "metrics",
    "orchestrator-chat": "ingress",
}
OLD_NAMES = {
    "orchestrator-bus-worker": "orchestrator",
    "gateway-bus-worker": "gateway",
    "embed-bus-worker": "rag-embed",
    "kg-bus-worker": "kg-builder",
    "rag-event-dispatcher": "rag-dispatcher",
    "bus-reclaimer": "reclaimer",
    "bus-retention": "retention",
    "metrics-server": "metrics",
}
# Names of the specification whose roles this version does not bring yet.
LATER = frozenset({
    "sandbox", "cogo-sandbox-manager", "codegen", "cogo-codegen-service", "build-test", "cogo-build-test-worker",
})  # fmt: skip


class Installed(msgspec.Struct, frozen=True, order=True):
    """A plugin as the metadata tells it; nothing is imported."""

    name: str
    distribution: str
    version: str
    module: str


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _installed(point: EntryPoint) -> Installed:
    dist = point.dist
    return Installed(point.name, dist.name if dist else "?", dist.version if dist else "?", point.value)


def installed() -> list[Installed]:
    """Every plugin that pip installed, by name."""
    return sorted(_installed(point) for point in _entry_points().values())


def resolve(name: str) -> str:
    """The short name for a short, process or old name. Raises UnknownRole with the nearest one."""
    known = _entry_points()
    if name in OLD_NAMES:
        telemetry.log.warning(telemetry.line("role.renamed", old=name, now=OLD_NAMES[name]))
    short = OLD_NAMES.get(name) or PROCESS_NAMES.get(name, name)
    if short in known:
        return short
    near = difflib.get_close_matches(name, [*known, *PROCESS_NAMES], 1)
    ask = f"did you mean {near[0]!r}? " if near else ""
    if name in LATER:
        ask = "it comes with a later version; "
    raise UnknownRole(
        f"no installed plugin brings the role {name!r}; {ask}installed: {', '.join(sorted(known))}"
    )


class Plugin:
    """An enabled plugin: its module, its role, its settings."""

    def __init__(self, name: str, about: str, module: Any) -> None:
        self.name = name
        self.about = about
        """`name (distribution version)`, for errors."""
        self.module = module
        self.role: Role | None = None
        self.settings: Any = None


class Registry:
    """The enabled plugins of a process, in the order in which they were enabled."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: dict[str, Plugin] = {}

    @classmethod
    def load(cls, settings: Settings, inline: Sequence[Role] = ()) -> Registry:
        """Import and register what the settings enable; with `inline` roles only what they name.

        Raises UnknownRole, PluginFailed, UnknownSetting, InvalidSetting.
        """
        registry = cls()
        for name in enabled_names(settings) if settings.roles or not inline else ():
            registry.add(name)
        for role in inline:
            registry.add_inline(role)
        registry.check()
        for plugin in registry.plugins.values():
            plugin.settings = registry._settings(plugin, settings)
            plugin.role = plugin.role or registry.call("cogo_role", plugin)
        registry.check_roles()
        return registry

    def add(self, name: str) -> None:
        """Import and register one installed plugin."""
        same_name = {point.dist.name: point for point in entry_points(group=GROUP, name=name) if point.dist}
        if len(same_name) > 1:
            raise PluginFailed(
                f"the role {name!r} is brought by {' and '.join(sorted(same_name))}; uninstall one"
            )
        point = _entry_points()[name]
        found = _installed(point)
        about = f"{name} ({found.distribution} {found.version})"
        try:
            module = point.load()
            self._manager.register(module, name)
        except (Exception, SystemExit) as error:
            raise PluginFailed(f"{about} could not be loaded: {type(error).__name__}: {error}") from error
        self.plugins[name] = Plugin(name, about, module)

    def add_inline(self, role: Role) -> None:
        """A role that the caller of `cogo.serve` defined himself."""
        name = f"{role.service}-{role.role}" if role.handle else f"loop-{len(self.plugins)}"
        if name in self.plugins:
            raise PluginFailed(f"two roles are named {name!r}")
        plugin = Plugin(name, f"{name} (inline)", ModuleType(name))
        plugin.role = role
        self.plugins[name] = plugin

    def check(self) -> None:
        """Refuse mistyped and asynchronous hooks at boot."""
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            name = self._manager.get_name(error.plugin) or "?"
            raise PluginFailed(
                f"{self.plugins[name].about} has a hook that does not exist: {error}"
            ) from error
        for plugin in self.plugins.values():
            for caller in self._manager.get_hookcallers(plugin.module) or ():
                for impl in caller.get_hookimpls():
                    if impl.plugin is plugin.module and _is_async(impl.function):
                        raise PluginFailed(
                            f"{plugin.about}: {caller.name} is `async def`, but hooks are called synchronously",
                            hint="Use cogo_lifespan for what must await.",
                        )

    def check_roles(self) -> None:
        """Refuse roles that could not work, and two for one lane. Raises PluginFailed."""
        owners: dict[tuple[str | None, str | None], str] = {}
        for plugin in self.plugins.values():
            role = plugin.role
            if role is None:
                continue
            if not isinstance(role, Role):
                raise PluginFailed(f"{plugin.about}: cogo_role returned {type(role).__name__}, not Role")
            if fault := _fault(role):
                raise PluginFailed(f"{plugin.about}: the role {fault}")
            if role.handle is None:
                continue
            other = owners.setdefault((role.service, role.role), plugin.about)
            if other != plugin.about:
                raise PluginFailed(f"{other} and {plugin.about} both consume {role.service}/{role.role}")

    def call(self, hook: str, plugin: Plugin, **offered: Any) -> Any:
        """One plugin's answer to a hook; None when it has none. Raises PluginFailed."""
        caller = getattr(self._manager.hook, hook)
        for impl in caller.get_hookimpls():
            if impl.plugin is plugin.module:
                try:
                    return impl.function(**{name: offered[name] for name in impl.argnames})
                except CogoError:
                    raise
                except Exception as error:
                    raise PluginFailed(
                        f"{plugin.about}: {hook} failed: {type(error).__name__}: {error}"
                    ) from error
        return None

    def routes(self) -> list[Any]:
        """The Litestar handlers of every enabled plugin."""
        found: list[Any] = []
        for plugin in self.plugins.values():
            found += self.call("cogo_routes", plugin, settings=plugin.settings) or ()
        return found

    def migrations(self) -> dict[str, Traversable]:
        """Migration lines of the enabled plugins."""
        asked = {name: self.call("cogo_migrations", plugin) for name, plugin in self.plugins.items()}
        return {name: folder for name, folder in asked.items() if folder is not None}

    def _settings(self, plugin: Plugin, settings: Settings) -> Any:
        given = settings.plugins.get(plugin.name, {})
        kind = self.call("cogo_settings", plugin)
        if kind is None:
            if given:
                raise InvalidSetting(f"plugins.{plugin.name}: {plugin.about} takes no settings")
            return None
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            raise PluginFailed(
                f"{plugin.about}: cogo_settings returned {type(kind).__name__}, not a subclass of msgspec.Struct"
            )
        known = [field.encode_name for field in msgspec.structs.fields(kind)]
        if unknown := set(given) - set(known):
            near = difflib.get_close_matches(min(unknown), known, 1)
            ask = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise InvalidSetting(
                f"plugins.{plugin.name}.{min(unknown)} is not a setting of {plugin.about}{ask}"
            )
        try:
            return msgspec.convert(given, kind)
        except msgspec.ValidationError as error:
            raise InvalidSetting(f"plugins.{plugin.name}: {error}") from error


def enabled_names(settings: Settings) -> list[str]:
    """Roles by name; else the one that AGENT_SERVICE/AGENT_ROLE selects; else all of ours."""
    if settings.roles:
        return list(dict.fromkeys(resolve(name) for name in settings.roles))
    if settings.agent_service and settings.agent_role:
        return [_by_lane(settings.agent_service, settings.agent_role)]
    ours = [plugin.name for plugin in installed() if plugin.distribution == "cogo-agents"]
    return sorted(ours)


def _by_lane(service: str, role: str) -> str:
    for name in _entry_points():
        probe = Registry()
        try:
            probe.add(name)
            found = probe.call("cogo_role", probe.plugins[name])
        except PluginFailed:
            continue  # somebody else's broken plugin does not stop this one
        if found and (found.service, found.role) == (service, role):
            return name
    raise UnknownRole(f"no installed plugin serves the lane {service}/{role}")


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _fault(role: Role) -> str | None:
    """What keeps a role from working; None when nothing does."""
    if role.handle is not None and (role.service is None or role.role is None):
        return "has a handler but no service and role"
    lane = f"{role.service}/{role.role}"
    if role.handle is not None and not all(re.fullmatch(NAME_PATTERN, name) for name in lane.split("/", 1)):
        return f"consumes {lane!r}, but {lane!r} is not a lane"
    bounds: dict[str, tuple[float | None, float]] = {
        "concurrency": (role.concurrency, 1), "max_attempts": (role.max_attempts, 1),
        "timeout_s": (role.timeout_s, 0.001), "backoff_base_s": (role.backoff_base_s, 0),
        "backoff_cap_s": (role.backoff_cap_s, 0), "max_running": (role.max_running, 1),
        "max_running_per_tenant": (role.max_running_per_tenant, 1),
    }  # fmt: skip
    for name, (value, least) in bounds.items():
        if value is not None and not least <= value < 2**31:
            return f"has {name} {value}, which must be at least {least:g}"
    wrong = [shard for shard in role.shards or () if not 0 <= shard <= SHARD_MAX]
    return f"has the shard {wrong[0]}, which is not in 0..{SHARD_MAX}" if wrong else None


def lanes_of(role: Role, settings: Settings) -> list[Lane]:
    """The lanes that a role consumes in this process."""
    if role.handle is None or role.service is None or role.role is None:
        return []
    return [Lane(role.service, role.role, shard) for shard in role.shards or settings.agent_shard]


def lane_rows(roles: Iterable[Role]) -> list[Mapping[str, Any]]:
    """The policies for cogo.bus_lanes."""
    return [
        {
            "service": role.service,
            "role": role.role,
            "max_attempts": role.max_attempts,
            "backoff_base_ms": int(role.backoff_base_s * 1000),
            "backoff_cap_ms": int(role.backoff_cap_s * 1000),
            "timeout_ms": None if role.timeout_s is None else int(role.timeout_s * 1000),
            "events": role.events,
            "intents": list(role.intents),
            "fair": role.fair,
            "limits": msgspec.json.encode(_limits(role)).decode(),
        }
        for role in roles
        if role.handle is not None
    ]


def _limits(role: Role) -> dict[str, int]:
    """What bus_lanes.limits holds: empty for a lane without limits, which is claimed the fast way."""
    limits = {"max_running": role.max_running, "max_running_per_tenant": role.max_running_per_tenant}
    return {name: most for name, most in limits.items() if most is not None}
