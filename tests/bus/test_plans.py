"""Proves that claim and finish have one plan each, whatever the table holds and the planner knows of it.

Measured in pages, never in milliseconds. A claim that was ordered by id once walked the primary key
over done rows; this is what would notice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg
import pytest
from plans import Explained, explained
from psycopg.types.json import Jsonb

READY, DUE, KEY = "agent_messages_ready", "agent_messages_due", "agent_messages_pkey"
WAITING = "agent_messages_waiting"
FILL = """
INSERT INTO public.agent_messages (service, role, payload, status, attempts, done_at, retry_at)
SELECT 't', %(role)s, '{"some": "words to fill a row"}', %(status)s, 1,
       CASE WHEN %(status)s = 'done' THEN now() END, %(retry_at)s
FROM generate_series(1, %(count)s)
"""
CLAIM = "SELECT id, fence FROM cogo.claim('t', 'echo', 0, 50, 'hand', 1, 60000)"
CLAIM_FAIR = CLAIM.replace("'echo'", "'fair'")
REDRIVE = "SELECT * FROM cogo.redrive('t', 'echo')"
RECLAIM = "SELECT * FROM cogo.reclaim(1000, 0, 900000)"
FINISH = """
SELECT id, status FROM cogo.finish(%(ids)s::bigint[], %(fences)s::bigint[], %(kinds)s::text[],
  array_fill(null::text, ARRAY[50]), array_fill(null::text, ARRAY[50]), array_fill(null::text, ARRAY[50]),
  array_fill(null::bigint, ARRAY[50]), array_fill(null::text, ARRAY[50]), '[]', '[]')
"""
DONE = ["done"] * 50


@pytest.fixture
def session(dsn: str) -> Iterator[Explained]:
    # Autovacuum would analyze, or clean up, between two readings.
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("ALTER TABLE public.agent_messages SET (autovacuum_enabled = off)")
    with explained(dsn) as found:
        yield found


def fill(
    session: Explained, count: int, status: str = "queued", retry_at: str | None = None, role: str = "echo"
) -> None:
    session.conn.execute("SET auto_explain.log_min_duration = -1")
    session.conn.execute(FILL, {"count": count, "status": status, "retry_at": retry_at, "role": role})
    session.conn.execute("SET auto_explain.log_min_duration = 0")


def fresh(session: Explained) -> None:
    """Forget the cached plans, as a new connection would."""
    session.conn.execute("DISCARD PLANS")


def claim(session: Explained) -> tuple[list[int], list[int], int]:
    """Ids, fences and pages of one claim; its plans are checked."""
    rows = session.run(CLAIM)
    pages = session.buffers()
    (plan,) = session.touching("agent_messages", "SKIP LOCKED")
    assert set(session.scans(plan, "agent_messages")) == {READY, DUE, KEY}
    return [row[0] for row in rows], [row[1] for row in rows], pages


def finish(session: Explained, ids: list[int], fences: list[int], kinds: Sequence[str] = DONE) -> int:
    """Pages of one finish; its plans are checked."""
    rows = session.run(FINISH, {"ids": ids, "fences": fences, "kinds": list(kinds)})
    assert len(rows) == len(ids)
    plans = session.touching("agent_messages", "WITH u AS")
    # By id in both: WAITING is how the parents of retried messages are found.
    assert {scan for plan in plans for scan in session.scans(plan, "agent_messages")} <= {KEY, WAITING}
    return session.buffers()


def one_turn(session: Explained) -> tuple[int, int]:
    """Pages of a claim of 50 and of its finish. The first turn warms the catalog's caches."""
    for _ in range(2):
        ids, fences, claimed = claim(session)
        assert len(ids) == 50
        finished = finish(session, ids, fences)
    return claimed, finished


def test_an_empty_table(session: Explained) -> None:
    for _ in range(8):  # past the fifth run, where a generic plan may take over
        ids, _, pages = claim(session)
        assert ids == []
    assert pages < 40


