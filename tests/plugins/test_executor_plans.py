"""Proves that a dispatch costs the same however much was handed out before: few statements, each by an index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hands import Hand
from plans import Explained, explained

from cogo.core.bus import Bus
from cogo.core.db import Database

CALL = """
SELECT * FROM cogo.dispatch(%s, 1, %s, 'acme', 'voice', 'shout', 0.1, 100, 60000, %s::integer, NULL, 5, 30000, 0.2, 100)
"""
FILL = """
INSERT INTO cogo.dispatches (message_id, fence, service, role, tenant, probe, retry_ratio, retry_floor, at, ended_at, ok)
SELECT 1000000 + n, n, CASE WHEN n % 2 = 0 THEN 'voice' ELSE 'ear' END, 'shout', 'acme', false, 0.2, 100, now(),
  CASE WHEN n % 5 < 4 THEN now() - n * interval '1 ms' END, CASE WHEN n % 5 < 4 THEN n % 7 <> 0 END
FROM generate_series(1, 20000) n
"""


async def told(bus: Bus, count: int) -> list[int]:
    """Messages that an executor has claimed."""
    hand = await Hand(bus).register("orchestrator/execute")
    for _ in range(count):
        await bus.enqueue("orchestrator/execute@acme", {})
    return [message.id for message in await hand.claim("orchestrator/execute")]


def statements(session: Explained) -> list[str]:
    """Those within the call that touch a table; the others call functions."""
    texts = [plan["Query Text"].strip() for plan in session.plans if any(scanned_or_written(session, plan))]
    return [text for text in texts if not text.startswith("SELECT * FROM cogo.dispatch(")]


def scanned_or_written(session: Explained, plan: dict[str, Any]) -> Iterator[bool]:
    return (
        kind == "ModifyTable" or kind.endswith("Only Scan") or kind == "Index Scan"
        for kind in session.nodes(plan)
    )


@pytest.mark.parametrize(("most", "expected"), [(None, 3), (5000, 4)])
async def test_a_dispatch_scans_nothing(
    dsn: str, database: Database, most: int | None, expected: int
) -> None:
    first, second = await told(Bus(database), 2)
    with explained(dsn) as session:
        session.conn.execute(FILL)
        session.conn.execute("VACUUM ANALYZE cogo.dispatches")
        assert (
            session.run(CALL, (first, first, most)) == []
        )  # a session's first call reads the catalog for its plans
        assert session.run(CALL, (second, second, most)) == []
        assert len(statements(session)) == expected, statements(session)
        scans = [scan for plan in session.plans for scan in session.scans(plan, "dispatches")]
        assert len(scans) >= 2
        assert set(scans) <= {"dispatches_done", "dispatches_failed", "dispatches_running"}
        assert session.buffers() < 60
