"""Plans as Postgres really ran them, inside functions too: by auto_explain, sent to the client as notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg

from cogo.core.db import Database


@contextmanager
def explained(dsn: str) -> Iterator[Explained]:
    """A session whose every statement, also those nested in functions, leaves its plan."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("LOAD 'auto_explain'")
        for setting in ("log_min_duration = 0", "log_nested_statements = on", "log_analyze = on",
                        "log_buffers = on", "log_timing = off", "log_format = json", "log_level = notice"):  # fmt: skip
            conn.execute(f"SET auto_explain.{setting}")
        found = Explained(conn)
        conn.add_notice_handler(found.note)
        yield found


class Explained:
    """What `explained` gives: run statements, look at plans."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn
        self.plans: list[dict[str, Any]] = []

    def note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        _, _, text = (diagnostic.message_primary or "").partition("plan:\n")
        if text:
            self.plans.append(msgspec.json.decode(text))

    def run(self, sql: str, params: Any = ()) -> list[Any]:
        """Run it with a clean list of plans; the rows."""
        self.plans.clear()
        return self.conn.execute(sql, params).fetchall()

    def touching(self, table: str, marker: str) -> list[dict[str, Any]]:
        """The plans of statements whose text holds `marker` and which scan `table`."""
        return [plan for plan in self.plans if marker in plan["Query Text"] and any(self.scans(plan, table))]

    def buffers(self) -> int:
        """Pages that the last run touched, over all its statements: the outermost plan has the sum."""
        return max(_pages(plan["Plan"]) for plan in self.plans)

    def nodes(self, plan: dict[str, Any]) -> list[str]:
        """The kinds of a plan's nodes."""
        return [node["Node Type"] for node in _nodes(plan["Plan"])]

    def scans(self, plan: dict[str, Any], table: str) -> Iterator[str]:
        """How a plan reads a table: `Seq Scan`, or the index that it uses."""
        for node in _nodes(plan["Plan"]):
            if node.get("Relation Name") == table and node["Node Type"] != "ModifyTable":
                yield node.get("Index Name") or node["Node Type"]


def _pages(node: dict[str, Any]) -> int:
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


async def touched(db: Database, sql: str, times: int = 1) -> list[tuple[int, int]]:
    """(rows, pages) of a statement, each of the times that it runs.

    On one connection, which has run it before: a fresh one reads the catalog for its plans.
    """
    found = []
    async with db.connection() as conn:
        for _ in range(times + 1):
            cursor = await conn.execute(b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql.encode())
            row = await cursor.fetchone()
            assert row is not None
            plan = next(iter(row.values()))[0]["Plan"]
            found.append((int(plan["Actual Rows"]), _pages(plan)))
    return found[1:]