def test_plans_from_when_the_table_was_known_to_be_empty(session: Explained, dsn: str) -> None:
    """VACUUM has said so, and then it fills: a join by id once walked the whole primary key for ever after."""
    session.conn.execute("INSERT INTO cogo.bus_lanes (service, role, fair) VALUES ('t', 'fair', true)")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE public.agent_messages")
        for (sql,) in conn.execute("SELECT sql FROM cogo.lane_indexes('t', 'fair')").fetchall():
            conn.execute(sql)
    everything = (CLAIM, CLAIM_FAIR, RECLAIM, "SELECT cogo.expire(1000)", REDRIVE)
    for _ in range(8):
        for sql in everything:
            session.run(sql)
        session.run(FINISH, {"ids": [], "fences": [], "kinds": []})
    fill(session, 20_000)
    fill(session, 20_000, "done")
    fill(session, 20_000, role="fair")
    for sql in everything:
        rows = session.run(sql)
        assert session.buffers() < 80 * max(20, len(rows)), sql
    ids, fences, _ = claim(session)
    assert finish(session, ids, fences, kinds=["done", "retry"] * 25) < 45 * 50


@pytest.mark.parametrize("keep_plans", [True, False], ids=["old plans", "new plans"])
def test_pages_do_not_grow_with_the_table(session: Explained, keep_plans: bool) -> None:
    """Never analyzed, analyzed, 100k done, 100k queued: the same scans, and about the same pages."""
    fill(session, 1_000)
    small = one_turn(session)
    for prepare in (
        lambda: session.conn.execute("ANALYZE public.agent_messages"),
        lambda: fill(session, 100_000, "done"),
        lambda: session.conn.execute("ANALYZE public.agent_messages"),
        lambda: fill(session, 100_000),
        lambda: session.conn.execute("ANALYZE public.agent_messages"),
    ):
        prepare()
        if not keep_plans:
            fresh(session)
        claimed, finished = one_turn(session)
        # Deeper trees: one page more for each of the 50 rows and each of their index entries.
        assert claimed <= 1.5 * small[0], (claimed, small)
        assert finished <= 1.5 * small[1], (finished, small)


def test_follow_ups_meet_their_messages_by_hash(session: Explained) -> None:
    """Within finish() joins by hash are off, and 500 messages with a follow-up each would be 250,000 comparisons."""
    fill(session, 50)
    ids, fences, _ = claim(session)
    follow = [
        {"parent": id, "fence": fence, "service": "t", "role": "next", "shard": 0, "tenant": "default",
         "payload": {}, "priority": 2, "delegate": False}
        for id, fence in zip(ids, fences, strict=True)
    ]  # fmt: skip
    events = [
        {"id": id, "fence": fence, "kind": "seen", "detail": {}}
        for id, fence in zip(ids, fences, strict=True)
    ]
    session.run(
        "SELECT * FROM cogo.finish(%s::bigint[], %s::bigint[], null, null, null, null, null, null, %s, %s)",
        (ids, fences, Jsonb(follow), Jsonb(events)),
    )
    plans = session.touching("agent_messages", "jsonb_to_recordset")
    assert len(plans) == 2
    for plan in plans:
        assert "Hash Join" in session.nodes(plan)
        assert set(session.scans(plan, "agent_messages")) == {KEY}


def test_due_retries_come_by_their_own_index(session: Explained) -> None:
    fill(session, 20_000, "done")
    fill(session, 20_000, retry_at="tomorrow")
    fill(session, 100, retry_at="yesterday")
    session.conn.execute("ANALYZE public.agent_messages")
    ids, _, first = claim(session)
    assert len(ids) == 25  # half a batch; nothing else is there
    claim(session), claim(session), claim(session)
    ids, _, nothing = claim(session)  # only tomorrow's are left
    assert nothing < first
    assert ids == [None], "the time of the next retry"


def test_a_claim_locks_no_more_than_it_takes(session: Explained, dsn: str) -> None:
    fill(session, 500)
    with psycopg.connect(dsn) as other:
        other.execute(CLAIM)
        ids, _, _ = claim(session)
        assert len(ids) == 50
        rest = session.conn.execute(
            "SELECT count(*) FROM (SELECT 1 FROM public.agent_messages WHERE status = 'queued'"
            " FOR UPDATE SKIP LOCKED) q"
        ).fetchone()
        assert rest == (400,)
        other.rollback()


def test_reclaim_and_expire_look_at_living_messages_only(session: Explained) -> None:
    fill(session, 50_000, "done")
    fill(session, 200)
    session.conn.execute("ANALYZE public.agent_messages")
    claim(session)
    session.run(RECLAIM)
    session.run("SELECT cogo.expire(1000)")
    assert session.buffers() < 40
    (plan,) = session.touching("agent_messages", "SKIP LOCKED")
    assert set(session.scans(plan, "agent_messages")) <= {"agent_messages_expires", KEY}
