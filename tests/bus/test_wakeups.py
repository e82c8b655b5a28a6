"""Proves that a NOTIFY is sent when somebody sleeps and only then, and that a missed one costs little."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hands import Hand, insert, process, update
from helpers import eventually_async

import cogo
from cogo.core.bus import Bus
from cogo.core.consumer import Consumer
from cogo.core.model import Lane

ECHO = Lane("t", "echo", 0)


@asynccontextmanager
async def ear(bus: Bus) -> AsyncIterator[Callable[[], Any]]:
    """A session that listens; gives `await heard()`: what has come since the last call."""
    async with bus.db.connection() as conn:
        await conn.execute("LISTEN cogo")

        async def heard() -> list[str]:
            # A mark of our own closes the list: notifications come in the order of commits.
            await bus.db.execute("SELECT pg_notify('cogo', 'mark')")
            found: list[str] = []
            while "mark" not in found:
                found += [note.payload async for note in conn.notifies(timeout=5.0, stop_after=1)]
            found.remove("mark")
            return found

        yield heard
        await conn.execute("UNLISTEN cogo")


async def test_nobody_sleeps_nobody_is_notified(bus: Bus) -> None:
    hand = await Hand(bus).register()
    async with ear(bus) as heard:
        await bus.enqueue("t/echo", {})
        await bus.enqueue_many("t/echo", [{}, {}])
        (message, *_) = await hand.claim("t/echo")
        await hand.finish(message, "retry", error="x: y")
        assert await heard() == []


async def test_a_sleeper_is_told_once_per_statement_and_lane(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await bus.sleep_on([ECHO, Lane("t", "echo", 1)], hand.epoch)
    async with ear(bus) as heard:
        await bus.enqueue_many("t/echo", [{} for _ in range(10)])
        assert await heard() == ["lane:t/echo/0"]
        await bus.enqueue("t/other", {})
        assert await heard() == []
        await bus.awake_on([ECHO], hand.epoch)
        await bus.enqueue("t/echo", {})
        await bus.enqueue("t/echo/1", {})
        assert await heard() == ["lane:t/echo/1"]


async def test_a_dead_sleeper_is_not_told(bus: Bus) -> None:
    hand = await Hand(bus).register(lease_ms=0)
    await bus.sleep_on([ECHO], hand.epoch)
    async with ear(bus) as heard:
        await bus.enqueue("t/echo", {})
        assert await heard() == []


async def test_whatever_puts_a_message_back_wakes(bus: Bus) -> None:
    sleeper = await Hand(bus, "sleeper").register()
    hand = await Hand(bus).register(lease_ms=0)
    await bus.enqueue_many("t/echo", [{} for _ in range(4)])
    retried, released, lost, failed = await hand.claim("t/echo")
    await hand.finish(failed, "failed", error="x: y")
    await bus.sleep_on([ECHO], sleeper.epoch)
    woken = ["lane:t/echo/0"]
    async with ear(bus) as heard:
        await hand.finish(retried, "retry", error="x: y")
        assert await heard() == woken, "it must learn when the retry is due"
        await hand.finish(released, "released")
        assert await heard() == woken
        await bus.db.execute("SELECT cogo.reclaim(10, 0, 900000)")
        assert await heard() == woken
        await bus.requeue(failed.id, actor="ops")
        assert await heard() == woken
        foreign = await insert(bus, "t/echo", status="claimed")
        assert await heard() == []
        await update(bus, foreign, status="queued")
        assert await heard() == woken


async def test_ends_are_told_to_waiters_only(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await bus.enqueue_many("t/echo", [{} for _ in range(3)])
    watched, other, third = await hand.claim("t/echo")
    async with ear(bus) as heard, bus.watching(watched.id, 30):
        await hand.finish(other)
        assert await heard() == []
        await bus.add_chunks(watched.id, watched.fence, [("token", 1)])
        assert await heard() == [f"result:{watched.id}"]
        await hand.finish(watched)
        assert await heard() == [f"result:{watched.id}"]
    assert await bus.db.fetch_value("SELECT count(*) FROM cogo.bus_waiters") == 0
    async with ear(bus) as heard:
        await bus.cancel(third.id, actor="ops")
        assert await heard() == [f"cancel:{third.id}"], "its holder stops the handler"


async def test_a_lane_sleeps_when_idle_and_wakes_for_good_when_busy(dsn: str, bus: Bus) -> None:
    async def work(task: dict[str, Any], ctx: cogo.Context) -> None:
        pass

    asleep = "SELECT count(*) FROM cogo.bus_idle WHERE role = 'work'"
    async with process(dsn, [cogo.Role("t", "work", handle=work, concurrency=2)], poll_ms=15_000):
        await eventually_async(lambda: bus.db.fetch_value(asleep))
        with anyio.fail_after(15):  # leaving is allowed a second after falling asleep
            while await bus.db.fetch_value(asleep):
                await bus.enqueue_many("t/work", [{} for _ in range(100)])
        await bus.db.execute("DELETE FROM public.agent_messages WHERE status = 'queued'")
        await eventually_async(lambda: bus.db.fetch_value(asleep))
        # And a push is what wakes it now, not a poll: those are seconds apart.
        id = await bus.enqueue("t/work", {})
        assert (await bus.result(id, timeout_s=5)).status == "done"


async def test_an_insert_that_was_uncommitted_when_the_lane_fell_asleep_is_found(dsn: str, bus: Bus) -> None:
    """It could not see the sleeper, so nobody is notified: the short polls after falling asleep find it."""

    async def work(task: dict[str, Any], ctx: cogo.Context) -> int:
        return 1

    async with bus.db.transaction() as conn:
        await conn.execute("INSERT INTO public.agent_messages (service, role) VALUES ('t', 'work')")
        async with process(dsn, [cogo.Role("t", "work", handle=work)], poll_ms=1_000):
            await eventually_async(lambda: bus.db.fetch_value("SELECT count(*) FROM cogo.bus_idle"))
            await conn.execute("COMMIT")
            await conn.execute("BEGIN")
            assert (await bus.result(1, timeout_s=5)).value == 1


async def test_a_retry_is_picked_up_when_it_is_due_not_at_the_next_poll(dsn: str, bus: Bus) -> None:
    async def work(task: dict[str, Any], ctx: cogo.Context) -> int:
        if ctx.attempt == 1:
            raise cogo.Retry("soon", after=0.5)
        return ctx.attempt

    async with process(dsn, [cogo.Role("t", "work", handle=work)], poll_ms=60_000):
        id = await bus.enqueue("t/work", {})
        assert (await bus.result(id, timeout_s=10)).value == 2


async def test_wakeups_while_all_slots_are_taken_cost_no_loop(
    dsn: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full consumer waits for a free slot; it once spun on the wakeup that it could not use."""
    running, gate = anyio.Event(), anyio.Event()
    waits: list[float] = []
    wait = Consumer._wait

    async def counted(consumer: Consumer, seconds: float) -> bool:
        waits.append(seconds)
        return await wait(consumer, seconds)

    async def work(task: dict[str, Any], ctx: cogo.Context) -> None:
        running.set()
        await gate.wait()

    async with process(dsn, [cogo.Role("t", "work", handle=work, concurrency=1)]) as runtime:
        await bus.enqueue_many("t/work", [{}, {}])
        await running.wait()
        monkeypatch.setattr(Consumer, "_wait", counted)
        runtime.listener.deliver("lane:t/work/0")
        for _ in range(300):
            await anyio.lowlevel.checkpoint()
        assert len(waits) < 5
        gate.set()
