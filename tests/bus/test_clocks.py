"""Proves the two clocks, both the database's: ttl over all hops, deadline of an attempt."""

from __future__ import annotations

import time
from typing import Any

import anyio
from hands import Hand, child, insert, kinds, policy, process, reclaim, row, shifted

import cogo
from cogo.core.bus import Bus


async def test_ttl_holds_over_all_hops_and_attempts(bus: Bus) -> None:
    hand = await Hand(bus).register()
    root = await bus.enqueue("t/root", {}, ttl_ms=60_000)
    (message,) = await hand.claim("t/root")
    longer = child("t/leaf", b'{"__assignment": {"ttl_ms": 3600000}}', ttl_ms=7_200_000)
    shorter = child("t/side", delegate=False, ttl_ms=5_000)
    await hand.finish(message, "delegated", follow_ups=[longer, shorter])
    (leaf,), (side,) = await hand.claim("t/leaf"), await hand.claim("t/side")
    expires = (await row(bus, root))["expires_at"]
    assert (await row(bus, leaf.id))["expires_at"] == expires
    assert 4 < (side.expires_in_s or 0) <= 5
    await hand.finish(leaf, "retry", error="x: y", retry_ms=0)
    assert (await row(bus, leaf.id))["expires_at"] == expires


async def test_expiry_fails_every_living_state_once(bus: Bus, dsn: str) -> None:
    await policy(bus, "t/echo", events="echo")
    hand = await Hand(bus).register()
    queued, claimed, retried = [await bus.enqueue("t/echo", {}, ttl_ms=60_000, priority=p) for p in (2, 0, 1)]
    (message,) = await hand.claim("t/echo", 1)
    assert message.id == claimed
    (message,) = await hand.claim("t/echo", 1)
    await hand.finish(message, "retry", error="x: y", retry_ms=1)
    forever = await insert(bus, "t/echo")
    async with shifted(dsn, "60 s") as later:
        assert await later.db.fetch_value("SELECT cogo.expire(100)") == 3
        assert await later.db.fetch_value("SELECT cogo.expire(100)") == 0
    for id, was in ((queued, "queued"), (claimed, "claimed"), (retried, "queued")):
        found = await row(bus, id)
        assert (found["status"], found["fence"], found["retry_at"]) == ("failed", 0, None)
        assert found["error"] == f"ttl_expired: the time to live ran out while the message was {was}"
    assert (await row(bus, forever))["status"] == "queued"
    assert (await kinds(bus)).count("echo_failed") == 3


async def test_only_the_holders_of_running_messages_are_told_of_expiry(bus: Bus, dsn: str) -> None:
    hand = await Hand(bus).register()
    ids = await bus.enqueue("t/echo", {}, ttl_ms=1_000), await bus.enqueue("t/echo", {}, ttl_ms=1_000)
    (running,) = await hand.claim("t/echo", 1)
    async with bus.db.connection() as conn:
        await conn.execute("LISTEN cogo")
        async with shifted(dsn, "2 s") as later:
            assert await later.db.fetch_value("SELECT cogo.expire(100)") == len(ids)
        heard = [note.payload async for note in conn.notifies(timeout=2.0, stop_after=1)]
        heard += [note.payload async for note in conn.notifies(timeout=0.0)]
        await conn.execute("UNLISTEN cogo")
    assert heard == [f"cancel:{running.id}"]


async def test_an_attempt_past_its_deadline_is_taken_back(bus: Bus, dsn: str) -> None:
    """Two seconds late, because its holder says so with a better word, if it lives."""
    hand = await Hand(bus).register(lease_ms=3_600_000)
    id = await bus.enqueue("t/echo", {})
    (message,) = await hand.claim("t/echo", timeout_ms=10_000)
    async with shifted(dsn, "11 s") as due, shifted(dsn, "13 s") as late:
        assert await reclaim(due) == []
        ((found, status, why),) = await reclaim(late)
    assert (found, status) == (id, "queued")
    assert why.startswith("handler_timeout: ")
    assert await hand.finish(message) is None


async def test_extend_moves_the_deadline_but_never_past_the_ttl(bus: Bus, dsn: str) -> None:
    hand = await Hand(bus).register(lease_ms=3_600_000)
    id = await bus.enqueue("t/echo", {}, ttl_ms=60_000)
    (message,) = await hand.claim("t/echo", timeout_ms=5_000)
    assert await bus.extend(id, message.fence, 20.0)
    async with shifted(dsn, "15 s") as later:
        assert await reclaim(later) == []
    assert await bus.extend(id, message.fence, 3_600.0)
    found = await row(bus, id)
    assert found["deadline_at"] == found["expires_at"]
    assert not await bus.extend(id, message.fence + 1, 20.0)
    await hand.finish(message)
    assert not await bus.extend(id, message.fence, 20.0)


async def test_a_handler_past_its_deadline_is_stopped_and_tried_again(dsn: str) -> None:
    stopped: list[int] = []

    async def slow(task: dict[str, Any], ctx: cogo.Context) -> str:
        try:
            if ctx.attempt == 1:
                await anyio.sleep_forever()
        finally:
            stopped.append(ctx.attempt)
        return "second"

    roles = [cogo.Role("t", "slow", handle=slow, timeout_s=0.3, backoff_base_s=0.01, events="slow")]
    async with process(dsn, roles) as runtime:
        id = await runtime.bus.enqueue("t/slow", {})
        result = await runtime.bus.result(id, timeout_s=15)
        assert (result.status, result.value, result.attempts) == ("done", "second", 2)
        assert stopped == [1, 2]
        events = await runtime.bus.db.fetch("SELECT kind, detail FROM public.bus_events ORDER BY id")
        assert [event["kind"] for event in events] == ["slow_retry", "slow_done"]
        assert events[0]["detail"]["error"].startswith("handler_timeout: ")


async def test_a_handler_at_the_end_of_the_ttl_fails_for_good(dsn: str) -> None:
    async def slow(task: dict[str, Any], ctx: cogo.Context) -> None:
        await ctx.extend(600)  # to the ttl, not past it
        await anyio.sleep_forever()

    roles = [cogo.Role("t", "slow", handle=slow, timeout_s=1.0, events="slow")]
    async with process(dsn, roles) as runtime:
        id = await runtime.bus.enqueue("t/slow", {}, ttl_ms=1_500)
        result = await runtime.bus.result(id, timeout_s=15)
        assert (result.status, result.attempts) == ("failed", 1)
        assert (result.error or "").startswith("ttl_expired: ")
        assert await kinds(runtime.bus) == ["slow_failed"]


async def test_extend_keeps_a_handler_running(dsn: str) -> None:
    async def patient(task: dict[str, Any], ctx: cogo.Context) -> bool:
        assert ctx.deadline is not None
        first = ctx.deadline
        await ctx.extend(20)
        await anyio.sleep_until(anyio.current_time() + first - time.monotonic() + 0.1)
        return ctx.deadline > first + 10

    roles = [cogo.Role("t", "patient", handle=patient, timeout_s=1.0)]
    async with process(dsn, roles) as runtime:
        result = await runtime.bus.result(await runtime.bus.enqueue("t/patient", {}))
        assert (result.status, result.value, result.attempts) == ("done", True, 1)
