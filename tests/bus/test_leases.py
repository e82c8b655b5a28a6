"""Proves that a dead holder's messages come back, once, and that a live holder's are left alone."""

from __future__ import annotations

import functools
import time
from typing import Any

import anyio
import msgspec
import pytest
from anyio.abc import TaskGroup
from hands import Hand, counts, fast_settings, kinds, policy, process, reclaim, row, shifted
from helpers import eventually_async

import cogo
from cogo.core import upkeep
from cogo.core.bus import Bus
from cogo.core.lease import Lease
from cogo.core.runtime import Runtime, run
from cogo.core.settings import Secret


async def test_a_dead_holders_messages_come_back_after_its_lease(bus: Bus, dsn: str) -> None:
    dead = await Hand(bus, "dead").register(lease_ms=20_000)
    alive = await Hand(bus, "alive").register(lease_ms=3_600_000)
    await policy(bus, "t/echo", events="echo")
    ids = await bus.enqueue_many("t/echo", [{}, {}])
    (lost,) = await dead.claim("t/echo", 1, timeout_ms=900_000)
    (kept,) = await alive.claim("t/echo", 1, timeout_ms=900_000)
    async with shifted(dsn, "19 s") as early, shifted(dsn, "21 s") as late:
        assert await reclaim(early) == []
        assert await reclaim(late) == [(ids[0], "queued", "claim_lost: the lease of dead ended")]
        assert await reclaim(late) == []
        (again,) = await Hand(late, "other").claim("t/echo")
    assert (again.id, again.attempts) == (lost.id, 2)
    assert again.fence > lost.fence
    assert await dead.finish(lost) is None
    assert await alive.finish(kept) == "done"
    assert await kinds(bus) == ["echo_retry", "echo_done"]


async def test_a_beat_keeps_the_lease_and_leaving_ends_it(bus: Bus, dsn: str) -> None:
    hand = await Hand(bus).register(lease_ms=20_000)
    await bus.enqueue("t/echo", {})
    await hand.claim("t/echo", timeout_ms=900_000)
    async with shifted(dsn, "15 s") as later:
        assert await later.db.fetch_value("SELECT cogo.beat(%s, 20000)", (hand.epoch,))
    async with shifted(dsn, "30 s") as later:
        assert await reclaim(later) == []
        await later.db.execute("SELECT cogo.leave(%s)", (hand.epoch,))
        assert [found[1] for found in await reclaim(later)] == ["queued"]
    assert not await bus.db.fetch_value("SELECT cogo.beat(%s, 20000)", (hand.epoch + 99,))


async def test_out_of_attempts_is_poison(bus: Bus, dsn: str) -> None:
    await policy(bus, "t/echo", max_attempts=3)
    id = await bus.enqueue("t/echo", {})
    for attempt in (1, 2, 3):
        hand = await Hand(bus, f"box-{attempt}").register(lease_ms=0)
        assert len(await hand.claim("t/echo")) == 1
        ((_, status, _),) = await reclaim(bus)
        assert status == ("failed" if attempt == 3 else "queued")
    found = await row(bus, id)
    assert found["error"].startswith("poison: all attempts used up; the last one ended as claim_lost")
    assert (found["fence"], found["claimed_by"], found["done_at"] is not None) == (0, "box-3", True)
    assert await kinds(bus) == ["t_failed"]
    assert await counts(bus) == {"retry": 2, "failed": 1}


async def test_nobody_is_reclaimed_by_lease_right_after_postgres_started(bus: Bus) -> None:
    """Every process must have had the time to beat again; a deadline counts all the same."""
    hand = await Hand(bus).register(lease_ms=0)
    await bus.enqueue_many("t/echo", [{}, {}])
    await hand.claim("t/echo", 1, timeout_ms=900_000)
    since_start = await bus.db.fetch_value(
        "SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float8 * 1000"
    )
    assert await reclaim(bus, lease_ms=int(since_start) + 60_000) == []
    assert [found[1] for found in await reclaim(bus, lease_ms=int(since_start) - 1)] == ["queued"]


