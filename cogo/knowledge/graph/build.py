"""The graph of a repository made to say what its files say now, in one transaction.

A file's rows are replaced; a node that is still there keeps its id, so that edges into it stay. Names that came,
went, or mean something else are looked up again wherever they are used, in whatever file.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from . import queries as sql
from . import read
from .facts import Facts
from .resolve import File, Old, Resolving

if TYPE_CHECKING:
    from cogo import Database

    from ..index import Repo


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
        wanted, gone = await anyio.to_thread.run_sync(read.compare, root, known, paths)
        found = await read.read(root, wanted)
        notes = {each.facts.path: each.facts.note for each in found if each.facts.note}
        built = Built(len(found), len(gone), notes)
        if not found and not gone:
            return built
        by_path = {row["path"]: row["id"] for row in rows}
        removed = [by_path[path] for path in gone]
        old = await _said(
            conn, [*removed, *(by_path[f.facts.path] for f in found if f.facts.path in by_path)]
        )
        ids = await _write_files(conn, repo, found, removed)
        files = await _keep_ids(conn, old, ids)
        work = Resolving(conn, repo.id, files, old, is_first=not rows)
        await work.run()
        await _write(conn, repo, *await anyio.to_thread.run_sync(_rows, files, work))
    return built


async def _said(conn: Any, files: Sequence[int]) -> Old:
    """What these files say until now."""
    old = Old([], [], defaultdict(list))
    if files:
        old.nodes = await (await conn.execute(sql.NODES_OF, (list(files),))).fetchall()
        old.aliases = await (await conn.execute(sql.ALIASES_OF, (list(files),))).fetchall()
        for row in await (await conn.execute(sql.BASES_OF, (list(files),))).fetchall():
            old.bases[row["src"]].append(row["dst"])
    return old


async def _write_files(
    conn: Any, repo: Repo, found: Sequence[read.Changed], gone: Sequence[int]
) -> list[tuple[int, Facts]]:
    """Rows of the changed files, emptied; those that are gone go."""
    facts = [each.facts for each in found]
    columns = {
        "repo": repo.id, "gone": list(gone), "paths": [f.path for f in facts],
        "digests": [each.digest for each in found], "modules": [f.module.name for f in facts],
        "packaged": [f.module.packaged for f in facts], "sources": [f.module.source for f in facts],
        "notes": [f.note for f in facts], "langs": [f.language for f in facts],
        "tests": [f.is_test for f in facts], "words": [each.words for each in found],
    }  # fmt: skip
    rows = await (await conn.execute(sql.PUT_FILES, columns)).fetchall()
    ids = {row["path"]: row["id"] for row in rows}
    for statement in sql.EMPTY_FILES:
        await conn.execute(statement, ([*ids.values(), *gone],))
    await conn.execute(sql.DELETE_FILES, (list(gone),))
    return [(ids[f.path], f) for f in facts]


async def _keep_ids(conn: Any, old: Old, files: Sequence[tuple[int, Facts]]) -> list[File]:
    """The files with ids of their nodes: the old one for what has the same kind and name, in order, else a new one."""
    free = defaultdict[tuple[int, str, str], deque[int]](deque)
    for row in old.nodes:
        free[row["file_id"], row["kind"], row["qualname"]].append(row["id"])
    kept = list[list[int]]()
    for file, facts in files:
        known = [free.get((file, node.kind, node.qualname)) for node in facts.nodes]
        kept.append([ids.popleft() if ids else 0 for ids in known])
    wanted = sum(ids.count(0) for ids in kept)
    fresh = iter(await (await conn.execute(sql.NODE_IDS, (wanted,))).fetchall())
    return [
        File(file, facts, [id or next(fresh)["id"] for id in ids])
        for (file, facts), ids in zip(files, kept, strict=True)
    ]


def _rows(files: Sequence[File], work: Resolving) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """What is to be written: nodes, edges, aliases, and (edge, dst, confidence) of edges that mean another node."""
    nodes, edges, aliases = list[Any](), list[Any](), list[Any]()
    for file, asked in zip(files, work.own, strict=True):
        facts = file.facts
        for id, node in zip(file.nodes, facts.nodes, strict=True):
            nodes.append((id, file.id, node.kind, node.qualname, node.start, node.end))
            if node.parent is not None:
                name = _array((node.qualname,))
                edges.append((file.id, file.nodes[node.parent], "defines", name, node.start, "exact", id))
        for each in asked:
            said = each.reference
            dst, confidence = each.meant or NOTHING
            edges.append((file.id, each.src, said.kind, _array(said.names), said.line, confidence, dst))
        aliases += [(file.id, "import", name, target) for name, target in facts.aliases]
        aliases += [(file.id, "path", name, facts.module.name) for name in facts.module.other_names]
    updates = [
        (id, *(each.meant or NOTHING)) for id, each in work.affected.items() if each.meant != each.before
    ]
    return nodes, edges, aliases, updates


def _array(names: Sequence[str]) -> str:
    """As Postgres writes it: the driver's own way costs more than the rest of the row."""
    quoted = (name.replace("\\", "\\\\").replace('"', '\\"') for name in names)
    return '{"' + '","'.join(quoted) + '"}'


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
