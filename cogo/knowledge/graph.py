"""The graph of a repository's Python code: built in one transaction, then asked.

Modules, classes and functions with their lines; who imports, defines and inherits what. Import edges
between modules of packages are exact: the same as grimp's. Others carry `confidence` bound.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from cogo import errors

from . import facts, scan
from . import graph_queries as sql

if TYPE_CHECKING:
    from cogo import Database

    from .index import Repo

TOP = 10
"""Entries of each list of a report."""


class Built(msgspec.Struct):
    """What a build changed. `notes` name files that could not be read as Python."""

    changed: int = 0
    removed: int = 0
    notes: dict[str, str] = {}


class Report(msgspec.Struct):
    """Sizes of a graph; edges are counted once per pair."""

    files: int
    nodes: dict[str, int]
    edges: dict[str, int]
    most_imported: list[tuple[str, int]]
    cycles: list[list[str]]
    """Groups of modules that import each other, the largest first."""


# -- building ---------------------------------------------------------------------------------


async def build(db: Database, repo: Repo, root: Path) -> Built:
    """Make the graph say what the files below the root say now. Readers see the old one or the new."""
    async with db.transaction() as conn:
        await conn.execute(sql.LOCK_REPO, (repo.id,))
        rows = await (await conn.execute(sql.DIGESTS, (repo.id,))).fetchall()
        known = {row["path"]: bytes(row["digest"]) for row in rows}
        read, gone = await anyio.to_thread.run_sync(_read_changed, root, known)
        found = [each for each, _ in read]
        built = Built(len(found), len(gone), {each.path: each.note for each in found if each.note})
        if not found and not gone:
            return built
        await conn.execute(sql.DELETE_FILES, (repo.id, [*gone, *(each.path for each in found)]))
        await _write(conn, repo, read)
        await conn.execute(sql.NO_LOOPS)
        await conn.execute(sql.RESOLVE_IMPORTS, {"repo": repo.id})
        await conn.execute(sql.RESOLVE_INHERITS, {"repo": repo.id})
    return built


def _read_changed(root: Path, known: dict[str, bytes]) -> tuple[list[tuple[facts.Facts, bytes]], list[str]]:
    """Facts of the new and changed Python files with their digests, and the paths that are gone."""
    changed, present = list[tuple[facts.Facts, bytes]](), set[str]()
    modules = facts.Modules(root)
    for path in scan.list_files(root):
        if not path.endswith(".py"):
            continue
        try:
            read = scan.read_file(root, path, as_code=True)
        except scan.Skip:
            continue
        module = modules.of(path)
        # How a module is named depends on the files around it, so that belongs to what must be unchanged.
        digest = hashlib.blake2b(read.digest + msgspec.json.encode(module), digest_size=16).digest()
        present.add(path)
        if known.get(path) != digest:
            changed.append((facts.read(module, path, read.text), digest))
    return changed, sorted(known.keys() - present)


async def _write(conn: Any, repo: Repo, read: Sequence[tuple[facts.Facts, bytes]]) -> None:
    found = [each for each, _ in read]
    columns = {
        "repo": repo.id, "paths": [f.path for f in found], "digests": [digest for _, digest in read],
        "modules": [f.module.name for f in found], "packaged": [f.module.packaged for f in found],
        "sources": [f.module.source for f in found], "notes": [f.note for f in found],
    }  # fmt: skip
    rows = await (await conn.execute(sql.INSERT_FILE, columns)).fetchall()
    files = {row["path"]: row["id"] for row in rows}
    count = sum(len(f.nodes) for f in found)
    ids = deque([row["id"] for row in await (await conn.execute(sql.NODE_IDS, (count,))).fetchall()])
    nodes, edges, aliases = list[Any](), list[Any](), list[Any]()
    for each in found:
        file = files[each.path]
        own = [ids.popleft() for _ in each.nodes]
        for id, node in zip(own, each.nodes, strict=True):
            nodes.append((id, repo.id, file, node.kind, node.qualname, node.start, node.end))
            if node.parent is not None:
                edges.append((repo.id, file, own[node.parent], "defines", [node.qualname], node.start, id))
        for ref in each.references:
            edges.append((repo.id, file, own[ref.src], ref.kind, list(ref.names), ref.line, None))
        aliases += [(repo.id, file, "import", name, target) for name, target in each.aliases]
        aliases += [(repo.id, file, "path", name, each.module.name) for name in each.module.other_names]
    for statement, copied in ((sql.COPY_NODES, nodes), (sql.COPY_EDGES, edges), (sql.COPY_ALIASES, aliases)):
        async with conn.cursor() as cursor, cursor.copy(statement) as copy:
            for row in copied:
                await copy.write_row(row)


# -- asking -----------------------------------------------------------------------------------


async def module(db: Database, repo_id: int, name: str) -> dict[str, Any]:
    """A module by its name, its path, or something that it defines. Raises NotFound."""
    row = await db.fetch_one(sql.FIND_MODULE, {"repo": repo_id, "name": name})
    if row is None:
        raise errors.NotFound(f"the graph has no module {name!r}", hint="Give a module's name or a path.")
    return row


async def importers(db: Database, repo_id: int, name: str) -> list[dict[str, Any]]:
    """Who imports it: `[{name, path, line, confidence}]`, where the import stands. Raises NotFound."""
    found = await module(db, repo_id, name)
    return await db.fetch(sql.IMPORTERS, {"node": found["id"]})


async def imports(db: Database, repo_id: int, name: str) -> list[dict[str, Any]]:
    """What it imports of this repository: `[{name, path, line, confidence}]`, `path` its own. Raises NotFound."""
    found = await module(db, repo_id, name)
    return await db.fetch(sql.IMPORTS, {"node": found["id"]})


async def path(db: Database, repo_id: int, start: str, end: str) -> list[str]:
    """A shortest chain of imports from one module to another; empty when there is none. Raises NotFound."""
    first = (await module(db, repo_id, start))["qualname"]
    last = (await module(db, repo_id, end))["qualname"]
    edges = await _edges(db, repo_id)
    came_from: dict[str, str | None] = {first: None}
    waiting = deque([first])
    while waiting and last not in came_from:
        here = waiting.popleft()
        for there in edges.get(here, ()):
            if there not in came_from:
                came_from[there] = here
                waiting.append(there)
    chain: list[str] = []
    step: str | None = last if last in came_from else None
    while step is not None:
        chain.append(step)
        step = came_from[step]
    return chain[::-1]


async def report(db: Database, repo_id: int) -> Report:
    """Sizes, cycles and the most imported modules."""
    sizes = await db.fetch_one(sql.SIZES, {"repo": repo_id}) or {}
    edges = await _edges(db, repo_id)
    counts = Counter(there for targets in edges.values() for there in targets)
    return Report(
        files=sizes["files"], nodes=sizes["nodes"], edges=sizes["edges"],
        most_imported=sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP],
        cycles=cycles(edges)[:TOP],
    )  # fmt: skip


async def _edges(db: Database, repo_id: int) -> dict[str, list[str]]:
    rows = await db.fetch(sql.IMPORTS_ALL, {"repo": repo_id})
    edges: dict[str, list[str]] = {}
    for row in rows:
        edges.setdefault(row["importer"], []).append(row["imported"])
    return edges


def cycles(edges: dict[str, list[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one module (Tarjan, without recursion), largest first."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack, on_stack, groups = list[str](), set[str](), list[list[str]]()
    for start in edges:
        if start in order:
            continue
        work = [(start, iter(edges.get(start, ())))]
        while work:
            node, targets = work[-1]
            if node not in order:
                order[node] = low[node] = len(order)
                stack.append(node)
                on_stack.add(node)
            deeper = _next_unseen(node, targets, order, low, on_stack)
            if deeper is not None:
                work.append((deeper, iter(edges.get(deeper, ()))))
                continue
            work.pop()
            if work:
                low[work[-1][0]] = min(low[work[-1][0]], low[node])
            if low[node] == order[node]:
                at = stack.index(node)
                group, stack[at:] = stack[at:], []
                on_stack.difference_update(group)
                groups.append(sorted(group))
    return sorted((g for g in groups if len(g) > 1), key=lambda g: (-len(g), g))


def _next_unseen(
    node: str, targets: Iterable[str], order: dict[str, int], low: dict[str, int], on_stack: set[str]
) -> str | None:
    for there in targets:
        if there not in order:
            return there
        if there in on_stack:
            low[node] = min(low[node], order[there])
    return None
