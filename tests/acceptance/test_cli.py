"""Proves that the `cogo` command is quick to help, documents each verb, and ends as the house says."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest

from cogo.cli import COMMANDS, cli
from cogo.core.errors import CODES

# Imported only by what needs them; each costs 50 to 600 ms.
HEAVY = [
    "anyio",
    "httpx",
    "jinja2",
    "litestar",
    "msgspec",
    "opentelemetry",
    "psycopg",
    "rich",
    "supabase",
    "uvicorn",
]


def commands() -> dict[str, click.Command]:
    """Every command by its full name, groups flattened."""
    found: dict[str, click.Command] = {}
    context = click.Context(cli)
    for verb in cli.list_commands(context):
        command = cli.get_command(context, verb)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{verb} {name}": child for name, child in command.commands.items()}
        else:
            found[verb] = command
    return found


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where modules are compiled to once: a machine that writes no bytecode would measure the compiler."""
    return tmp_path_factory.mktemp("pyc")


@pytest.fixture
def environment(tmp_path: Path, compiled: Path) -> dict[str, str]:
    """An environment without settings, with a data home of its own that holds nothing."""
    drop = ("COGO_", "SUPABASE_", "AGENT_", "DATABASE_URL", "PG", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return kept | {"COGO_DATA_DIR": str(tmp_path / "home"), "PYTHONPYCACHEPREFIX": str(compiled)}


def cogo(*arguments: str, env: dict[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cogo", *arguments],
        env=env, cwd=cwd or Path(env["COGO_DATA_DIR"]).parent, capture_output=True, text=True, timeout=18, check=False,
    )  # fmt: skip


def cpu_s(*command: str, env: dict[str, str]) -> float:
    """The least CPU time of three runs: what the command costs, whatever else the machine does."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(3):
        before = spent()
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True, timeout=18)
        times.append(spent() - before)
    return min(times)


def test_help_costs_little_more_than_click_itself(environment: dict[str, str]):
    """`cogo --help` stays within a small multiple of a Python that imports click and package metadata."""
    floor = cpu_s(sys.executable, "-c", "import click, importlib.metadata", env=environment)
    assert cpu_s(sys.executable, "-m", "cogo", "--help", env=environment) < 3.0 * floor


def test_help_imports_nothing_heavy(environment: dict[str, str]):
    """Neither a command nor any of the big packages is imported to print the help."""
    code = (
        "import sys; from cogo.cli import cli\n"
        "try: cli(['--help'], prog_name='cogo')\n"
        "except SystemExit: print(*sorted(sys.modules), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    loaded = ran.stderr.split()
    assert "click" in loaded
    assert [name for name in loaded if name.split(".")[0] in HEAVY or name.startswith("cogo.commands")] == []
    assert all(verb in ran.stdout for verb in COMMANDS)


@pytest.mark.parametrize("name", sorted(commands()))
def test_each_command_has_json_and_an_example(name: str):
    """Each command takes --json and shows at least one runnable line of itself in its help."""
    command = commands()[name]
    assert any("--json" in parameter.opts for parameter in command.params)
    text = command.get_help(click.Context(command, info_name=name))
    assert "Example:" in text
    assert f"cogo {name}" in text.split("Example:")[1]
    assert all(
        getattr(p, "help", "-") is not None or p.hidden for p in command.params if isinstance(p, click.Option)
    )


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_summaries_of_help_are_those_of_the_commands(verb: str):
    """The table in cogo.cli, which spares the imports, says what each command says of itself."""
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    assert (command.help or "").splitlines()[0] == COMMANDS[verb][1]


def test_an_error_is_two_lines_and_no_traceback(environment: dict[str, str]):
    """Without a server a command ends with 78, the code, the reason and what to do."""
    ran = cogo("status", env=environment)
    first, second = ran.stderr.splitlines()
    assert first.startswith("error[no_server]: ")
    assert second.startswith("  hint: ")
    assert "cogo serve" in second
    assert ran.stdout == ""
    assert ran.returncode == 78


def test_an_error_with_json_is_a_problem_object(environment: dict[str, str]):
    """With --json the same error is one JSON object on stderr, and stdout stays empty."""
    ran = cogo("status", "--json", env=environment)
    problem = msgspec.json.decode(ran.stderr)
    assert problem["code"] == "no_server"
    assert {"title", "status", "detail", "hint"} < problem.keys()
    assert ran.stdout == ""
    assert ran.returncode == 78


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--version"], 0, "cogo, version"),
        (["serv"], 2, "Did you mean 'serve'?"),
        (["send"], 2, "Missing argument"),
        (["send", "Not A Key", "{}"], 2, "error[routing_invalid]"),
        (["send", "a/b", "{not json"], 2, "not JSON"),
        (["explain", "budget_exceded"], 2, "Did you mean 'budget_exceeded'?"),
        (["token"], 2, "--tenant"),
        (["serve", "--roles", "orchestratr"], 78, "error[unknown_role]"),
        (["serve", "--config", "nowhere.toml"], 78, "error[invalid_setting]"),
    ],
)
def test_exit_codes_tell_usage_from_configuration(
    arguments: list[str], code: int, says: str, environment: dict[str, str]
):
    """0 done, 2 wrong usage, 78 configuration; and the text names the thing that is wrong."""
    ran = cogo(*arguments, env=environment)
    assert says in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.returncode == code


def test_usage_errors_are_problems_too_with_json(environment: dict[str, str]):
    """A script that passed --json reads usage errors as it reads others."""
    ran = cogo("explain", "nonsense", "--json", env=environment)
    assert msgspec.json.decode(ran.stderr)["code"] == "usage"
    assert ran.returncode == 2


@pytest.mark.parametrize("code", sorted(CODES))
def test_explain_knows_every_code(code: str, environment: dict[str, str]):
    """`cogo explain` has the meaning, what to do, the fate of the message, status and exit code of each."""
    from cogo.commands.operate import explained

    row = explained(code)
    assert row["meaning"]
    assert row["hint"] == CODES[code].hint
    assert (row["status"], row["exit_code"]) == (CODES[code].status, CODES[code].exit_code)
    assert row["message"]


def test_explain_takes_a_whole_error_column(environment: dict[str, str]):
    """What stands in agent_messages.error can be pasted as it is."""
    ran = cogo("explain", "poison: all attempts used up", "--json", env=environment)
    assert msgspec.json.decode(ran.stdout)["code"] == "poison"


def test_config_shows_origins_and_hides_secrets(environment: dict[str, str], tmp_path: Path):
    """Each value names where it came from; a password never prints."""
    (tmp_path / "plugins.toml").write_text("[cogo]\npoll_ms = 7000\n")
    secret = "postgresql://cogo:hunter2@db.invalid/cogo"
    env = environment | {"RETENTION_DAYS": "3", "DATABASE_URL": secret}
    ran = cogo("config", "--json", env=env, cwd=tmp_path)
    rows = msgspec.json.decode(ran.stdout)
    assert rows["poll_ms"] == {"value": "7000", "origin": "plugins.toml", "env": "BUS_POLL_MS"}
    assert rows["retention_days"]["origin"] == "environment"
    assert rows["port"]["origin"] == "default"
    assert rows["database_url"]["value"] == "***"
    assert "hunter2" not in ran.stdout + cogo("config", env=env, cwd=tmp_path).stdout


def test_a_setting_that_is_misspelt_names_the_nearest(environment: dict[str, str], tmp_path: Path):
    """An unknown key refuses to start with its path and the key that was meant."""
    (tmp_path / "plugins.toml").write_text("[cogo]\npol_ms = 7000\n")
    ran = cogo("config", env=environment, cwd=tmp_path)
    assert "error[unknown_setting]" in ran.stderr
    assert "poll_ms" in ran.stderr
    assert ran.returncode == 78


def test_plugins_lists_our_roles_without_importing_them(environment: dict[str, str]):
    """The ten roles of the distribution are there, with package and version."""
    rows = msgspec.json.decode(cogo("plugins", "--json", env=environment).stdout)
    ours = {row["name"] for row in rows if row["package"] == "cogo-agents" and row["kind"] == "role"}
    assert {"orchestrator", "executor", "gateway", "rag-embed", "kg-builder", "metrics", "ingress"} <= ours
    assert all(row["version"] for row in rows)


def test_a_token_is_for_its_tenants_and_role(environment: dict[str, str]):
    """A minted token verifies with the data home's secret as the principal that was asked for."""
    from cogo.core.settings import load, local_keys
    from cogo.http.tokens import verify

    ran = cogo("token", "--tenant", "acme", "--role", "operator", env=environment)
    settings = load(environ=environment).settings
    principal = verify(local_keys(settings).jwt_secret.reveal(), ran.stdout.strip())
    assert principal.role == "operator"
    assert principal.tenants == frozenset({"acme"})


def test_commands_of_other_packages_run_and_broken_ones_say_whose_they_are(
    environment: dict[str, str], tmp_path: Path
):
    """An entry point of group cogo.commands is a verb; `--help` lists it without importing it."""
    (tmp_path / "site" / "hello-1.0.dist-info").mkdir(parents=True)
    info = tmp_path / "site" / "hello-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cogo.commands]\nhello = hello:hello\nbroken = no_such_module:x\n"
    )
    (tmp_path / "site" / "hello.py").write_text(
        "import click\n@click.command()\ndef hello():\n    click.echo('hello from a plugin')\n"
    )
    env = environment | {"PYTHONPATH": str(tmp_path / "site")}
    assert "hello  (from hello)" in cogo("--help", env=env).stdout.replace("   ", "  ")
    assert cogo("hello", env=env).stdout == "hello from a plugin\n"
    broken = cogo("broken", env=env)
    assert "error[plugin_failed]" in broken.stderr
    assert "no_such_module" in broken.stderr
    assert broken.returncode == 78


def test_doctor_without_a_server_says_what_is_wrong(environment: dict[str, str]):
    """Doctor exits 1 with a named check, not with an error."""
    ran = cogo("doctor", "--json", env=environment)
    found = msgspec.json.decode(ran.stdout)
    assert found["ok"] is False
    wrong = [check for check in found["checks"] if check["state"] == "wrong"]
    assert [check["name"] for check in wrong] == ["database"]
    assert "no_server" in wrong[0]["detail"]
    assert ran.returncode == 1


def test_healthcheck_without_a_server_fails(environment: dict[str, str]):
    """The probe of a container exits 1 when nothing is there."""
    assert cogo("healthcheck", env=environment).returncode == 1
