"""The `cogo` command: a table of verbs, each imported when it runs.

`cogo --help` imports click and this file, nothing of a command: the summaries stand here. Commands of
other packages come from the entry-point group `cogo.commands` (name = verb, value = a click command).
"""

from __future__ import annotations

import importlib
import os
import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "cogo.commands"
INTERRUPTED = 130

# verb -> (where it lives, what it does); the sections of `cogo --help`. A test compares the summaries
# with the commands' own help.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Run": {
        "serve": ("cogo.commands.serve:serve", "Run the process: roles, bus, HTTP, embedded Postgres."),
        "demo": ("cogo.commands.demo:demo", "Run the main job on a repository, start to end."),
    },
    "Knowledge": {
        "index": ("cogo.commands.knowledge:index", "Index a repository through the bus."),
        "watch": ("cogo.commands.watch:watch", "Keep the index of a folder up to date as files change."),
        "ask": ("cogo.commands.knowledge:ask", "Ask a question; the answer cites file:line."),
        "search": ("cogo.commands.knowledge:search", "Search the index for ranked spans."),
        "models": ("cogo.commands.models:models", "Install the models that run in the process."),
        "kg": (
            "cogo.commands.kg:kg",
            "Look at the code graph: who imports, who calls, what breaks, reports and exports.",
        ),
        "eval": (
            "cogo.commands.evals:evals",
            "Look at decisions afterwards: make them again and compare.",
        ),
    },
    "Bus": {
        "send": ("cogo.commands.bus:send", "Put a message on the bus."),
        "tail": ("cogo.commands.bus:tail", "Follow the bus events as they are written."),
        "status": ("cogo.commands.bus:status", "Show the lanes, or one message with its hops."),
        "cancel": ("cogo.commands.bus:cancel", "Cancel a message."),
        "requeue": ("cogo.commands.bus:requeue", "Queue a failed or cancelled message again."),
        "lanes": ("cogo.commands.flow:lanes", "List the lanes with their policy, what waits and what runs."),
        "pause": ("cogo.commands.flow:pause", "Begin nothing more in a lane, or for one tenant."),
        "resume": ("cogo.commands.flow:resume", "End a pause of a lane, or of one tenant."),
        "dead": ("cogo.commands.flow:dead", "Group the failed messages by lane and error code."),
        "redrive": ("cogo.commands.flow:redrive", "Queue failed messages again, many at once."),
        "smoke": ("cogo.commands.smoke:smoke", "Quick checks of a running installation."),
    },
    "Operations": {
        "migrate": ("cogo.commands.operate:migrate", "Bring the database schema up to date."),
        "config": ("cogo.commands.operate:config", "Print every setting, its origin and its name."),
        "plugins": ("cogo.commands.operate:plugins", "List the installed roles and commands."),
        "doctor": ("cogo.commands.doctor:doctor", "Check the installation; exit 1 if something is wrong."),
        "explain": ("cogo.commands.operate:explain", "Explain an error code, or a decision by its number."),
        "token": ("cogo.commands.operate:token", "Mint an access token for the HTTP API."),
        "healthcheck": ("cogo.commands.serve:healthcheck", "Exit 0 if the local server is ready."),
    },
}
COMMANDS = {verb: row for section in SECTIONS.values() for verb, row in section.items()}


class LazyGroup(click.Group):
    """A group that imports a command only when it is asked for that command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            found = getattr(importlib.import_module(module), attribute)
        else:
            point = next((point for point in installed() if point.name == cmd_name), None)
            found = load(point) if point else None
        assert found is None or isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            names = [*COMMANDS, *(point.name for point in installed())]
            near = get_close_matches(args[0], names, n=1)
            also = f" Did you mean {near[0]!r}?" if near else " `cogo --help` lists them."
            raise click.UsageError(f"No such command {args[0]!r}.{also}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(verb, summary) for verb, (_, summary) in section.items()])
        extra = [(p.name, f"(from {p.dist.name if p.dist else p.value})") for p in installed()]
        if extra:
            with formatter.section("Installed plugins"):
                formatter.write_dl(extra)


def installed() -> Iterator[EntryPoint]:
    """Commands that other packages bring; ours win over theirs of the same name."""
    from importlib.metadata import entry_points

    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        if point.name not in COMMANDS:
            yield point


def load(point: EntryPoint) -> click.Command:
    """Import a plugin's command; a broken one says which package to fix. Raises PluginFailed."""
    from cogo.core.errors import PluginFailed

    try:
        found = point.load()
    except Exception as exc:
        raise PluginFailed(f"command {point.name!r} of {point.value}: {type(exc).__name__}: {exc}") from exc
    if not isinstance(found, click.Command):
        raise PluginFailed(f"command {point.name!r} of {point.value} is not a click command")
    return found


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nStart here:\n  cogo demo            the main job on the repository you stand in\n"
    "  cogo serve           all roles on an embedded Postgres",
)
@click.version_option(package_name="cogo-agents", prog_name="cogo")
def cli() -> None:
    """COGO: a distributed agent platform that is one Python process and one Postgres table."""


def report(error: BaseException, *, as_json: bool) -> int:
    """Print a CogoError or a usage error on stderr, as the house prints them; return the exit code."""
    from cogo.core.errors import CogoError

    if isinstance(error, CogoError):
        code, detail, hint = error.code, error.detail, error.next_step
        exit_code, title, status = error.exit_code, error.summary(), error.status
    else:
        assert isinstance(error, click.ClickException)
        if not as_json:
            error.show()
            return error.exit_code
        code, detail, hint = "usage", error.format_message(), "Run the command with --help."
        exit_code, title, status = error.exit_code, "The command was not used as it is meant to be.", 400
    if as_json:
        import msgspec

        problem = {"code": code, "title": title, "status": status, "detail": detail, "hint": hint}
        click.echo(msgspec.json.encode(problem), err=True)
    else:
        click.echo(f"error[{code}]: {detail}\n  hint: {hint}", err=True)
    return exit_code


def main() -> NoReturn:
    """The entry point of the `cogo` script: run, and turn every end into one of the exit codes."""
    from cogo.core.errors import CogoError

    arguments = sys.argv[1:]
    try:
        code = cli.main(arguments, prog_name="cogo", standalone_mode=False)
    except (CogoError, click.ClickException) as exc:
        code = report(exc, as_json="--json" in arguments)
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:
        # `cogo tail | head`: the reader has seen enough. Give stdout a place to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
