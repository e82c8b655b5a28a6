"""Questions to a graph that is built: who imports, who calls, what breaks, which way leads from here to there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from cogo import errors

from . import queries as sql

if TYPE_CHECKING:
    from cogo import Database

LIMIT: Final = 1_000
"""Rows of an answer."""
PATH_MAX: Final = 30
"""Steps of the longest path that is looked for."""
USES: Final = ("calls", "references", "inherits")
BREAKS: Final = (*USES, "imports", "tests")

Row = dict[str, Any]
Rows = list[Row]
Name = str | Row
"""What somebody calls a thing, or the thing as `find` gave it."""


async def find(db: Database, repo_id: int, name: Name) -> Row:
    """`{id, kind, name, path, line, module_id}` of what is meant by a name, the end of one, or a path.

    Raises NotFound, and Invalid when several things are called so.
    """
    if not isinstance(name, str):
        return name
    params = {"repo": repo_id, "name": name, "tail": name.rpartition(".")[2]}
    rows = await db.fetch(sql.FIND, params)
    rows = [row for row in rows if row["whole"]] or rows
    if not rows:
        raise errors.NotFound(
            f"the graph has nothing that is called {name!r}",
            hint="Give a path, or a name or the end of one: `cogo.core.bus`, `Bus.enqueue`.",
        )
    if len(rows) > 1:
        names = ", ".join(f"{row['name']} ({row['path']})" for row in rows[:5]) + (
            ", …" if len(rows) > 5 else ""
        )
        raise errors.Invalid(f"{name!r} is the name of {len(rows)} things: {names} - at `$.name`")
    return rows[0]


async def _module(db: Database, repo_id: int, name: Name) -> int:
    """The node of a module by its name, its path, or something that it defines. Raises NotFound, Invalid."""
    found = await find(db, repo_id, name)
    return int(found["module_id"] or found["id"])


async def importers(db: Database, repo_id: int, name: Name) -> Rows:
    """Who imports its module: `[{name, kind, path, line, confidence}]`, where the import stands. Raises NotFound."""
    return await _edges(db, sql.into, await _module(db, repo_id, name), ("imports",))


async def imports(db: Database, repo_id: int, name: Name) -> Rows:
    """What its module imports of this repository, and where. Raises NotFound."""
    return await _edges(db, sql.out_of, await _module(db, repo_id, name), ("imports",))


async def callers(db: Database, repo_id: int, name: Name, *, guesses: bool = False) -> Rows:
    """Who calls a function, a class, or a method of it, and where. Raises NotFound, Invalid.

    With `guesses`, also calls of a method that is so called on a value of unknown type, if nothing else is.
    """
    found = await find(db, repo_id, name)
    rows = await _edges(db, sql.into, found["id"], ("calls",), members=found["kind"] == "class")
    if guesses:
        params = {
            "repo": repo_id,
            "tail": found["name"].rpartition(".")[2],
            "kinds": ["calls"],
            "limit": LIMIT,
        }
        known = {(row["name"], row["path"]) for row in rows}
        rows += [r for r in await db.fetch(sql.GUESSED, params) if (r["name"], r["path"]) not in known]
    return rows


async def callees(db: Database, repo_id: int, name: Name) -> Rows:
    """What it calls in this repository, and where. Raises NotFound, Invalid."""
    found = await find(db, repo_id, name)
    return await _edges(db, sql.out_of, found["id"], ("calls",), members=found["kind"] != "function")


async def uses(db: Database, repo_id: int, name: Name, kinds: Sequence[str] = USES) -> Rows:
    """Edges of these kinds that lead to it or a part of it. Raises NotFound, Invalid."""
    found = await find(db, repo_id, name)
    return await _edges(db, sql.into, found["id"], kinds, members=found["kind"] != "function")


async def impact(db: Database, repo_id: int, name: Name, depth: int = 3) -> Rows:
    """What may break when it changes: `[{name, kind, path, line, depth}]`, nearest first. Raises NotFound, Invalid."""
    found = await find(db, repo_id, name)
    statement = sql.impact(BREAKS, LIMIT, members=found["kind"] == "class")
    return await db.fetch(statement, {"node": found["id"], "depth": depth})


async def _edges(
    db: Database, statement: Callable[..., str], node: int, kinds: Sequence[str], *, members: bool = False
) -> Rows:
    return await db.fetch(statement(tuple(kinds), LIMIT, members=members), {"node": node})


async def path(db: Database, repo_id: int, start: str, end: str) -> Rows:
    """A shortest way: `[{name, path, line}]`, of imports between modules, else of calls; empty when there is none.

    Looked for from both ends, the smaller frontier first. Raises NotFound, Invalid.
    """
    first, last = await find(db, repo_id, start), await find(db, repo_id, end)
    modules = {"package", "module"}
    kinds = ["imports"] if modules & {first["kind"], last["kind"]} else ["calls"]
    end_of = "module_id" if kinds == ["imports"] else "id"
    chain = await _way(db, first[end_of] or first["id"], last[end_of] or last["id"], kinds)
    rows = {row["id"]: row for row in await db.fetch(sql.NAMES_OF, (chain,))}
    return [{key: rows[id][key] for key in ("name", "path", "line")} for id in chain if id in rows]


async def _way(db: Database, start: int, end: int, kinds: list[str]) -> list[int]:
    """Ids from start to end."""
    before: dict[int, int | None] = {start: None}
    after: dict[int, int | None] = {end: None}
    ahead, behind = [start], [end]
    met = start if start == end else None
    for _ in range(PATH_MAX):
        if met is not None or not ahead or not behind:
            break
        forward = len(ahead) <= len(behind)
        here, there = ("src", "dst") if forward else ("dst", "src")
        seen, other, nodes = (before, after, ahead) if forward else (after, before, behind)
        rows = await db.fetch(sql.STEP.format(here=here, there=there), {"nodes": nodes, "kinds": kinds})
        fresh = {row["there"]: row["here"] for row in rows if row["there"] not in seen}
        seen.update(fresh)
        nodes[:] = list(fresh)
        met = next((node for node in fresh if node in other), None)
    if met is None:
        return []
    return [*reversed(_trail(before, met)), *_trail(after, met)[1:]]


def _trail(came_from: dict[int, int | None], node: int) -> list[int]:
    trail: list[int] = []
    step: int | None = node
    while step is not None:
        trail.append(step)
        step = came_from[step]
    return trail
