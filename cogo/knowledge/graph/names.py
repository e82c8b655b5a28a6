"""What names mean in a whole repository: through re-exports, star imports and base classes to what is defined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from .facts import SUPER, UNKNOWN, Module, Reference

Confidence = Literal["exact", "bound", "guess"]
DEPTH_MAX: Final = 60
"""Steps from a name to what it means; longer chains are taken for loops."""


class Known(msgspec.Struct, frozen=True, gc=False):
    """A node as names are resolved to it."""

    id: int
    kind: str
    line: int
    path: str
    source: str
    is_test: bool


class ModuleAt(msgspec.Struct, frozen=True, gc=False):
    """A module under one of its names; `sure` when it is imported by that name."""

    id: int
    path: str
    source: str
    sure: bool


class Origin(msgspec.Struct, frozen=True, gc=False):
    """The file that refers: of two things with one name, its own package's is meant."""

    path: str
    source: str
    packaged: bool
    is_test: bool


Meant = tuple[int, Confidence]


class Names:
    """The names of a repository. Add everything first, then resolve: answers are remembered."""

    def __init__(self) -> None:
        self.nodes: dict[str, list[Known]] = {}
        self.modules: dict[str, list[ModuleAt]] = {}
        self.aliases: dict[str, str] = {}
        self.stars: dict[str, list[str]] = {}
        self.bases: dict[str, list[str]] = {}
        """Class -> what it inherits from, in order, by the names of their definitions."""
        self._found: dict[str, str | None] = {}
        self._open: set[str] = set()
        self._cut = False
        self._by_tail: dict[str, list[str]] | None = None

    # -- what there is ----------------------------------------------------------------------------

    def add_file(self, id: int, path: str, module: Module) -> None:
        """`id` is the node of the module."""
        self.modules.setdefault(module.name, []).append(ModuleAt(id, path, module.source, module.packaged))
        for name in module.other_names:
            self.modules.setdefault(name, []).append(ModuleAt(id, path, module.source, sure=False))

    def add_node(self, qualname: str, known: Known) -> None:
        self.nodes.setdefault(qualname, []).append(known)

    def add_alias(self, name: str, target: str) -> None:
        if name.endswith(".*"):
            self.stars.setdefault(name[:-2], []).append(target[:-2])
        else:
            self.aliases.setdefault(name, target)

    def forget(self) -> None:
        """Answers so far, since something was added."""
        self._found.clear()
        self._by_tail = None

    # -- what is meant ----------------------------------------------------------------------------

    def resolve(self, reference: Reference, origin: Origin) -> Meant | None:
        """The node that is meant and how sure that is; None when it isn't in the repository, or may be several."""
        if reference.kind == "imports":
            return self._module(reference.names, origin)
        name = reference.names[0]
        if name.startswith(UNKNOWN):
            return None
        found = self._mentioned(name) if reference.kind == "documents" else self.find(name)
        if found is None:
            return None
        known = _own(self.nodes[found], origin)
        if reference.kind == "inherits" and known.kind != "class":
            return None
        if reference.kind == "tests" and known.is_test:
            return None
        return known.id, "bound"

    def _module(self, names: Sequence[str], origin: Origin) -> Meant | None:
        """The first of the names that is a module; where several have it, the one of the importer's own folder."""
        for name in names:
            if there := self.modules.get(name):
                best = min(there, key=lambda at: (not at.sure, at.source != origin.source, at.path))
                return best.id, "exact" if best.sure and origin.packaged else "bound"
        return None

    def find(self, name: str) -> str | None:
        """The name under which it is defined: a key of `nodes`."""
        if name in self.nodes:
            return name
        if name in self._found:
            return self._found[name]
        if name in self._open or len(self._open) > DEPTH_MAX:
            self._cut = True  # what is found out below here may be wrong for want of this
            return None
        if not self._open:
            self._cut = False
        self._open.add(name)
        found = self._look(name)
        self._open.discard(name)
        if found is not None or not self._cut or not self._open:
            self._found[name] = found
        return found

    def _look(self, name: str) -> str | None:
        if name in self.aliases:
            return self.find(self.aliases[name])
        owner, _, tail = name.rpartition(".")
        if not owner:
            return None
        if owner.endswith("." + SUPER):
            heir = self.find(owner[: -len(SUPER) - 1])
            return self._inherited(heir, tail) if heir else None
        for module in self.stars.get(owner, ()):
            if found := self.find(f"{module}.{tail}"):
                return found
        place = self.find(owner)
        if place is None:
            return None
        if place != owner:
            return self.find(f"{place}.{tail}")
        return self._inherited(owner, tail)

    def _inherited(self, heir: str, tail: str) -> str | None:
        """What a class has from its bases: depth first, which is Python's order unless they meet again."""
        waiting, seen = list(reversed(self.bases.get(heir, ()))), {heir}
        while waiting:
            base = waiting.pop()
            if base in seen:
                continue
            seen.add(base)
            if f"{base}.{tail}" in self.nodes:
                return f"{base}.{tail}"
            waiting += reversed(self.bases.get(base, ()))
        return None

    def _mentioned(self, mention: str) -> str | None:
        """What a document names by the end of its name, if one thing alone ends so."""
        if mention in self.nodes:
            return mention
        if self._by_tail is None:
            by_tail = defaultdict[str, list[str]](list)
            for name, known in self.nodes.items():
                if known[0].kind != "section":
                    by_tail[name.rpartition(".")[2]].append(name)
            self._by_tail = by_tail
        ending = f".{mention}"
        found = [n for n in self._by_tail.get(mention.rpartition(".")[2], ()) if n.endswith(ending)]
        return found[0] if len(found) == 1 else None


def _own(there: list[Known], origin: Origin) -> Known:
    if len(there) == 1:
        return there[0]

    def distance(known: Known) -> tuple[bool, bool, str, int]:
        return known.path != origin.path, known.source != origin.source, known.path, known.line

    return min(there, key=distance)


def tail(name: str) -> str:
    """The last word of a name, of a module for all that it re-exports (`pkg.*` -> `pkg`)."""
    return name.removesuffix(".*").rpartition(".")[2]


def spread(words: set[str], aliases: Iterable[tuple[str, str]]) -> set[str]:
    """The words by which the same things are known elsewhere, too: `import a as b` makes b of a."""
    known = [(tail(name), frozenset(target.split("."))) for name, target in aliases]
    while True:
        more = {name for name, target in known if name not in words and not words.isdisjoint(target)}
        if not more:
            return words
        words = words | more