async def test_reclaiming_is_bounded_and_goes_on_where_it_stopped(bus: Bus) -> None:
    hand = await Hand(bus).register(lease_ms=0)
    ids = await bus.enqueue_many("t/echo", [{} for _ in range(25)])
    assert len(await hand.claim("t/echo", 25)) == 25
    found = [await bus.db.fetch("SELECT id FROM cogo.reclaim(10, 0, 900000)") for _ in range(4)]
    assert [len(rows) for rows in found] == [10, 10, 5, 0]
    assert [entry["id"] for rows in found for entry in rows] == ids


async def test_two_reclaimers_never_meet(bus: Bus) -> None:
    """One active at a time: the other one's round does nothing, and does not wait."""
    settings = cogo.Settings(lease_ms=0)
    hand = await Hand(bus).register(lease_ms=0)
    await bus.enqueue("t/echo", {})
    await hand.claim("t/echo")
    async with bus.db.transaction() as conn:
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('cogo.reclaim', 0))")
        assert await upkeep.reclaim_once(bus, settings) == 0
    assert await upkeep.reclaim_once(bus, settings) == 1


async def test_claims_whose_answer_was_lost_are_given_back_uncounted(bus: Bus, dsn: str) -> None:
    hand = await Hand(bus).register(lease_ms=3_600_000)
    twin = await Hand(bus).register(lease_ms=3_600_000)
    ids = await bus.enqueue_many("t/echo", [{} for _ in range(4)])
    lost, known, done = await hand.claim("t/echo", 3)
    (other,) = await twin.claim("t/echo")
    await hand.finish(done)
    give_back = functools.partial(_give_back, hand, [known.fence])
    assert await give_back(bus) == 0, "a young claim may be on its way to its holder"
    async with shifted(dsn, "6 s") as later:
        assert await give_back(later) == 1
    rows = {id: await row(bus, id) for id in ids}
    assert [rows[id]["status"] for id in ids] == ["queued", "claimed", "done", "claimed"]
    assert (rows[lost.id]["attempts"], rows[lost.id]["fence"]) == (0, 0)
    assert await twin.finish(other) == "done", "the same HOLDER_ID, another process"


async def _give_back(hand: Hand, known: list[int], bus: Bus) -> int:
    return await bus.give_back(hand.holder, hand.epoch, known, 5_000)


async def test_a_process_reclaims_what_a_dead_one_held(dsn: str, bus: Bus) -> None:
    """Every process that consumes does the upkeep, without any role for it."""
    dead = await Hand(bus, "dead").register(lease_ms=400)
    id = await bus.enqueue("t/echo", {})
    (zombie,) = await dead.claim("t/echo", timeout_ms=900_000)

    async def echo(task: dict[str, Any], ctx: cogo.Context) -> int:
        return ctx.attempt

    async with process(dsn, [cogo.Role("t", "echo", handle=echo)]) as runtime:
        assert runtime.epoch > dead.epoch
        assert (await bus.result(id, timeout_s=10)).value == 2
    assert await dead.finish(zombie, snippet='"zombie"') is None
    assert (await bus.result(id)).value == 2


@pytest.mark.parametrize("how", ["holder row is gone", "beats are blocked"])
async def test_a_lost_lease_stops_the_handlers_and_nothing_stale_is_accepted(
    dsn: str, bus: Bus, how: str
) -> None:
    """The message is worked on again, by whoever has a lease, and only that answer counts."""
    running, stopped = anyio.Event(), anyio.Event()

    async def work(task: dict[str, Any], ctx: cogo.Context) -> int:
        if not running.is_set():
            running.set()
            try:
                await anyio.sleep_forever()
            finally:
                stopped.set()
        return ctx.message.fence

    async with process(dsn, [cogo.Role("t", "work", handle=work)]) as runtime:
        id = await bus.enqueue("t/work", {})
        with anyio.fail_after(10):
            await running.wait()
            first = (await row(bus, id))["fence"]
            if how == "holder row is gone":
                epoch = runtime.epoch
                await bus.db.execute("DELETE FROM cogo.bus_holders")
                await stopped.wait()
                await eventually_async(lambda: runtime.epoch > epoch)
            else:
                async with bus.db.transaction() as conn:
                    await conn.execute("LOCK TABLE cogo.bus_holders IN ACCESS EXCLUSIVE MODE")
                    await stopped.wait()
                    assert not runtime.lease.stands
                    assert not runtime.health().ready
        result = await bus.result(id, timeout_s=10)
        assert result.value > first
        await eventually_async(lambda: runtime.health().ready)
    assert await bus.db.fetch("SELECT DISTINCT status FROM public.agent_messages") == [{"status": "done"}]


