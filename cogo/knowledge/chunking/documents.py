"""Markdown and reStructuredText: sections by their headings.

By our own eyes: tree-sitter-markdown finds the same headings in the documents of real packages, at a tenth of the
speed. What it knows better are titles of two lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .spans import Chunk, windows

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HTML = re.compile(r" {0,3}<(!--|(?:pre|script|style|textarea)(?![\w-]))", re.IGNORECASE)
_HTML_ENDS = {
    "!--": re.compile("-->"),
    **{tag: re.compile(f"</{tag}>", re.IGNORECASE) for tag in ("pre", "script", "style", "textarea")},
}
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*$")

Head = tuple[int, int, str]
"""First line (0-based), level, title."""


def markdown_heads(lines: list[str]) -> list[Head]:
    """What stands in fences, HTML comments and front matter is no heading."""
    heads: list[Head] = []
    end: re.Pattern[str] | None = None
    for i in range(_after_front_matter(lines), len(lines)):
        line = lines[i]
        if end is not None:
            end = None if end.search(line) else end
        elif mark := _FENCE.match(line):
            end = re.compile(rf" {{0,3}}{mark[1][0]}{{{len(mark[1])},}}[ \t]*$")
        elif html := _HTML.match(line):
            closed = _HTML_ENDS[html[1].lower()]
            end = None if closed.search(line, html.end()) else closed
        elif found := _ATX.match(line):
            heads.append((i, len(found[1]), (found[2] or "").strip()))
        elif i and _UNDERLINE.match(line) and _is_title(lines, i - 1):
            heads.append((i - 1, 1 if "=" in line else 2, lines[i - 1].strip()))
    return heads


def _after_front_matter(lines: list[str]) -> int:
    if lines and lines[0].rstrip() == "---":
        return next((i + 1 for i in range(1, len(lines)) if lines[i].rstrip() in ("---", "...")), 0)
    return 0


def _is_title(lines: list[str], i: int) -> bool:
    """Whether a line alone between blank lines (or the start) and an underline is a heading's text."""
    line = lines[i]
    alone = i == 0 or not lines[i - 1].strip()
    return (
        alone and bool(line.strip()) and not line.startswith(("    ", "\t", ">", "-", "*", "|", "#", "```"))
    )


def rst_heads(lines: list[str]) -> list[Head]:
    heads: list[Head] = []
    levels: dict[tuple[str, bool], int] = {}
    i = 0
    while i + 1 < len(lines):
        found = _rst_head(lines, i)
        if found is None:
            i += 1
            continue
        title, style, taken = found
        heads.append((i, levels.setdefault(style, len(levels) + 1), title))
        i += taken
    return heads


def _rst_head(lines: list[str], i: int) -> tuple[str, tuple[str, bool], int] | None:
    """The title at line i, its adornment's style, and how many lines it takes; None if there is none."""
    if i and lines[i - 1].strip():
        return None
    over = _ADORNMENT.match(lines[i])
    if over and i + 2 < len(lines):
        title, under = lines[i + 1], _ADORNMENT.match(lines[i + 2])
        if title.strip() and under and under[1] == over[1] and not _ADORNMENT.match(title):
            return title.strip(), (over[1], True), 3
        return None
    title, under = lines[i], _ADORNMENT.match(lines[i + 1])
    if not title.strip() or title[0].isspace() or under is None or over:
        return None
    long_enough = len(lines[i + 1].rstrip()) >= len(title.rstrip())
    return (title.strip(), (under[1], False), 2) if long_enough else None


def sections(lines: list[str], heads: list[Head]) -> Iterator[Chunk]:
    trail: list[tuple[int, str]] = []
    starts = [head[0] for head in heads] + [len(lines)]
    yield from windows(lines, 0, starts[0], "section", "")
    for (start, level, title), end in zip(heads, starts[1:], strict=True):
        trail = [*(t for t in trail if t[0] < level), (level, title)]
        yield from windows(lines, start, end, "section", " > ".join(t[1] for t in trail if t[1]))
