"""Nested scopes of a file, and what a name means in one of them: what readers of several languages share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from .facts import Kind, Module, Node

if TYPE_CHECKING:
    from tree_sitter import Node as Tree


class Scope:
    """A module, class or function. `bound` says what its names mean; None is a value that nobody knows."""

    __slots__ = ("bound", "end", "is_class", "node", "owner", "parent", "start")

    def __init__(
        self, start: int, end: int, parent: int, *, is_class: bool, node: int, owner: str | None
    ) -> None:
        self.start, self.end, self.parent, self.is_class = start, end, parent, is_class
        self.node = node
        self.owner = owner
        """The class whose method this is, or lies in."""
        self.bound: dict[str, str | None] = {}


class Scopes:
    """The scopes of a file, the outermost first, and the nodes that some of them are."""

    builtins: Collection[str] = ()
    sees_class_names = False
    """Whether names of a class are seen in its methods."""

    def __init__(self, module: Module, source: bytes) -> None:
        self.module, self.source = module, source
        kind: Kind = "package" if module.is_package else "module"
        lines = source.count(b"\n") + (not source.endswith(b"\n"))
        self.nodes = [Node(kind, module.name, 1, max(1, lines), None)]
        self.scopes = [Scope(0, len(source) + 1, -1, is_class=False, node=0, owner=None)]
        self.has_star = False
        """Whether names may come from a star import."""
        self._starts = [0]
        self._stack = [0]

    def text(self, node: Tree) -> str:
        """What is written there."""
        return self.source[node.start_byte : node.end_byte].decode(errors="replace")

    def open(
        self, tree: Tree, name: str | None, kind: Kind = "function", *, lines: tuple[int, int] | None = None
    ) -> int:
        """The next scope in the order of the text; with a name, a node too. Returns the node's index."""
        start = tree.start_byte
        while self.scopes[self._stack[-1]].end <= start:
            self._stack.pop()
        at = self._stack[-1]
        outer = self.scopes[at]
        node, is_class = outer.node, kind == "class"
        qualname = self.nodes[outer.node].qualname
        owner = qualname if outer.is_class else outer.owner
        if name is not None:
            qualname = f"{qualname}.{name}"
            first, last = lines or (tree.start_point[0] + 1, tree.end_point[0] + 1)
            self.nodes.append(Node(kind, qualname, first, last, outer.node))
            outer.bound[name] = qualname
            node = len(self.nodes) - 1
            owner = qualname if is_class else owner
        self._stack.append(len(self.scopes))
        self.scopes.append(Scope(start, tree.end_byte, at, is_class=is_class, node=node, owner=owner))
        self._starts.append(start)
        return node

    def at(self, position: int) -> int:
        """The innermost scope around a byte."""
        place = bisect_right(self._starts, position) - 1
        while self.scopes[place].end <= position:
            place = self.scopes[place].parent
        return place

    def hide(self, trees: Iterable[Tree]) -> None:
        """Variables: what is bound in their scope already stays, what is bound further out is hidden.

        Most have a name that means nothing anywhere, and need no look at where they stand.
        """
        known = self.words()
        for tree in trees:
            name = self.text(tree)
            if name in known or self.has_star:
                self.scopes[self.at(tree.start_byte)].bound.setdefault(name, None)

    def words(self) -> set[str]:
        """Whatever is bound so far, in any scope."""
        return set().union(*(scope.bound for scope in self.scopes))

    def meaning(self, dotted: str, place: int) -> str | None:
        """The absolute name that a dotted one means in a scope; None for a value that nobody knows.

        An instance of a class is written `pkg.Class()`, so `pkg.Class().run` is what its method is called by.
        """
        root, _, rest = dotted.partition(".")
        here = place
        while place >= 0:
            scope = self.scopes[place]
            if root in scope.bound and (place == here or self.sees_class_names or not scope.is_class):
                meant = scope.bound[root]
                if meant is None:
                    return None
                return f"{meant}.{rest}" if rest else meant
            place = scope.parent
        if self.has_star and root not in self.builtins:
            return f"{self.module.name}.{dotted}"
        return None


def used(meant: str | None) -> str | None:
    """What a meaning refers to: of an instance what is asked of its class, and nothing by itself."""
    return None if meant is None or meant.endswith("()") else meant.replace("().", ".")
