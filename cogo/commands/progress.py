"""Progress on long work: a bar where a person looks at the terminal, plain lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cogo.commands.base import duration, note, on_terminal

Update = Callable[[int, int, str], None]
"""Called with (done, total, text); a total of 0 is not known yet."""

LINE_EVERY_S = 2.0


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Update]:
    """Show progress on stderr while the block runs; `quiet` shows nothing at all."""
    if quiet:
        yield lambda _done, _total, _text: None
    elif on_terminal():
        with bar(title) as update:
            yield update
    else:
        yield from lines(title)


@contextmanager
def bar(title: str) -> Iterator[Update]:
    """A bar with counts and elapsed time, which stays on the screen when it ends."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as shown:
        row = shown.add_task(title, total=None, text="")

        def update(done: int, total: int, text: str) -> None:
            shown.update(row, completed=done, total=total or None, text=text)

        yield update
        shown.update(row, text="")


def lines(title: str) -> Iterator[Update]:
    """One line at the start, one every two seconds while something changes, one at the end."""
    began = spoke = time.monotonic()
    last = (0, 0)
    note(f"{title} ...")

    def update(done: int, total: int, text: str) -> None:
        nonlocal spoke, last
        now = time.monotonic()
        if (done, total) != last and now - spoke >= LINE_EVERY_S:
            spoke = now
            note(f"{title}: {done}/{total or '?'} {text}".rstrip())
        last = (done, total)

    yield update
    note(f"{title}: done in {duration((time.monotonic() - began) * 1000)}")
