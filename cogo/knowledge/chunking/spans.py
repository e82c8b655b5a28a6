"""Chunks, and how the lines of a file become chunks: each line has an owner, runs of one owner are a chunk."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

WINDOW = 60
"""Lines of the largest chunk that isn't a function; longer ones are cut, at a blank line if possible."""
FUNCTION_MAX = 500
"""Lines of a function that stay together."""


class Chunk(msgspec.Struct, frozen=True):
    """A span of a file. `qualname` is `Class.method` in code, `Guide > Install` in documents."""

    kind: str
    """function, method, class, module, section or lines."""
    qualname: str
    start: int
    end: int
    text: str


class Owner(msgspec.Struct, frozen=True):
    """The symbol that a line belongs to. Two of one name (overloads, redefinitions) are two objects."""

    kind: str
    qualname: str
    depth: int = 0
    """Symbols around it."""

    def member(self, kind: str, name: str) -> Owner:
        """What lies in it: functions of classes are methods."""
        kind = "method" if (self.kind, kind) == ("class", "function") else kind
        return Owner(kind, f"{self.qualname}.{name}" if self.qualname else name, self.depth + 1)


MODULE = Owner("module", "")


def own(owners: list[Owner], owner: Owner, first: int, last: int) -> None:
    """Write the owner over these rows (0-based, inclusive)."""
    last = min(last, len(owners) - 1)
    owners[first : last + 1] = [owner] * (last + 1 - first)


def runs(lines: list[str], owners: list[Owner]) -> Iterator[Chunk]:
    """The chunks of a file whose lines all have an owner."""
    start = 0
    for i in range(1, len(lines) + 1):
        if i < len(lines) and owners[i] is owners[start]:
            continue
        owner = owners[start]
        size = FUNCTION_MAX if owner.kind in ("function", "method") else WINDOW
        yield from windows(lines, start, i, owner.kind, owner.qualname, size)
        start = i


def windows(
    lines: list[str], start: int, end: int, kind: str, qualname: str, size: int = WINDOW
) -> Iterator[Chunk]:
    """Cut lines[start:end], without blank edges, into chunks of at most `size` lines."""
    while start < end:
        if not lines[start].strip():
            start += 1
            continue
        stop = end if end - start <= size else _good_cut(lines, start, start + size)
        last = stop
        while not lines[last - 1].strip():
            last -= 1
        yield Chunk(kind, qualname, start + 1, last, "\n".join(lines[start:last]))
        start = stop


def _good_cut(lines: list[str], start: int, limit: int) -> int:
    """The last blank line in the second half of the window, else its end."""
    for i in range(limit, start + (limit - start) // 2, -1):
        if not lines[i].strip():
            return i
    return limit
