"""Syntax trees of many languages, by tree-sitter: one wheel per grammar, imported when it is first needed.

Trees are made of bytes and never fail: what can't be parsed is an ERROR node between what can. Parsers are
kept per thread, since one parser can do one parse at a time.
"""

from __future__ import annotations

import importlib
import operator
import re
import threading
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Language, Node, Query, Tree

# Language -> module of the wheel, function in it.
_GRAMMARS = {
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "java": ("tree_sitter_java", "language"),
    "sql": ("tree_sitter_sql", "language"),
    "markdown": ("tree_sitter_markdown", "language"),
}
_parsers = threading.local()
UNCLOSED_MAX = 3_000
"""Angle brackets that are opened and not closed. At the end of the text the parser's search for a way out takes
a time that grows with the square of that: minutes for 25,000 of them."""
DEPTH_MAX = 2_000
"""Nodes around what a query looks at. Below 65,535 of them, which 160 kB of `.a()` make, a query never returns."""
_START = operator.attrgetter("start_byte")
_ARROW = re.compile(b"[-=]>")
_NO_BRACKETS = frozenset({"python", "sql", "markdown"})


class TooDeepError(Exception):
    """Parsing this would take too long."""


def known(language: str) -> bool:
    """Whether there is a grammar."""
    return language in _GRAMMARS


@lru_cache
def grammar(language: str) -> Language:
    """Raises KeyError for a language without a grammar."""
    from tree_sitter import Language

    module, function = _GRAMMARS[language]
    return Language(getattr(importlib.import_module(module), function)())


@lru_cache
def query(language: str, source: str) -> Query:
    """A compiled query: patterns of nodes whose parts have names."""
    from tree_sitter import Query

    return Query(grammar(language), source)


def parse(language: str, text: bytes) -> Tree:
    """The tree of a text, in UTF-8. Raises TooDeepError."""
    from tree_sitter import Parser

    if language not in _NO_BRACKETS:
        unclosed = text.count(b"<") - text.count(b">") + len(_ARROW.findall(text))
        if unclosed > UNCLOSED_MAX:
            raise TooDeepError(f"more than {UNCLOSED_MAX} unclosed <")
    parser: Parser | None = getattr(_parsers, language, None)
    if parser is None:
        parser = Parser(grammar(language))
        setattr(_parsers, language, parser)
    return parser.parse(text)


def captures(query: Query, node: Node) -> dict[str, list[Node]]:
    """The named parts of all matches below a node, by name, in the order of the text; not those too deep to be meant."""
    from tree_sitter import QueryCursor

    cursor = QueryCursor(query)
    cursor.set_max_start_depth(DEPTH_MAX)
    # The driver collects them in sets.
    return {name: sorted(nodes, key=_START) for name, nodes in cursor.captures(node).items()}
