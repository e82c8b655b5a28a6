"""From a syntax tree to the owners of a file's lines, the same for every grammar.

Only what may hold definitions is looked into, never the body of a function; and nothing here recurses with
the text, so that ten thousand nested brackets are ten thousand turns of a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .spans import Owner, own

if TYPE_CHECKING:
    from tree_sitter import Node

DEPTH_MAX = 20
"""Symbols around a symbol: what lies deeper belongs to the last of them."""
NAME_MAX = 120

# What belongs to the definition below it.
_ABOVE = frozenset({"comment", "line_comment", "block_comment", "marginalia", "decorator", "attribute_item"})


@dataclass(frozen=True)
class Found:
    """A definition, or with an empty kind something that is only looked into."""

    kind: str
    name: str = ""
    inside: tuple[Node, ...] = ()
    """Whose children may be definitions as well."""
    is_signature: bool = False
    """One of several before the body: what follows under the same name is the same symbol."""


Look = Callable[["Node"], Found | None]
"""What a node is; None when nothing in it is of interest."""


def own_tree(root: Node, look: Look, owners: list[Owner]) -> None:
    """Write each definition's owner over its lines, with the comments and attributes directly above it."""
    ahead = [(root, owners[0])] if owners else []
    while ahead:
        parent, owner = ahead.pop()
        # The row where the comments above begin, the one where they bind, and the one that ends what was before.
        first, bound, taken = 0, -1, -1 if parent is root else parent.start_point.row
        before: tuple[Found, Owner] | None = None
        for node in parent.named_children:
            start, end = _rows(node)
            if node.type in _ABOVE:
                if start > taken:
                    first = first if start <= bound else start
                    bound = end + 1 + _is_doc(node)
                continue
            found, inner = look(node), owner
            if found is not None:
                first = first if start <= bound else start
                if found.kind and owner.depth < DEPTH_MAX:
                    inner = owner.member(found.kind, found.name)
                    if before is not None and before[0].is_signature and before[1] == inner:
                        first, inner = taken + 1, before[1]
                    own(owners, inner, first, end)
                ahead.extend((each, inner) for each in found.inside)
            before = None if found is None else (found, inner)
            bound, taken = -1, end


def _is_doc(comment: Node) -> bool:
    """`/** … */` may have a blank line below."""
    return text_of(comment).startswith("/**")


def _rows(node: Node) -> tuple[int, int]:
    """First and last row; a node that takes its line's end along does not reach into the next line."""
    start, end = node.start_point, node.end_point
    return start.row, end.row if end.column or end.row == start.row else end.row - 1


def text_of(node: Node | None) -> str:
    """The node's text on one line, cut to what a name may have."""
    text = node.text if node is not None else None
    return " ".join((text or b"")[: NAME_MAX * 2].decode("utf-8", "ignore").split())[:NAME_MAX]


def field(node: Node, name: str) -> Node | None:
    return node.child_by_field_name(name)


def present(*nodes: Node | None) -> tuple[Node, ...]:
    """Those that are there."""
    return tuple(node for node in nodes if node is not None)
