"""Where a symbol's signature stands in its lines, and where what is said of it begins."""

from __future__ import annotations

import re

SIGNATURE_LINES = 30
_DEF = re.compile(r"\s*(async\s+def|def|class)\b")
# Lines above a definition: comments, annotations, attributes.
_COMMENT = re.compile(r"\s*(//|/\*|\*|--)")
_ANNOTATION = re.compile(r"\s*(#!?\[|@(?!interface\b))")
_SQL_END = re.compile(r"\b(AS|RETURNS|LANGUAGE|BEGIN|IS)\b|;", re.IGNORECASE)
_TEXT = re.compile(r"[^\W_]")
Lines = tuple[int, int]
"""From 0, the end exclusive."""


def signature(lines: list[str], lang: str, qualname: str) -> Lines | None:
    """The lines of the head: `def …:`, or up to the brace or the semicolon; None if the span begins elsewhere."""
    if lang == "python":
        return _python(lines)
    start = _first_of_code(lines)
    name = qualname.rpartition(".")[2]
    if start is None or not name:
        return None
    depth = 0
    for i in range(start, min(start + SIGNATURE_LINES, len(lines))):
        code = lines[i].split(" //")[0]
        if lang == "sql":
            depth += code.count("(") - code.count(")")
            ends = depth <= 0 and (")" in code or _SQL_END.search(code) is not None)
        else:
            depth += sum(map(code.count, "([")) - sum(map(code.count, ")]"))
            ends = depth <= 0 and (code.rstrip().endswith(("{", ";", "=>", "}", ",")) or "{" in code)
        if ends:
            return (start, i + 1) if _names(lines[start : i + 1], name) else None
    return (start, start + 1) if _names(lines[start : start + 1], name) else None


def doc(lines: list[str], head: Lines | None) -> int | None:
    """The first line of the comment above a head that has words."""
    above = range(head[0]) if head is not None else range(0)
    return next((i for i in above if _COMMENT.match(lines[i]) and _TEXT.search(lines[i])), None)


def _python(lines: list[str]) -> Lines | None:
    start = next((i for i, line in enumerate(lines) if _DEF.match(line)), None)
    if start is None or not (start == 0 or lines[0].lstrip().startswith("@")):
        return None
    depth = 0
    for i in range(start, min(start + SIGNATURE_LINES, len(lines))):
        code = lines[i].split(" #")[0]
        depth += sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))
        if depth <= 0 and ":" in code:
            return start, i + 1
    return start, start + 1


def _names(head: list[str], name: str) -> bool:
    return name == "default" or any(name in line for line in head)


def _first_of_code(lines: list[str]) -> int | None:
    """Past comments, and past annotations with what they enclose."""
    in_comment, depth = False, 0
    for i, line in enumerate(lines):
        if in_comment or (depth <= 0 and line.lstrip().startswith("/*")):
            in_comment = "*/" not in line
            # An annotation or the code itself may follow on the comment's line.
            if in_comment or not line.rpartition("*/")[2].strip():
                continue
        elif depth <= 0 and (not line.strip() or _COMMENT.match(line)):
            continue
        if depth > 0 or _ANNOTATION.match(line):
            depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
            if depth > 0 or _only_annotation(line):
                continue
        return i
    return None


def _only_annotation(line: str) -> bool:
    """`@Override` and `})`, but not `@Input() name = …`."""
    bare = re.sub(r"\([^()]*\)", "", line).strip()
    return re.fullmatch(r"#!?\[.*\]|(@[\w.]+\s*)+|[\])}@\w.,;\s]*[\])}]", bare) is not None
