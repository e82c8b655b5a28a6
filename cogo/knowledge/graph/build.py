"""The graph of a repository made to say what its files say now, in one transaction.

A file's rows are replaced; a node that is still there keeps its id, so that edges into it stay. Names that came,
went, or mean something else are looked up again wherever they are used, in whatever file.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from . import queries as sql
from . import read
from .facts import Facts, Module, Reference
from .names import Known, Meant, Names, Origin, spread, tail

if TYPE_CHECKING:
    from cogo import Database

    from ..index import Repo


LIKE_MAX: Final = 40
"""Words that are looked for one by one."""
NOTHING: Final = (None, "exact")
"""What a name means that is not in the repository."""


class Built(msgspec.Struct):
    """What a build changed. `notes` name files that could not be read whole."""

    changed: int = 0
    removed: int = 0
    notes: dict[str, str] = {}


async def build(db: Database, repo: Repo, root: Path, paths: Sequence[str] | None = None) -> Built:
    """Read what changed below the root (of `paths`, if given) and write it. Readers see the old graph or the new."""
    async with db.transaction() as conn:
        await conn.execute(sql.LOCK_REPO, (repo.id,))
        rows = await (await conn.execute(sql.DIGESTS, (repo.id,))).fetchall()
        known = {row["path"]: bytes(row["digest"]) for row in rows}
        found, gone = await anyio.to_thread.run_sync(read.changed, root, known, paths)
        notes = {each.facts.path: each.facts.note for each in found if each.facts.note}
        built = Built(len(found), len(gone), notes)
        if not found and not gone:
            return built
        old = await _stored(conn, repo)
        files = await _write_files(
            conn, repo, found, [old.by_path[path] for path in gone if path in old.by_path]
        )
        nodes = await _keep_ids(conn, old, files)
        work = await anyio.to_thread.run_sync(partial(_Resolving, old, files, nodes, gone))
        affected = await _affected(conn, repo, work)
        await _write(conn, repo, *await anyio.to_thread.run_sync(work.rows, affected))
    return built


class _File(msgspec.Struct, frozen=True):
    """A file that is (re)written: its id and facts, and the ids of its nodes."""

    id: int
    facts: Facts

    @property
    def origin(self) -> Origin:
        module = self.facts.module
        return Origin(self.facts.path, module.source, module.packaged, self.facts.is_test)


class _Stored(msgspec.Struct):
    """What the graph says so far, by ids of files: nodes as (id, kind, qualname, line), aliases as (name, target)."""

    files: dict[int, dict[str, Any]]
    nodes: dict[int, list[tuple[int, str, str, int]]]
    aliases: dict[int, list[tuple[str, str]]]
    inherits: list[tuple[int, int, int, str, int | None]]
    """(edge, file, src, name, dst)"""

    @property
    def by_path(self) -> dict[str, int]:
        return {row["path"]: id for id, row in self.files.items()}


async def _stored(conn: Any, repo: Repo) -> _Stored:
    files = {row["id"]: row for row in await (await conn.execute(sql.FILES, {"repo": repo.id})).fetchall()}
    stored = _Stored(files, defaultdict(list), defaultdict(list), [])
    if not files:
        return stored
    for file, id, line, kind, name in await _records(conn, sql.NODES, repo):
        stored.nodes[int(file)].append((int(id), kind, name, int(line)))
    for file, name, target in await _records(conn, sql.ALIASES, repo):
        stored.aliases[int(file)].append((name, target))
    inherits = await (await conn.execute(sql.INHERITS, (repo.id,))).fetchall()
    stored.inherits = [tuple(row.values()) for row in inherits]
    return stored


async def _records(conn: Any, statement: str, repo: Repo) -> Iterator[list[str]]:
    (text,) = (await (await conn.execute(statement, (repo.id,))).fetchone()).values()
    return (record.split("\x1f") for record in (text or "").split("\x1e") if record)


async def _write_files(
    conn: Any, repo: Repo, found: Sequence[read.Changed], gone: Sequence[int]
) -> list[_File]:
    """Rows of the changed files, emptied; those that are gone go."""
    facts = [each.facts for each in found]
    columns = {
        "repo": repo.id, "gone": list(gone), "paths": [f.path for f in facts],
        "digests": [each.digest for each in found], "modules": [f.module.name for f in facts],
        "packaged": [f.module.packaged for f in facts], "sources": [f.module.source for f in facts],
        "notes": [f.note for f in facts], "langs": [f.language for f in facts],
        "tests": [f.is_test for f in facts],
    }  # fmt: skip
    rows = await (await conn.execute(sql.PUT_FILES, columns)).fetchall()
    ids = {row["path"]: row["id"] for row in rows}
    for statement in sql.EMPTY_FILES:
        await conn.execute(statement, ([*ids.values(), *gone],))
    await conn.execute(sql.DELETE_FILES, (list(gone),))
    return [_File(ids[f.path], f) for f in facts]


async def _keep_ids(conn: Any, old: _Stored, files: Sequence[_File]) -> dict[int, list[int]]:
    """Per file the ids of its nodes: the old one for what has the same kind and name, in order, else a new one."""
    free = {file.id: defaultdict[tuple[str, str], deque[int]](deque) for file in files}
    for file in files:
        for id, kind, name, _ in old.nodes.get(file.id, ()):
            free[file.id][kind, name].append(id)
    ids: dict[int, list[int]] = {}
    wanted = 0
    for file in files:
        own = ids[file.id] = []
        for node in file.facts.nodes:
            known = free[file.id][node.kind, node.qualname]
            own.append(known.popleft() if known else 0)
        wanted += own.count(0)
    rows = await (await conn.execute(sql.NODE_IDS, (wanted,))).fetchall()
    fresh = (row["id"] for row in rows)
    return {file: [id or next(fresh) for id in own] for file, own in ids.items()}


async def _affected(conn: Any, repo: Repo, work: _Resolving) -> list[dict[str, Any]]:
    """Edges of files that did not change, whose names may mean something else now."""
    if not work.words:
        return []
    words = sorted(work.words)
    like = [f"%{word}%" for word in words] if len(words) <= LIKE_MAX else ["%"]
    params = {"repo": repo.id, "words": words, "like": like, "but": work.rewritten}
    rows: list[dict[str, Any]] = await (await conn.execute(sql.USES, params)).fetchall()
    return rows


class _Resolving:
    """All names, of the files that stay and of those that are written, and the edges that follow."""

    def __init__(
        self, old: _Stored, files: Sequence[_File], nodes: dict[int, list[int]], gone: Sequence[str]
    ) -> None:
        self.files, self.nodes, self.names = files, nodes, Names()
        self.rewritten = [file.id for file in files]
        removed = {old.by_path[path] for path in gone if path in old.by_path}
        staying = old.files.keys() - set(self.rewritten) - removed
        self.origins = {id: _origin(old.files[id]) for id in staying}
        self.class_of: dict[int, str] = {}
        for id in staying:
            self._add_stored(old, id)
        for file in files:
            self._add(file)
        aliases = [pair for id in staying for pair in old.aliases.get(id, ())]
        aliases += [pair for file in files for pair in file.facts.aliases]
        words = spread(self._changed_words(old, removed), aliases) if staying else set()
        self.updates: list[tuple[int, int | None, str]] = []
        self.words = self._inherit(old, staying, words)

    def _add_stored(self, old: _Stored, file: int) -> None:
        row, origin = old.files[file], self.origins[file]
        for id, kind, name, line in old.nodes[file]:
            self.names.add_node(name, Known(id, kind, line, origin.path, origin.source, origin.is_test))
            if kind == "class":
                self.class_of[id] = name
            elif kind in ("package", "module"):
                others = tuple(row["other_names"] or ())
                self.names.add_file(
                    id, origin.path, Module(name, origin.packaged, False, origin.source, others)
                )
        for name, target in old.aliases.get(file, ()):
            self.names.add_alias(name, target)

    def _add(self, file: _File) -> None:
        origin = file.origin
        for id, node in zip(self.nodes[file.id], file.facts.nodes, strict=True):
            known = Known(id, node.kind, node.start, origin.path, origin.source, origin.is_test)
            self.names.add_node(node.qualname, known)
            if node.kind == "class":
                self.class_of[id] = node.qualname
            elif node.kind in ("package", "module"):
                self.names.add_file(id, origin.path, file.facts.module)
        for name, target in file.facts.aliases:
            self.names.add_alias(name, target)

    def _changed_words(self, old: _Stored, removed: set[int]) -> set[str]:
        """The last words of names that came or went, or stand for something else."""
        before, after = set[tuple[str, ...]](), set[tuple[str, ...]]()
        for id in [*self.rewritten, *removed]:
            before |= {(kind, name) for _, kind, name, _ in old.nodes.get(id, ())}
            before |= set(old.aliases.get(id, ()))
            if id in old.files:
                before |= {("also", name) for name in old.files[id]["other_names"] or ()}
        for file in self.files:
            after |= {(node.kind, node.qualname) for node in file.facts.nodes}
            after |= set(file.facts.aliases)
            after |= {("also", name) for name in file.facts.module.other_names}
        kinds = {"package", "module", "class", "function", "section", "also"}
        return {tail(pair[1] if pair[0] in kinds else pair[0]) for pair in before ^ after}

    def _inherit(self, old: _Stored, staying: set[int], words: set[str]) -> set[str]:
        """Resolve base classes first, since methods are found through them; more words, of classes whose bases changed."""
        before, now = dict[str, list[str]](), self.names.bases
        name_of = {id: name for nodes in old.nodes.values() for id, _, name, _ in nodes}
        waiting: list[tuple[int, str, Reference, Origin, int | None]] = []
        for edge, place, src, name, dst in old.inherits:
            if dst in name_of and src in name_of:
                before.setdefault(name_of[src], []).append(name_of[dst])
            if place in staying:
                waiting.append(
                    (edge, name_of[src], Reference(0, "inherits", (name,), 0), self.origins[place], dst)
                )
        for file in self.files:
            bases = [each for each in file.facts.references if each.kind == "inherits"]
            waiting += [(0, file.facts.nodes[each.src].qualname, each, file.origin, None) for each in bases]
        for edge, heir, reference, origin, dst in waiting:
            meant = self.names.resolve(reference, origin)
            if meant is not None and self.class_of[meant[0]] != heir:
                now.setdefault(heir, []).append(self.class_of[meant[0]])
            if edge and (meant and meant[0]) != dst:
                self.updates.append((edge, *(meant or NOTHING)))
        self.names.forget()
        if not staying:
            return set()
        other = {heir for heir in before.keys() | now.keys() if before.get(heir) != now.get(heir)}
        while more := {
            heir for heir, bases in now.items() if heir not in other and not other.isdisjoint(bases)
        }:
            other |= more
        return words | {tail(heir) for heir in other}

    def rows(self, affected: Iterable[dict[str, Any]]) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """What is to be written: nodes, edges, aliases, and (edge, dst, confidence) of edges that mean another node."""
        for row in affected:
            reference = Reference(0, row["kind"], tuple(row["names"]), 0)
            meant = self._meant(reference, self.origins[row["file_id"]], row["src"])
            dst, confidence = meant or NOTHING
            if (dst, confidence) != (row["dst"], row["confidence"]):
                self.updates.append((row["id"], dst, confidence))
        nodes, edges, aliases = list[Any](), list[Any](), list[Any]()
        for file in self.files:
            own, facts, origin = self.nodes[file.id], file.facts, file.origin
            for id, node in zip(own, facts.nodes, strict=True):
                nodes.append((id, file.id, node.kind, node.qualname, node.start, node.end))
                if node.parent is not None:
                    edges.append(
                        (
                            file.id,
                            own[node.parent],
                            "defines",
                            _array((node.qualname,)),
                            node.start,
                            "exact",
                            id,
                        )
                    )
            for each in facts.references:
                src = own[each.src]
                dst, confidence = self._meant(each, origin, src) or NOTHING
                edges.append((file.id, src, each.kind, _array(each.names), each.line, confidence, dst))
            aliases += [(file.id, "import", name, target) for name, target in facts.aliases]
            aliases += [(file.id, "path", name, facts.module.name) for name in facts.module.other_names]
        return nodes, edges, aliases, self.updates

    def _meant(self, reference: Reference, origin: Origin, src: int) -> Meant | None:
        meant = self.names.resolve(reference, origin)
        # A function that calls itself does; a module that imports itself or a class that inherits itself is a slip.
        if meant is None or (meant[0] == src and reference.kind == "inherits"):
            return None
        return meant


def _array(names: Sequence[str]) -> str:
    """As Postgres writes it: the driver's own way costs more than the rest of the row."""
    quoted = (name.replace("\\", "\\\\").replace('"', '\\"') for name in names)
    return '{"' + '","'.join(quoted) + '"}'


def _origin(row: dict[str, Any]) -> Origin:
    return Origin(row["path"], row["source"], row["packaged"], row["is_test"])


async def _write(
    conn: Any,
    repo: Repo,
    nodes: Sequence[Any],
    edges: Sequence[Any],
    aliases: Sequence[Any],
    updates: Sequence[Any],
) -> None:
    for statement, rows in ((sql.COPY_NODES, nodes), (sql.COPY_EDGES, edges), (sql.COPY_ALIASES, aliases)):
        if rows:
            async with conn.cursor() as cursor, cursor.copy(statement) as copy:
                for row in rows:
                    await copy.write_row((repo.id, *row))
    if updates:
        columns = zip(*updates, strict=True)
        await conn.execute(
            sql.MEAN, dict(zip(("ids", "dsts", "confidences"), map(list, columns), strict=True))
        )
