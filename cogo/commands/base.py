"""What every command shares: `--json`, an example in its help, async bodies, tables and durations."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

import click

T = TypeVar("T")
Body = Callable[..., Any]

DEMO_TENANT = "demo"
"""The tenant that the knowledge commands use unless `--tenant` or COGO_TENANT names another."""


def command(
    name: str | None = None, *, example: str, group: click.Group | None = None, uvloop: bool = False
) -> Callable[[Body], click.Command]:
    """Make a click command with `--json` and an example at the end of its help.

    The body takes `as_json: bool`. It may be a coroutine function, run on uvloop if asked and installed; a
    number that it returns is the exit code.
    """

    def decorate(body: Body) -> click.Command:
        @functools.wraps(body)
        def run(**given: Any) -> None:
            if inspect.iscoroutinefunction(body):
                outcome = run_async(lambda: body(**given), uvloop=uvloop)
            else:
                outcome = body(**given)
            if isinstance(outcome, int) and outcome:
                raise click.exceptions.Exit(outcome)

        examples = "\n".join(f"  {line}" for line in example.splitlines())
        make = group.command if group else click.command
        made = make(name, epilog=f"\b\nExample:\n{examples}", help=inspect.cleandoc(body.__doc__ or ""))(
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(
                run
            )
        )
        assert isinstance(made, click.Command)
        return made

    return decorate


def tenant_option(body: Body) -> Body:
    """`--tenant`, or COGO_TENANT, or the demo's tenant."""
    return click.option(
        "--tenant",
        default=DEMO_TENANT,
        envvar="COGO_TENANT",
        show_default=True,
        help="Whose knowledge it is.",
    )(body)


def run_async(body: Callable[[], Coroutine[Any, Any, T]], *, uvloop: bool = False) -> T:
    """Run a coroutine function to its end. One error out of a task group stays that one error."""
    import anyio

    from cogo.core.errors import CogoError

    quieten()
    options = {"use_uvloop": uvloop and find_spec("uvloop") is not None}
    try:
        return anyio.run(body, backend="asyncio", backend_options=options)
    except BaseExceptionGroup as group:
        errors, _ = group.split((CogoError, KeyboardInterrupt))
        if errors is None:
            raise
        leaf: BaseException = errors
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        raise leaf from None


def quieten() -> None:
    """Keep what libraries log about lost connections off a person's terminal: our errors say it once."""
    for name in ("psycopg", "psycopg.pool", "cogo"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


def emit(data: Any) -> None:
    """Print one JSON object (or value) and a newline on stdout; datetimes and Structs are encoded."""
    import msgspec

    click.echo(msgspec.json.encode(data, enc_hook=str).decode())


def say(text: str = "", *, bold: bool = False, dim: bool = False) -> None:
    """Print a line on stdout, with a style only on a terminal."""
    click.echo(click.style(text, bold=bold or None, dim=dim or None) if bold or dim else text)


def note(text: str) -> None:
    """Print a line on stderr: what a person wants to know and a script does not."""
    click.echo(text, err=True)


def table(rows: Iterable[Sequence[Any]], *, head: Sequence[str]) -> None:
    """Print rows under a head in columns as wide as they need to be."""
    texts = [[("" if cell is None else str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *texts]) for i in range(len(head))]
    for number, line in enumerate([list(head), *texts]):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        say(text, bold=number == 0)


def duration(ms: float | None) -> str:
    """Milliseconds as a person says them: `0.8 ms`, `240 ms`, `3.2 s`, `4 min 10 s`."""
    if ms is None:
        return "-"
    if ms < 10:
        return f"{ms:.1f} ms"
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    return f"{minutes} min {seconds} s"


def on_terminal() -> bool:
    """Whether a person looks at stderr, where progress is drawn."""
    return sys.stderr.isatty()
