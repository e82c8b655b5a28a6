"""Write docs/reference from the code, so that it can't lag behind: `make docs`, or `--check` in CI."""

from __future__ import annotations

import difflib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from cogo.cli import cli
from cogo.core.errors import CODES, CogoError

REFERENCE = Path(__file__).parent / "reference"
FATES = {
    "failed": "ended as `failed`, never tried again",
    "retry": "tried again with backoff, then `failed`",
    "none": "left alone",
}


def errors_page() -> Iterator[str]:
    """One heading per error code; HTTP problems link to it by `type`."""
    yield "# Error codes\n"
    yield (
        "The same code stands in the log line, in the HTTP problem (`code`, and `type` links here), at the start "
        "of `agent_messages.error`, and in the first line that a command prints. `cogo explain CODE` prints the "
        "same text. Exit codes: 0 done, 1 the work failed, 2 wrong usage, 78 configuration.\n"
    )
    yield "| code | HTTP | exit | message | log |"
    yield "|---|---|---|---|---|"
    for code, kind in sorted(CODES.items()):
        level = logging.getLevelName(kind.level).lower()
        yield f"| [`{code}`](#{code}) | {kind.status} | {kind.exit_code} | {kind.fate} | {level} |"
    yield ""
    for code, kind in sorted(CODES.items()):
        yield from error_section(code, kind)


def error_section(code: str, kind: type[CogoError]) -> Iterator[str]:
    yield f"## {code}\n"
    yield inspect.cleandoc(kind.__doc__ or "") + "\n"
    yield f"**What to do.** {kind.hint}\n"
    yield f"Raised by a handler, its message is {FATES[kind.fate]}.\n"


def cli_page() -> Iterator[str]:
    """The help text of each command, as `--help` prints it at 100 columns."""
    yield "# Commands\n"
    yield "Every command takes `--json`, and `--help` with an example. Installed plugins may add commands.\n"
    root = click.Context(cli, info_name="cogo", max_content_width=100, terminal_width=100)
    for path, command in walk(cli, root):
        context = click.Context(
            command, info_name=path[-1], parent=root, max_content_width=100, terminal_width=100
        )
        yield f"## {' '.join(['cogo', *path])}\n\n```text\n{command.get_help(context)}\n```\n"


def walk(group: click.Group, context: click.Context) -> Iterator[tuple[list[str], click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            continue
        yield [name], command
        if isinstance(command, click.Group):
            yield from (([name, *path], child) for path, child in walk(command, context))


PAGES: dict[str, Callable[[], Iterator[str]]] = {"errors.md": errors_page, "cli.md": cli_page}


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` only compare; 1 when a page is out of date."""
    stale = 0
    REFERENCE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        path, new = REFERENCE / name, "\n".join(page()).rstrip() + "\n"
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old == new:
            continue
        stale += 1
        if "--check" in arguments:
            diff = difflib.unified_diff(
                old.splitlines(), new.splitlines(), "written", "generated", lineterm="", n=1
            )
            print(f"docs/reference/{name} is out of date: run `make docs`", *list(diff)[:40], sep="\n")
        else:
            path.write_text(new, encoding="utf-8")
            print(f"wrote docs/reference/{name}")
    return int("--check" in arguments and stale > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
