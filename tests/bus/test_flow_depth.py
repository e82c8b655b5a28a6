"""Proves backpressure: how deep a lane is, counted within a bound, and senders who stop when it is deep enough."""

from __future__ import annotations

from typing import Any

import pytest
from hands import Hand, process
from helpers import eventually_async
from plans import touched

import cogo
from cogo.core.bus import Bus
from cogo.core.errors import LaneFull
from cogo.core.model import Lane

LANE = "t/echo"


async def test_depth_counts_what_waits_and_no_further_than_asked(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await bus.enqueue_many(LANE, [{} for _ in range(7)])
    await bus.enqueue_many(f"{LANE}/3@acme", [{} for _ in range(2)])
    await bus.enqueue("t/other", {})
    assert await bus.depth(LANE) == 7
    assert await bus.depth(Lane("t", "echo", 3)) == 2
    assert await bus.depth(LANE, at_most=5) == 5
    assert await bus.depth("t/nothing") == 0
    first, second, *_ = await hand.claim(LANE, 3)
    assert await bus.depth(LANE) == 4
    await hand.finish(first)
    await hand.finish(second, "retry", error="x: y", retry_ms=60_000)
    assert await bus.depth(LANE) == 5, "what waits for its next attempt waits as well"
    for _ in range(3):
        await bus.enqueue(LANE, {}, ordering_key="k")
    assert await bus.depth(LANE) == 8, "and what waits behind its key"
    assert await bus.db.fetch_value("SELECT cogo.depth('t', 'echo', NULL, 1000)") == 10, "over all shards"


async def test_a_bounded_count_has_a_bounded_cost(bus: Bus) -> None:
    cost = []
    for count in (200, 20_000):
        await bus.db.execute(
            "INSERT INTO public.agent_messages (service, role) SELECT 't', 'echo' FROM generate_series(1, %s)",
            (count,),
        )
        ((_, pages),) = await touched(bus.db, "SELECT cogo.depth('t', 'echo', 0, 100)")
        cost.append(pages)
    assert cost[1] < 2 * cost[0] + 20, cost


async def test_a_sender_with_a_bound_stops_at_it(bus: Bus) -> None:
    for _ in range(3):
        await bus.enqueue(LANE, {}, max_depth=3)
    with pytest.raises(LaneFull, match="3 or more messages wait in t/echo/0") as caught:
        await bus.enqueue(LANE, {}, max_depth=3)
    assert (caught.value.code, caught.value.status, caught.value.extra) == (
        "lane_full",
        429,
        {"retry_after_s": 1},
    )
    await bus.enqueue(f"{LANE}/1", {}, max_depth=3)
    await bus.enqueue(LANE, {})
    with pytest.raises(LaneFull):
        await bus.enqueue_many(LANE, [{}, {}], max_depth=4)
    await bus.enqueue_many(LANE, [{}, {}], max_depth=5)
    assert await bus.depth(LANE) == 6


async def test_room_is_noticed_soon(bus: Bus) -> None:
    await bus.enqueue(LANE, {}, max_depth=1)
    with pytest.raises(LaneFull):
        await bus.enqueue(LANE, {}, max_depth=1)
    (message,) = await (await Hand(bus).register()).claim(LANE)

    async def sent() -> bool:
        try:
            await bus.enqueue(LANE, {}, max_depth=1)
        except LaneFull:
            return False
        return True

    await eventually_async(sent, timeout_s=5)
    assert message.id == 1


async def test_the_table_is_looked_at_once_a_second_at_most(bus: Bus) -> None:
    """A thousand sends with a bound are a thousand inserts and some looks; others' messages show late."""
    looks = 0
    real = bus.depth

    async def counted(*args: Any, **options: Any) -> int:
        nonlocal looks
        looks += 1
        return await real(*args, **options)

    bus.depth = counted  # type: ignore[method-assign]
    for _ in range(300):
        await bus.enqueue(LANE, {}, max_depth=10_000)
    assert looks <= 6


async def test_a_handler_that_meets_a_full_lane_is_tried_again(dsn: str, bus: Bus) -> None:
    """LaneFull is no fault of the message."""

    async def spread(task: dict[str, Any], ctx: cogo.Context) -> None:
        await bus.enqueue("t/slow", {}, max_depth=1)

    await bus.enqueue("t/slow", {})
    role = cogo.Role("t", "echo", handle=spread, backoff_base_s=0.05, backoff_cap_s=0.1, max_attempts=100)
    async with process(dsn, [role]):
        id = await bus.enqueue(LANE, {})
        await eventually_async(lambda: failed_once(bus, id))
        (message,) = await (await Hand(bus).register()).claim("t/slow")
        assert (await bus.result(id, timeout_s=10)).status == "done"
    assert message.attempts == 1


async def failed_once(bus: Bus, id: int) -> bool:
    error = (await bus.message(id))["error"] or ""
    return str(error).startswith("lane_full: ")
