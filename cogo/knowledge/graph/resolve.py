"""What the references of changed files mean, and those elsewhere whose names mean something else now.

Only names that are asked for are read from the database, in rounds: each round looks up what the last one found lacking,
a step further along re-exports and base classes. So an update costs what it touches, however large the repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import anyio
import msgspec

from . import queries as sql
from .facts import Facts, Reference
from .names import Known, Meant, ModuleAt, Names, Origin, spread, tail

TURNS_MAX: Final = 10
"""Times that base classes are looked up again because others changed; a class that inherits what its heir defines
could go on for ever."""
_KINDS: Final = frozenset({"package", "module", "class", "function", "section", "also"})


class File(msgspec.Struct, frozen=True):
    """A file that is (re)written: its id, its facts, and the ids of its nodes."""

    id: int
    facts: Facts
    nodes: list[int]

    @property
    def origin(self) -> Origin:
        module = self.facts.module
        return Origin(self.facts.path, module.source, module.packaged, self.facts.is_test)


class Old(msgspec.Struct):
    """What files said that are rewritten now, or are gone."""

    nodes: list[dict[str, Any]]
    """`{id, file_id, kind, qualname}`"""
    aliases: list[dict[str, Any]]
    """`{kind, name, target}`"""
    bases: dict[int, list[int]]
    """Class -> its base classes, by ids of nodes."""


class Asked(msgspec.Struct):
    """A reference, from where, and what it means as far as is known. `edge` is its row, if it has one that stays."""

    reference: Reference
    origin: Origin
    src: int
    heir: str = ""
    place: tuple[str, int] = ("", 0)
    """For a base class: whose, and where it stands."""
    edge: int = 0
    before: Meant | None = None
    meant: Meant | None = None


class Resolving:
    """All that a build knows of names. `is_first`: nothing else is in the graph."""

    def __init__(self, conn: Any, repo_id: int, files: Sequence[File], old: Old, *, is_first: bool) -> None:
        self._conn, self._repo, self._files, self._old, self._is_first = conn, repo_id, files, old, is_first
        self._names = Names(has_store=not is_first)
        self.own: list[list[Asked]] = []
        """Per file its references, in their order."""
        self.affected: dict[int, Asked] = {}
        """Those of other files whose names may mean something else, by their edges."""

    async def run(self) -> None:
        """Find out what everything means."""
        await anyio.to_thread.run_sync(self._add_files)
        words = set() if self._is_first else self._changed_words()
        done = set[str]()
        while True:
            if words - done:
                await self._add_affected(words - done)
                done |= words
            bases = [each for each in self._all() if each.reference.kind == "inherits"]
            await self._find_bases(bases)
            words = done | (set() if self._is_first else await self._words_of_heirs(bases))
            if words == done:
                break
        await self._find([each for each in self._all() if each.reference.kind != "inherits"], self._look)

    def _all(self) -> Iterable[Asked]:
        for file in self.own:
            yield from file
        yield from self.affected.values()

    # -- what there is ----------------------------------------------------------------------------

    def _add_files(self) -> None:
        for file in self._files:
            facts, origin = file.facts, file.origin
            for id, node in zip(file.nodes, facts.nodes, strict=True):
                known = Known(id, node.kind, node.start, origin.path, origin.source, origin.is_test)
                self._names.add_node(node.qualname, known)
                if node.kind in ("package", "module"):
                    self._names.add_file(id, origin.path, facts.module)
            for place, (name, target) in enumerate(facts.aliases):
                self._names.add_alias(name, target, origin.path, place)
            own = list[Asked]()
            for place, each in enumerate(facts.references):
                asked = Asked(each, origin, file.nodes[each.src])
                if each.kind == "inherits":
                    asked.heir, asked.place = facts.nodes[each.src].qualname, (origin.path, place)
                own.append(asked)
            self.own.append(own)

    def _changed_words(self) -> set[str]:
        """The last words of names that came or went, or stand for something else."""
        before = {(row["kind"], row["qualname"]) for row in self._old.nodes}
        before |= {
            ("also", row["name"]) if row["kind"] == "path" else (row["name"], row["target"])
            for row in self._old.aliases
        }
        after = set[tuple[str, str]]()
        for file in self._files:
            after |= {(node.kind, node.qualname) for node in file.facts.nodes}
            after |= set(file.facts.aliases)
            after |= {("also", name) for name in file.facts.module.other_names}
        return {tail(pair[1] if pair[0] in _KINDS else pair[0]) for pair in before ^ after}

    # -- who is affected --------------------------------------------------------------------------

    async def _add_affected(self, words: set[str]) -> None:
        """References of files that did not change, with one of these words or another name for it."""
        aliases = [pair for file in self._files for pair in file.facts.aliases]
        rows = await self._fetch(sql.ALIASES, {"repo": self._repo})
        aliases += [(row["name"], row["target"]) for row in rows]
        wanted = sorted(await anyio.to_thread.run_sync(spread, words, aliases))
        but = [file.id for file in self._files]
        params = {"repo": self._repo, "words": wanted, "but": but}
        files = [row["id"] for row in await self._fetch(sql.SAYING, params)]
        for row in await self._fetch(sql.USES, {"files": files, "words": wanted}) if files else ():
            if row["id"] in self.affected:
                continue
            before = None if row["dst"] is None else (row["dst"], row["confidence"])
            self.affected[row["id"]] = Asked(
                Reference(0, row["kind"], tuple(row["names"]), 0),
                Origin(row["path"], row["source"], row["packaged"], row["is_test"]),
                row["src"], row["heir"] or "", (row["path"], row["id"]), row["id"], before, before,
            )  # fmt: skip

    async def _words_of_heirs(self, bases: Sequence[Asked]) -> set[str]:
        """The last words of classes whose base classes changed, and of all that inherit from those."""
        now, names = dict[int, list[int]](), dict[int, str]()
        changed, heirs = set[int](), dict[int, set[int]]()
        for each in bases:
            names[each.src] = each.heir
            if each.meant:
                now.setdefault(each.src, []).append(each.meant[0])
                heirs.setdefault(each.meant[0], set()).add(each.src)
            if each.edge and (each.meant and each.meant[0]) != (each.before and each.before[0]):
                changed.add(each.src)
        rewritten = {each.src for own in self.own for each in own if each.reference.kind == "inherits"}
        changed |= {id for id in rewritten | self._old.bases.keys() if self._old.bases.get(id) != now.get(id)}
        found, ahead = set[int](), changed
        while ahead:
            found |= ahead
            rows = await self._fetch(sql.HEIRS, (list(ahead),))
            names.update({row["id"]: row["qualname"] for row in rows})
            more = {row["id"] for row in rows}.union(*(heirs.get(id, ()) for id in ahead))
            ahead = more - found
        return {tail(names[id]) for id in found if id in names}

    # -- what is meant ----------------------------------------------------------------------------

    async def _find_bases(self, bases: Sequence[Asked]) -> None:
        """Base classes first, since methods are found through them: until none means something else."""
        for _ in range(TURNS_MAX):
            news = await self._find(bases, self._look_for_base)
            self._names.forget()
            if not news:
                break

    async def _find(self, asked: Sequence[Asked], look: Callable[[Asked], bool]) -> bool:
        """Look for all of them, and again for those that lacked something; whether any had news."""
        news = False
        while asked:
            lacking, found = await anyio.to_thread.run_sync(partial(self._try, asked, look))
            news, asked = news or found, lacking
            if asked:
                await self._load()
        return news

    def _try(self, asked: Sequence[Asked], look: Callable[[Asked], bool]) -> tuple[list[Asked], bool]:
        lacking, news = list[Asked](), False
        for each in asked:
            news = look(each) or news
            if self._names.is_lacking:
                lacking.append(each)
        return lacking, news

    def _look(self, each: Asked) -> bool:
        each.meant = self._names.resolve(each.reference, each.origin)
        return False

    def _look_for_base(self, each: Asked) -> bool:
        meant = self._names.resolve(each.reference, each.origin)
        if self._names.is_lacking:
            return False
        if meant is not None and meant[0] == each.src:  # a class that inherits itself is a slip
            meant = None
        each.meant = meant
        base = self._names.find(each.reference.names[0]) if meant else None
        return self._names.set_base(each.heir, each.place, base if base != each.heir else None)

    async def _load(self) -> None:
        """Look up in the database what was lacking."""
        names, tails = self._names.take_wanted()
        classes = dict[int, str]()
        params = {"repo": self._repo, "names": names, "tails": tails}
        for row in await self._fetch(sql.NODES, params):
            known = Known(
                row["id"], row["kind"], row["start_line"], row["path"], row["source"], row["is_test"]
            )
            if self._names.add_node(row["qualname"], known) and row["kind"] == "class":
                classes[row["id"]] = row["qualname"]
            if row["kind"] in ("package", "module"):
                module = ModuleAt(row["id"], row["path"], row["source"], row["packaged"])
                self._names.add_module(row["qualname"], module)
        params = {"repo": self._repo, "names": [*names, *(f"{name}.*" for name in names)]}
        for row in await self._fetch(sql.OTHER_NAMES, params):
            if row["module_id"] is None:
                self._names.add_alias(row["name"], row["target"], row["path"], row["id"])
            else:
                module = ModuleAt(row["module_id"], row["path"], row["source"], sure=False)
                self._names.add_module(row["name"], module)
        if classes:
            for row in await self._fetch(sql.BASES, (list(classes),)):
                if row["edge"] not in self.affected:
                    self._names.set_base(classes[row["src"]], (row["path"], row["edge"]), row["base"])

    async def _fetch(self, statement: str, params: Mapping[str, Any] | Sequence[Any]) -> list[dict[str, Any]]:
        cursor = await self._conn.execute(statement, params)
        found: list[dict[str, Any]] = await cursor.fetchall()
        return found