async def test_the_handlers_stop_before_the_lease_ends(dsn: str, bus: Bus) -> None:
    """The local deadline is 65 % of the lease, counted from before the last accepted beat was sent."""
    lost = anyio.Event()
    left_s: list[float] = []
    lease = Lease(dsn, "test:lease", holder="box", roles=[], lanes=[], beat_ms=400, lease_ms=2_000, detail={})

    def note() -> None:
        left_s.append(lease_until - time.monotonic())
        lost.set()

    lease.on_lost = note
    lease_until = time.monotonic() + 2.0
    await lease.register()
    async with anyio.create_task_group() as tasks, bus.db.transaction() as conn:
        await conn.execute("LOCK TABLE cogo.bus_holders IN ACCESS EXCLUSIVE MODE")
        tasks.start_soon(lease.run)
        with anyio.fail_after(10):
            await lost.wait()
        tasks.cancel_scope.cancel()
    await lease.leave()
    assert left_s[0] > 0.2, "others may take the messages when the lease ends, not before"


async def test_a_stop_of_the_whole_process_counts_as_a_loss(dsn: str) -> None:
    """SIGSTOP, a frozen machine: the first beat after it succeeds, but the claims may be somebody else's."""
    lost = anyio.Event()
    lease = Lease(dsn, "test:lease", holder="box", roles=[], lanes=[], beat_ms=50, lease_ms=20_000, detail={})
    lease.on_lost = lost.set
    await lease.register()
    term = lease.term
    lease.deadline = time.monotonic() - 40.0  # what the clock says after the stop
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.run)
        with anyio.fail_after(10):
            await lost.wait()
            await eventually_async(lambda: lease.stands)
        tasks.cancel_scope.cancel()
    assert lease.term != term
    await lease.leave()


async def test_no_beat_comes_after_the_process_has_left(dsn: str, bus: Bus) -> None:
    lease = Lease(dsn, "test:lease", holder="box", roles=[], lanes=[], beat_ms=10, lease_ms=20_000, detail={})
    await lease.register()
    alive = "SELECT count(*) FROM cogo.bus_holders WHERE lease_until > cogo.now()"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.run)
        assert await bus.db.fetch_value(alive) == 1
        await lease.leave()
        with anyio.fail_after(5):
            while tasks._tasks:  # the loop ends by itself
                await anyio.lowlevel.checkpoint()
    assert await bus.db.fetch_value(alive) == 0
    assert not lease.stands


async def test_twins_are_legal(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (
        Lease(dsn, "test:lease", holder="same", roles=[], lanes=[], beat_ms=400, lease_ms=2_000, detail={})
        for _ in range(2)
    )
    await first.register()
    assert "holder.twin" not in caplog.text
    await second.register()
    assert first.epoch != second.epoch
    assert "holder.twin" in caplog.text
    await first.leave()
    await second.leave()


async def test_a_process_that_crashes_leaves_too(dsn: str, bus: Bus) -> None:
    """Others take up its messages at once, not when the lease would have ended."""
    running = anyio.Event()

    async def work(task: dict[str, Any], ctx: cogo.Context) -> None:
        running.set()
        await anyio.sleep_forever()

    async def broken(runtime: Runtime) -> None:
        await running.wait()
        raise SystemError("a bug that nothing catches")

    async def service(runtime: Runtime, tasks: TaskGroup) -> dict[str, Any]:
        tasks.start_soon(broken, runtime)
        return {}

    settings = msgspec.structs.replace(fast_settings(lease_ms=60_000).settings, database_url=Secret(dsn))
    await bus.enqueue("t/work", {})
    with pytest.RaisesGroup(SystemError, flatten_subgroups=True):
        await run(settings, inline=[cogo.Role("t", "work", handle=work)], services=[service], signals=False)
    assert await bus.db.fetch("SELECT FROM cogo.bus_holders WHERE lease_until > now()") == []
    assert [status for _, status, _ in await reclaim(bus)] in (["queued"], [])
    assert await bus.db.fetch_value("SELECT status FROM public.agent_messages") == "queued"
