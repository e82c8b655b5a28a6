"""Proves that claims by watermark stay cheap under a held snapshot, and overlook nothing for long."""

from __future__ import annotations

from typing import Any

import anyio
import psycopg
import pytest
from hands import Hand, process
from helpers import eventually_async
from plans import Explained, explained

import cogo
from cogo.core.bus import Bus
from cogo.core.model import Lane, Role
from cogo.core.watermark import Watermark

ECHO = Lane("t", "echo")
CLAIM = """
SELECT max(seq) FROM cogo.claim('t', 'echo', 0, 50, 'hand', 1, 60000, ARRAY[0, 0, %s::bigint, 0])
"""
INSERT = "INSERT INTO public.agent_messages (service, role, payload) VALUES ('t', 'echo', '{}') RETURNING id"


async def handled(_task: dict[str, Any], _ctx: cogo.Context) -> None:
    """Does nothing."""


def fill(session: Explained, count: int) -> None:
    session.conn.execute(
        "INSERT INTO public.agent_messages (service, role) SELECT 't', 'echo' FROM generate_series(1, %s)",
        (count,),
    )


def claimed(session: Explained, after: int) -> tuple[int, int]:
    """The highest seq of a claim of 50, and its pages."""
    ((seq,),) = session.run(CLAIM, (after,))
    return seq, session.buffers()


def test_pages_of_a_claim_under_a_held_snapshot(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("ALTER TABLE public.agent_messages SET (autovacuum_enabled = off)")
    with explained(dsn) as session, psycopg.connect(dsn) as holder:
        fill(session, 20_000)
        seq, _ = claimed(session, 0)
        seq, clean = claimed(session, seq)
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT pg_current_xact_id()")
        for _ in range(300):
            seq, pages = claimed(session, seq)
        assert pages <= 1.3 * clean
        _, blind = claimed(session, 0)
        assert blind > 1.5 * clean, (
            "without the watermark it walks over what is gone: the test means something"
        )


async def test_what_a_claim_passed_over_is_found_behind_the_front(bus: Bus, dsn: str) -> None:
    """Seq 1 is inserted first and committed last; a claim from the front misses it, a sweep finds it."""
    hand = await Hand(bus).register()
    mark = Watermark()

    async def claim() -> list[int]:
        found = await bus.claim(
            ECHO, 10, holder="hand", epoch=hand.epoch, timeout_ms=60_000, after=mark.after()
        )
        mark.claimed(found.marks, full=True)
        return [message.id for message in found.messages]

    async with await psycopg.AsyncConnection.connect(dsn) as late:
        (late_id,) = await (await late.execute(INSERT)).fetchone() or (None,)
        early = await bus.enqueue("t/echo", {})
        assert await claim() == [early]
        await late.commit()
    found = await bus.claim(ECHO, 10, holder="hand", epoch=hand.epoch, timeout_ms=60_000, after=mark._front)
    assert found.messages == []
    mark.sweep()
    assert await claim() == [late_id]


@pytest.mark.parametrize("open_s", [0.0, 1.0], ids=["a moment", "a second"])
async def test_a_late_commit_is_handled_soon(bus: Bus, dsn: str, open_s: float) -> None:
    """While others went by. Polls are far apart, so its own NOTIFY has to be enough."""
    role = Role("t", "echo", handle=handled)
    async with process(dsn, [role], poll_ms=60_000), await psycopg.AsyncConnection.connect(dsn) as late:
        (late_id,) = await (await late.execute(INSERT)).fetchone() or (None,)
        with anyio.move_on_after(open_s):
            while True:
                await bus.result(await bus.enqueue("t/echo", {}))
                await anyio.lowlevel.checkpoint()
        await bus.result(await bus.enqueue("t/echo", {}))
        await late.commit()
        assert late_id is not None
        assert (await bus.result(late_id, timeout_s=5)).status == "done"


async def test_a_late_commit_is_handled_on_a_lane_that_never_rests(bus: Bus, dsn: str) -> None:
    """Full claims only, as long as it takes: the looks back have to find it among them."""
    role = Role("t", "echo", handle=handled, concurrency=4)
    async with process(dsn, [role], poll_ms=60_000), await psycopg.AsyncConnection.connect(dsn) as late:
        (late_id,) = await (await late.execute(INSERT)).fetchone() or (None,)
        ids = await bus.enqueue_many("t/echo", [{}] * 20)
        await bus.result(ids[-1])
        await late.commit()

        async def ended() -> bool:
            await bus.enqueue_many("t/echo", [{}] * 50)
            row = await bus.db.fetch_one("SELECT status FROM public.agent_messages WHERE id = %s", (late_id,))
            return row is not None and row["status"] == "done"

        await eventually_async(ended, timeout_s=10)
