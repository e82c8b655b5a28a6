"""A file into chunks: symbols of Python, sections of Markdown and reStructuredText, else windows.

Every chunk is a run of whole lines, 1-based and inclusive, and its text is exactly those lines.
Chunks of a file never overlap, and every line with something on it is in one.
"""

from __future__ import annotations

import ast
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import msgspec

WINDOW = 60
"""Lines of the largest chunk that isn't a symbol; longer ones are cut, at a blank line if possible."""


class Chunk(msgspec.Struct, frozen=True):
    """A span of a file. `qualname` is `Class.method` in code, `Guide > Install` in documents."""

    kind: str
    """function, method, class, module, section or lines."""
    qualname: str
    start: int
    end: int
    text: str


class Chunked(msgspec.Struct, frozen=True):
    """What `chunk_file` made of a file. `note` says why a simpler cut than usual was taken."""

    lang: str
    chunks: tuple[Chunk, ...]
    note: str | None = None


class _Owner(msgspec.Struct, frozen=True):
    kind: str
    qualname: str
    serial: int
    """Tells two symbols of one name apart (overloads, redefinitions)."""


_LANGUAGES = {
    ".py": "python", ".pyi": "python", ".md": "markdown", ".markdown": "markdown", ".rst": "rst", ".txt": "rst",
    ".js": "javascript", ".mjs": "javascript", ".jsx": "javascript", ".ts": "typescript", ".tsx": "typescript",
    ".go": "go", ".rs": "rust", ".java": "java", ".sql": "sql", ".c": "c", ".h": "c", ".sh": "shell",
    ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".html": "html", ".css": "css",
}  # fmt: skip


def language(path: str) -> str:
    """By the file name's ending; "text" when it is unknown."""
    return _LANGUAGES.get(PurePosixPath(path).suffix.lower(), "text")


def split_lines(text: str) -> list[str]:
    """Lines as editors and Python's parser count them: not at form feeds or Unicode separators."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


def chunk_file(path: str, text: str, lang: str | None = None) -> Chunked:
    """Cut a file's text. Never raises on any text: what can't be parsed is cut into windows."""
    lang, lines = lang or language(path), split_lines(text)
    note = None
    if lang == "python":
        try:
            return Chunked(lang, tuple(_python(lines)))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            note = f"not parsable as Python ({type(error).__name__}): cut into windows"
    elif lang in ("markdown", "rst"):
        heads = _markdown_heads(lines) if lang == "markdown" else _rst_heads(lines)
        return Chunked(lang, tuple(_sections(lines, heads)))
    return Chunked(lang, tuple(_windows(lines, 0, len(lines), "lines", "")), note)


# -- Python -----------------------------------------------------------------------------------

_QUIET = threading.Lock()


def parse_python(lines: list[str]) -> ast.Module:
    """The syntax tree, without the parser's warnings about other people's string escapes.

    The lock keeps two threads from restoring each other's warning filters.
    Raises SyntaxError, ValueError, RecursionError or MemoryError on what isn't Python.
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse("\n".join(lines) + "\n")


def _python(lines: list[str]) -> Iterator[Chunk]:
    """Each line belongs to the function, class or module that owns it; runs of one owner are chunks."""
    module = _Owner("module", "", 0)
    owners = [module] * len(lines)
    _own(parse_python(lines).body, owners, module)
    start = 0
    for i in range(1, len(lines) + 1):
        if i < len(lines) and owners[i] is owners[start]:
            continue
        owner, size = owners[start], WINDOW if owners[start].kind in ("module", "class") else len(lines)
        yield from _windows(lines, start, i, owner.kind, owner.qualname, size)
        start = i


def _own(body: Iterable[ast.AST], owners: list[_Owner], parent: _Owner) -> None:
    """Write each definition's owner over its lines; compound statements (if, try) are looked into."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            name = f"{parent.qualname}.{node.name}" if parent.qualname else node.name
            is_class = isinstance(node, ast.ClassDef)
            kind = "class" if is_class else "method" if parent.kind == "class" else "function"
            owner = _Owner(kind, name, first)
            last = node.end_lineno or first
            owners[first - 1 : last] = [owner] * (last - first + 1)
            if is_class:
                _own(node.body, owners, owner)
        elif isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            _own((n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.expr)), owners, parent)


# -- documents --------------------------------------------------------------------------------

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*$")

_Head = tuple[int, int, str]
"""First line (0-based), level, title."""


def _markdown_heads(lines: list[str]) -> list[_Head]:
    heads: list[_Head] = []
    fence = ""
    for i, line in enumerate(lines):
        mark = _FENCE.match(line)
        if fence:
            fence = "" if mark and mark[1].startswith(fence) and not line.strip(" `~") else fence
        elif mark:
            fence = mark[1]
        elif found := _ATX.match(line):
            heads.append((i, len(found[1]), (found[2] or "").strip()))
        elif i and _UNDERLINE.match(line) and _is_title(lines, i - 1):
            heads.append((i - 1, 1 if "=" in line else 2, lines[i - 1].strip()))
    return heads


def _is_title(lines: list[str], i: int) -> bool:
    """Whether a line alone between blank lines (or the start) and an underline is a heading's text."""
    line = lines[i]
    alone = i == 0 or not lines[i - 1].strip()
    return (
        alone and bool(line.strip()) and not line.startswith(("    ", "\t", ">", "-", "*", "|", "#", "```"))
    )


def _rst_heads(lines: list[str]) -> list[_Head]:
    heads: list[_Head] = []
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


def _sections(lines: list[str], heads: list[_Head]) -> Iterator[Chunk]:
    trail: list[tuple[int, str]] = []
    starts = [head[0] for head in heads] + [len(lines)]
    yield from _windows(lines, 0, starts[0], "section", "")
    for (start, level, title), end in zip(heads, starts[1:], strict=True):
        trail = [*(t for t in trail if t[0] < level), (level, title)]
        yield from _windows(lines, start, end, "section", " > ".join(t[1] for t in trail if t[1]))


# -- windows ----------------------------------------------------------------------------------


def _windows(
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
