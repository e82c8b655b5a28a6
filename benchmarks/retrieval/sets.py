"""Retrieval sets out of packages and documentation that are at hand; nothing is labelled by hand.

code: query = first sentence of a function's docstring, target = that function in a copy of the
source from which every docstring was taken out. docs: query = a section's title, target = that
section in a copy in which every title reads "Section".
"""

from __future__ import annotations

import ast
import random
import re
from dataclasses import dataclass
from pathlib import Path

from cogo.knowledge import chunking


@dataclass(frozen=True)
class Query:
    text: str
    path: str
    start: int
    end: int
    name: str


# Notes of each release repeat the same titles and words; no question is about one of them.
_DATED = re.compile(r"changelog|releases?/|announce/|whatsnew|/news", re.IGNORECASE)
WORDS_MIN = 3
TEXT_MIN = 300
"""Characters of a section that a title is asked for, its title included."""

_SENTENCE = re.compile(r"(?<=[.!?])\s|\n\s*\n")


def first_sentence(doc: str) -> str:
    return " ".join(_SENTENCE.split(doc.strip())[0].split())


def code_set(sources: dict[str, Path], into: Path, *, count: int, seed: int) -> list[Query]:
    """Copy `{name: folder}` below `into` without docstrings; return `count` queries at random."""
    queries: list[Query] = []
    for name, root in sorted(sources.items()):
        for file in sorted(root.rglob("*.py")):
            relative = Path(name) / file.relative_to(root)
            if any(
                part in ("tests", "test", "site-packages", "idlelib", "lib2to3") for part in relative.parts
            ):
                continue
            try:
                text, found = _without_docstrings(file.read_text("utf-8"), str(relative))
            except (SyntaxError, UnicodeDecodeError, ValueError):
                continue
            (into / relative).parent.mkdir(parents=True, exist_ok=True)
            (into / relative).write_text(text, "utf-8")
            queries += found
    return _sample(queries, count, seed)


def _sample(queries: list[Query], count: int, seed: int) -> list[Query]:
    texts: dict[str, int] = {}
    for query in queries:
        texts[query.text.lower()] = texts.get(query.text.lower(), 0) + 1
    single = [q for q in queries if texts[q.text.lower()] == 1]
    return random.Random(seed).sample(single, min(count, len(single)))


def _without_docstrings(source: str, path: str) -> tuple[str, list[Query]]:
    lines = chunking.split_lines(source)
    tree = chunking.parse_python(lines)
    queries: list[Query] = []
    _visit(tree, lines, path, queries, in_function=False)
    return "\n".join(lines) + "\n", queries


def _visit(node: ast.AST, lines: list[str], path: str, queries: list[Query], *, in_function: bool) -> None:
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    if is_function or isinstance(node, ast.ClassDef | ast.Module):
        doc = ast.get_docstring(node)
        if doc and _blank(node.body[0], lines) and is_function and not in_function:
            text = first_sentence(doc)
            if len(text.split()) >= 4 and not text.startswith((">>>", ":", "@")):
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                queries.append(Query(text, path, start, node.end_lineno or start, node.name))
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler):
            _visit(child, lines, path, queries, in_function=in_function or is_function)


def _blank(statement: ast.stmt, lines: list[str]) -> bool:
    """Take a docstring out, keeping the count of lines; False when it shares a line with code."""
    start, end = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
    before = lines[start].encode()[: statement.col_offset].decode()
    if before.strip() or lines[end].encode()[statement.end_col_offset :].strip():
        return False
    lines[start] = before + "pass"
    for i in range(start + 1, end + 1):
        lines[i] = ""
    return True


def docs_set(sources: dict[str, Path], into: Path, *, count: int, seed: int) -> list[Query]:
    queries: list[Query] = []
    for name, root in sorted(sources.items()):
        for file in sorted(root.rglob("*")):
            if file.suffix not in (".rst", ".md", ".txt") or not file.is_file() or _DATED.search(str(file)):
                continue
            relative = Path(name) / file.relative_to(root)
            try:
                text = file.read_text("utf-8")
            except UnicodeDecodeError:
                continue
            text, found = _without_titles(text, str(relative))
            (into / relative).parent.mkdir(parents=True, exist_ok=True)
            (into / relative).write_text(text, "utf-8")
            queries += found
    return _sample(queries, count, seed)


def _without_titles(text: str, path: str) -> tuple[str, list[Query]]:
    """Every title replaced by "Section"; queries are those of sections that say enough to be found by."""
    lines = chunking.split_lines(text)
    spans: dict[tuple[str, int], list[chunking.Chunk]] = {}
    for chunk in chunking.chunk_file(path, text).chunks:
        title = chunk.qualname.rpartition(" > ")[2]
        at = next((i for i in (chunk.start - 1, chunk.start) if title and _is_line(lines, i, title)), None)
        key = (chunk.qualname, chunk.start if at is not None else max((k[1] for k in spans), default=0))
        spans.setdefault(key, []).append(chunk)
        if at is not None:
            _rename(lines, at, title)
    queries = []
    for (qualname, _), parts in spans.items():
        title = qualname.rpartition(" > ")[2]
        if (
            len(re.findall(r"[A-Za-z]{2,}", title)) >= WORDS_MIN
            and sum(len(p.text) for p in parts) >= TEXT_MIN
        ):
            queries.append(Query(title, path, parts[0].start, parts[-1].end, title))
    return "\n".join(lines) + "\n", queries


def _is_line(lines: list[str], i: int, title: str) -> bool:
    return i < len(lines) and lines[i].strip(" #") == title


def _rename(lines: list[str], i: int, title: str) -> None:
    lines[i] = lines[i].replace(title, "Section")
    for beside in (i - 1, i + 1):
        mark = lines[beside].strip() if 0 <= beside < len(lines) else ""
        if len(mark) >= 3 and len(set(mark)) == 1 and mark[0] in "=-~^*+#\"'`:.":
            lines[beside] = mark[0] * 7
