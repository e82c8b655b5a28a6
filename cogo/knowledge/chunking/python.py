"""Python by its own parser: functions, methods, and the heads of classes and modules."""

from __future__ import annotations

import ast
import threading
import warnings
from collections.abc import Iterable, Iterator

from .spans import MODULE, Chunk, Owner, own, runs

_QUIET = threading.Lock()


def parse_python(lines: list[str]) -> ast.Module:
    """The syntax tree, without the parser's warnings about other people's string escapes.

    The lock keeps two threads from restoring each other's warning filters.
    Raises SyntaxError, ValueError, RecursionError or MemoryError on what isn't Python.
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse("\n".join(lines) + "\n")


def symbols(lines: list[str]) -> Iterator[Chunk]:
    """Raises as `parse_python`."""
    owners = [MODULE] * len(lines)
    _own(parse_python(lines).body, owners, MODULE)
    return runs(lines, owners)


def _own(body: Iterable[ast.AST], owners: list[Owner], parent: Owner) -> None:
    """Write each definition's owner over its lines; compound statements (if, try) are looked into."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            owner = parent.member("class" if isinstance(node, ast.ClassDef) else "function", node.name)
            own(owners, owner, first - 1, (node.end_lineno or first) - 1)
            if isinstance(node, ast.ClassDef):
                _own(node.body, owners, owner)
        elif isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            _own((n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.expr)), owners, parent)
