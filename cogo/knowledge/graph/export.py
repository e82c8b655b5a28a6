"""The graph for other tools: GraphML, Cypher, or straight into a Neo4j. Rows go by in pages, so any size does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape

import msgspec

from cogo import errors

from . import queries as sql

if TYPE_CHECKING:
    from cogo import Database

PAGE: Final = 2_000
_NODE: Final = {"kind": "string", "name": "string", "path": "string", "start": "int", "end": "int"}
_EDGE: Final = {"kind": "string", "confidence": "string", "line": "int"}


async def pages(db: Database, statement: str, repo_id: int) -> AsyncIterator[list[dict[str, Any]]]:
    """Rows of EXPORT_NODES or EXPORT_EDGES, by id."""
    after = 0
    while rows := await db.fetch(statement, {"repo": repo_id, "after": after, "limit": PAGE}):
        yield rows
        after = rows[-1]["id"]


async def graphml(db: Database, repo_id: int) -> AsyncIterator[str]:
    """A GraphML document, in pieces: what yEd, Gephi and networkx read."""
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n'
    for place, fields in (("node", _NODE), ("edge", _EDGE)):
        for name, type in fields.items():
            yield f'<key id="{place}_{name}" for="{place}" attr.name="{name}" attr.type="{type}"/>\n'
    yield '<graph edgedefault="directed">\n'
    async for rows in pages(db, sql.EXPORT_NODES, repo_id):
        yield "".join(f'<node id="n{row["id"]}">{_data("node", _NODE, row)}</node>\n' for row in rows)
    async for rows in pages(db, sql.EXPORT_EDGES, repo_id):
        yield "".join(
            f'<edge id="e{row["id"]}" source="n{row["src"]}" target="n{row["dst"]}">{_data("edge", _EDGE, row)}</edge>\n'
            for row in rows
        )
    yield "</graph>\n</graphml>\n"


def _data(place: str, fields: Mapping[str, str], row: Mapping[str, Any]) -> str:
    return "".join(f'<data key="{place}_{name}">{escape(str(row[name]))}</data>' for name in fields)


def _label(kind: str) -> str:
    return kind.capitalize()


async def cypher(db: Database, repo_id: int, repo: str) -> AsyncIterator[str]:
    """Statements that make the graph in an empty Neo4j: for `cypher-shell < graph.cypher`."""
    yield "CREATE INDEX code_id IF NOT EXISTS FOR (n:Code) ON (n.id);\n"
    async for rows in pages(db, sql.EXPORT_NODES, repo_id):
        yield "".join(
            f"CREATE (:Code:{_label(row['kind'])} {_map(_node(row, repo_id, repo))});\n" for row in rows
        )
    async for rows in pages(db, sql.EXPORT_EDGES, repo_id):
        yield "".join(_created(row) for row in rows)


def _created(edge: Mapping[str, Any]) -> str:
    src, dst = _map({"id": edge["src"]}), _map({"id": edge["dst"]})
    told = _map({"confidence": edge["confidence"], "line": edge["line"]})
    return f"MATCH (a:Code {src}), (b:Code {dst}) CREATE (a)-[:{edge['kind'].upper()} {told}]->(b);\n"


def _node(row: Mapping[str, Any], repo_id: int, repo: str) -> dict[str, Any]:
    """Ids and `repo_id` are the database's: two tenants may have repositories of one name."""
    return {"id": row["id"], "repo_id": repo_id, "repo": repo, **{name: row[name] for name in _NODE}}


def _map(fields: Mapping[str, Any]) -> str:
    """A Cypher map; its strings are escaped as JSON's are."""
    return (
        "{"
        + ", ".join(f"{key}: {msgspec.json.encode(value).decode()}" for key, value in fields.items())
        + "}"
    )


# -- Neo4j ------------------------------------------------------------------------------------

_CLEAR: Final = (
    "MATCH (n:Code {repo_id: $repo_id}) CALL { WITH n DETACH DELETE n } IN TRANSACTIONS OF 10000 ROWS"
)
_INDEX: Final = "CREATE INDEX code_id IF NOT EXISTS FOR (n:Code) ON (n.id)"
_PUT_NODES: Final = "UNWIND $rows AS row MERGE (n:Code {id: row.id}) SET n = row"
_PUT_EDGES: Final = (
    "UNWIND $rows AS row MATCH (a:Code {id: row.src}), (b:Code {id: row.dst})"
    " CREATE (a)-[:%s {confidence: row.confidence, line: row.line}]->(b)"
)


async def to_neo4j(
    db: Database, repo_id: int, repo: str, uri: str, user: str, password: str, database: str | None = None
) -> dict[str, int]:
    """Put the graph of a repository in the place of what this Neo4j had of it; how many nodes and edges.

    Needs the extra `neo4j`. Raises Invalid without it, and when the server can't be used.
    """
    try:
        from neo4j import AsyncGraphDatabase
        from neo4j.exceptions import DriverError, Neo4jError
    except ImportError:
        raise errors.Invalid(
            "this needs the driver of Neo4j", hint="`pip install 'cogo-agents[neo4j]'` brings it."
        ) from None
    counts = {"nodes": 0, "edges": 0}
    try:
        async with contextlib.AsyncExitStack() as stack:
            driver = await stack.enter_async_context(AsyncGraphDatabase.driver(uri, auth=(user, password)))
            session = await stack.enter_async_context(driver.session(database=database))
            for statement in (_INDEX, _CLEAR):
                await (await session.run(statement, {"repo_id": repo_id})).consume()
            async for rows in pages(db, sql.EXPORT_NODES, repo_id):
                await (
                    await session.run(_PUT_NODES, {"rows": [_node(row, repo_id, repo) for row in rows]})
                ).consume()
                counts["nodes"] += len(rows)
            async for rows in pages(db, sql.EXPORT_EDGES, repo_id):
                for kind in sorted({row["kind"] for row in rows}):
                    batch = [row for row in rows if row["kind"] == kind]
                    await (await session.run(_PUT_EDGES % kind.upper(), {"rows": batch})).consume()
                counts["edges"] += len(rows)
    except (DriverError, Neo4jError, OSError, ValueError) as error:
        raise errors.Invalid(f"Neo4j at {uri} could not be written: {error}") from None
    return counts
