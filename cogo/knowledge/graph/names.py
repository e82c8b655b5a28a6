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
    """Names and what they mean, as far as they are known.

    Without a store all of them are added first. With one, `resolve` says by `is_lacking` that its answer needs names that
    nobody looked up yet: they are in `wanted` and `wanted_tails`, and the question is asked again when they are there.
    """

    def __init__(self, *, has_store: bool = False) -> None:
        self.nodes: dict[str, list[Known]] = {}
        self.modules: dict[str, list[ModuleAt]] = {}
        self.aliases: dict[str, tuple[str, str]] = {}
        """Name -> the path where it stands, what it is there."""
        self.stars: dict[str, list[tuple[tuple[str, int], str]]] = {}
        """Module -> where each of its star imports stands, and of what module."""
        self.bases: dict[str, dict[tuple[str, int], str]] = {}
        """Class -> where each of its bases stands, and the name of that one's definition."""
        self.wanted = set[str]()
        self.wanted_tails = set[str]()
        self.is_lacking = False
        self._has_store = has_store
        self._asked = set[str]()
        self._ids = set[int]()
        self._found: dict[str, str | None] = {}
        self._open: set[str] = set()
        self._cut = False
        self._by_tail: dict[str, list[str]] | None = None

    # -- what there is ----------------------------------------------------------------------------

    def add_file(self, id: int, path: str, module: Module) -> None:
        """`id` is the node of the module."""
        self.add_module(module.name, ModuleAt(id, path, module.source, module.packaged))
        for name in module.other_names:
            self.add_module(name, ModuleAt(id, path, module.source, sure=False))

    def add_module(self, name: str, module: ModuleAt) -> None:
        there = self.modules.setdefault(name, [])
        if module not in there:
            there.append(module)

    def add_node(self, qualname: str, known: Known) -> bool:
        """Whether it is new."""
        if known.id in self._ids:
            return False
        self._ids.add(known.id)
        self.nodes.setdefault(qualname, []).append(known)
        self._by_tail = None
        return True

    def add_alias(self, name: str, target: str, path: str, place: int) -> None:
        """Of two aliases the first in the first file counts, of two star imports the last."""
        if name.endswith(".*"):
            there = self.stars.setdefault(name[:-2], [])
            there.append(((path, place), target[:-2]))
            there.sort(reverse=True)
        elif name not in self.aliases or path < self.aliases[name][0]:
            self.aliases[name] = path, target

    def set_base(self, heir: str, place: tuple[str, int], base: str | None) -> bool:
        """What the base class at this place is; whether that is news."""
        there = self.bases.setdefault(heir, {})
        if there.get(place) == base:
            return False
        if base is None:
            del there[place]
        else:
            there[place] = base
        return True

    def forget(self) -> None:
        """Answers so far, since something was changed."""
        self._found.clear()

    # -- what is lacking --------------------------------------------------------------------------

    def take_wanted(self) -> tuple[list[str], list[str]]:
        """Names and tails that are to be looked up now: once, there or not."""
        names, tails = sorted(self.wanted), sorted(self.wanted_tails)
        self._asked |= self.wanted
        self._asked |= {UNKNOWN + tail for tail in self.wanted_tails}
        self.wanted, self.wanted_tails = set(), set()
        return names, tails

    def _need(self, name: str) -> None:
        if self._has_store and name not in self._asked:
            self.wanted.add(name)
            self.is_lacking = True

    # -- what is meant ----------------------------------------------------------------------------

    def resolve(self, reference: Reference, origin: Origin) -> Meant | None:
        """The node that is meant and how sure that is; None when it isn't in the repository, or may be several."""
        self.is_lacking = False
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
            self._need(name)
            if there := self.modules.get(name):
                best = min(there, key=lambda at: (not at.sure, at.source != origin.source, at.path))
                return best.id, "exact" if best.sure and origin.packaged else "bound"
        return None

    def find(self, name: str) -> str | None:
        """The name under which it is defined: a key of `nodes`."""
        self._need(name)
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
        if not self.is_lacking and (found is not None or not self._cut or not self._open):
            self._found[name] = found
        return found

    def _look(self, name: str) -> str | None:
        if name in self.aliases:
            return self.find(self.aliases[name][1])
        owner, _, tail = name.rpartition(".")
        if not owner:
            return None
        if owner.endswith("." + SUPER):
            heir = self.find(owner[: -len(SUPER) - 1])
            return self._inherited(heir, tail) if heir else None
        self._need(owner)
        for _, module in self.stars.get(owner, ()):
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
        waiting, seen = self._bases(heir)[::-1], {heir}
        while waiting:
            base = waiting.pop()
            if base in seen:
                continue
            seen.add(base)
            self._need(base)
            self._need(f"{base}.{tail}")
            if f"{base}.{tail}" in self.nodes:
                return f"{base}.{tail}"
            waiting += self._bases(base)[::-1]
        return None

    def _bases(self, heir: str) -> list[str]:
        there = self.bases.get(heir)
        return [there[place] for place in sorted(there)] if there else []

    def _mentioned(self, mention: str) -> str | None:
        """What a document names by the end of its name, if one thing alone ends so."""
        self._need(mention)
        if mention in self.nodes:
            return mention
        tail = mention.rpartition(".")[2]
        if self._has_store and UNKNOWN + tail not in self._asked:
            self.wanted_tails.add(tail)
            self.is_lacking = True
        if self._by_tail is None:
            by_tail = defaultdict[str, list[str]](list)
            for name, known in self.nodes.items():
                if known[0].kind != "section":
                    by_tail[name.rpartition(".")[2]].append(name)
            self._by_tail = by_tail
        ending = f".{mention}"
        found = [n for n in self._by_tail.get(tail, ()) if n.endswith(ending)]
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
