"""What a graph says as a whole: sizes, cycles, layers, what is imported most, and what nothing leads to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from . import queries as sql

if TYPE_CHECKING:
    from cogo import Database

TOP: Final = 10
"""Entries of each list."""


class Report(msgspec.Struct):
    """Sizes of a graph; edges are counted once per pair of nodes."""

    files: int
    nodes: dict[str, int]
    edges: dict[str, int]
    unresolved: int
    """References to what is not in the repository: the standard library, dependencies, values of unknown type."""
    most_imported: list[tuple[str, int]]
    largest: list[tuple[str, int]]
    """Modules and their lines."""
    cycles: list[list[str]]
    """Groups of modules that import each other, the largest first."""
    layers: list[list[str]]
    """Modules by how far they stand above those that import nothing; a cycle stands in one layer."""
    dead_ends: list[str]
    """Modules that no other one imports, without packages and tests."""
    unused: list[dict[str, Any]]
    """`{name, path, line}` of functions and classes that nothing names."""


async def report(db: Database, repo_id: int) -> Report:
    """The report of a repository."""
    params = {"repo": repo_id, "limit": 5 * TOP}
    sizes = await db.fetch_one(sql.SIZES, params) or {}
    modules = await db.fetch(sql.MODULES, params)
    edges, unused = await _edges(db, repo_id), await db.fetch(sql.UNUSED, params)
    return await anyio.to_thread.run_sync(_summed, sizes, modules, edges, unused)


def _summed(
    sizes: Mapping[str, Any],
    modules: Sequence[Mapping[str, Any]],
    edges: dict[str, list[str]],
    unused: list[dict[str, Any]],
) -> Report:
    counts = Counter(there for here, targets in edges.items() for there in targets if there != here)
    groups = components({row["name"]: edges.get(row["name"], []) for row in modules})
    return Report(
        files=sizes["files"], nodes=sizes["nodes"], edges=sizes["edges"], unresolved=sizes["unresolved"],
        most_imported=sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP],
        largest=sorted(((row["name"], row["lines"]) for row in modules), key=lambda item: (-item[1], item[0]))[:TOP],
        cycles=[group for group in by_size(groups) if len(group) > 1][:TOP],
        layers=layers(groups, edges),
        dead_ends=[row["name"] for row in modules if _is_dead(row, counts)][: 5 * TOP],
        unused=unused,
    )  # fmt: skip


def _is_dead(module: Mapping[str, Any], counts: Mapping[str, int]) -> bool:
    return module["kind"] == "module" and module["name"] not in counts and not module["is_test"]


async def _edges(db: Database, repo_id: int) -> dict[str, list[str]]:
    edges: dict[str, list[str]] = {}
    for row in await db.fetch(sql.IMPORTS_ALL, {"repo": repo_id}):
        edges.setdefault(row["importer"], []).append(row["imported"])
    return edges


def by_size(groups: Iterable[list[str]]) -> list[list[str]]:
    """The largest first, then by name."""
    return sorted(groups, key=lambda group: (-len(group), group))


def layers(groups: Sequence[list[str]], edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Groups stand one above the highest that they import. They come as `components` gives them: what is imported first."""
    level: dict[str, int] = {}
    for group in groups:
        below = [level[there] for here in group for there in edges.get(here, ()) if there in level]
        level |= dict.fromkeys(group, max(below, default=-1) + 1)
    found: list[list[str]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for name, place in sorted(level.items()):
        found[place].append(name)
    return found


def cycles(edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Groups of more than one module that import each other, largest first."""
    return [group for group in by_size(components(edges)) if len(group) > 1]


def components(edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Strongly connected components (Tarjan, without recursion); each after all that it leads to."""
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
                group = list[str]()
                while not group or group[-1] != node:
                    group.append(stack.pop())
                on_stack.difference_update(group)
                groups.append(sorted(group))
    return groups


def _next_unseen(
    node: str, targets: Iterator[str], order: dict[str, int], low: dict[str, int], on_stack: set[str]
) -> str | None:
    for there in targets:
        if there not in order:
            return there
        if there in on_stack:
            low[node] = min(low[node], order[there])
    return None


def markdown(name: str, found: Report) -> str:
    """The report as a page."""
    lines = [f"# The graph of {name}", ""]
    lines += [f"{found.files} files, {found.unresolved} references lead out of the repository.", ""]
    lines += _table(("node", "count"), found.nodes.items())
    lines += _table(("edge", "count"), found.edges.items())
    lines += ["## Most imported", "", *_table(("module", "by"), found.most_imported)]
    lines += ["## Largest modules", "", *_table(("module", "lines"), found.largest)]
    lines += ["## Import cycles", "", *([f"- {', '.join(group)}" for group in found.cycles] or ["None."]), ""]
    lines += ["## Layers", "", "Each imports only from those below it, or from its own cycle.", ""]
    lines += [f"{place}. {_some(names)}" for place, names in reversed([*enumerate(found.layers)])]
    lines += ["", "## Imported by nobody", "", *([f"- {each}" for each in found.dead_ends] or ["None."]), ""]
    unused = [f"- `{row['name']}` {row['path']}:{row['line']}" for row in found.unused]
    lines += ["## Named by nobody", "", *(unused or ["None."])]
    return "\n".join(lines) + "\n"


def _table(head: tuple[str, str], rows: Iterable[tuple[str, int]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {one} | {other} |" for one, other in rows), ""]


def _some(names: Sequence[str], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
