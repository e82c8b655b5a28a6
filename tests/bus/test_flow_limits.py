"""Proves limits of what runs, per role and per tenant over all processes: never exceeded, and soon used again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import pytest
from hands import Hand, policy, process, reclaim, update
from helpers import eventually_async

import cogo
from cogo.core.bus import Bus
from cogo.core.db import connect
from cogo.core.model import Lane, Message
from cogo.core.operate import make_lane_indexes
from cogo.core.registry import Registry
from cogo.core.settings import Settings

LANE = "t/echo"


async def limit(bus: Bus, *, indexed: bool, fair: bool = False, **limits: int) -> None:
    """The lane's policy, with or without the indexes that a process would make."""
    await policy(bus, LANE, fair=fair, limits=cogo.Json(limits))
    if indexed:
        assert await make_lane_indexes(bus.db, "t", "echo")


async def send(bus: Bus, tenants: str, each: int, shard: int = 0) -> None:
    for tenant in tenants.split():
        await bus.enqueue_many(f"{LANE}/{shard}@{tenant}", [{} for _ in range(each)])


@pytest.mark.parametrize("indexed", [True, False])
async def test_a_role_runs_no_more_than_its_limit(bus: Bus, indexed: bool) -> None:
    hand = await Hand(bus).register()
    await limit(bus, indexed=indexed, max_running=5)
    await send(bus, "acme beta", 10)
    first = await hand.claim(LANE, 3)
    assert len(first) == 3
    rest = await hand.claim(LANE, 10)
    assert len(rest) == 2
    assert await hand.claim(LANE, 10) == []
    await hand.finish(first[0])
    await hand.finish(first[1], "retry", error="x: y", retry_ms=60_000)
    assert len(await hand.claim(LANE, 10)) == 2


@pytest.mark.parametrize("indexed", [True, False])
async def test_a_tenant_runs_no_more_than_its_limit(bus: Bus, indexed: bool) -> None:
    """Over all shards; the others go on; without a bound for the role they fill the batch."""
    hand = await Hand(bus).register()
    await limit(bus, indexed=indexed, max_running_per_tenant=2)
    await send(bus, "acme", 10)
    await send(bus, "beta gamma", 1)
    await send(bus, "acme", 10, shard=1)
    first = await hand.claim(LANE, 10)
    assert Counter(message.key.tenant for message in first) == {"acme": 2, "beta": 1, "gamma": 1}
    assert await hand.claim(f"{LANE}/1", 10) == []
    acme = next(message for message in first if message.key.tenant == "acme")
    await hand.finish(acme)
    (message,) = await hand.claim(f"{LANE}/1", 10)
    assert message.key.tenant == "acme"


@pytest.mark.parametrize("indexed", [True, False])
async def test_both_limits_and_the_order_within_a_tenant(bus: Bus, indexed: bool) -> None:
    hand = await Hand(bus).register()
    await limit(bus, indexed=indexed, max_running=4, max_running_per_tenant=3)
    await send(bus, "acme", 6)
    await send(bus, "beta", 6)
    ids: list[int] = []
    while messages := await hand.claim(LANE, 10):
        counts = Counter(message.key.tenant for message in messages)
        assert sum(counts.values()) <= 4
        assert max(counts.values()) <= 3
        for message in messages:
            ids.append(message.id)
            await hand.finish(message)
    assert sorted(ids) == list(range(1, 13))
    for start in (1, 7):
        own = [id for id in ids if start <= id < start + 6]
        assert own == sorted(own)


@pytest.mark.parametrize("limits", [{"max_running": 4}, {"max_running_per_tenant": 2},
                                    {"max_running": 6, "max_running_per_tenant": 2}], ids=str)  # fmt: skip
@pytest.mark.parametrize("indexed", [True, False])
async def test_claimers_at_once_never_exceed_them(bus: Bus, limits: dict[str, int], indexed: bool) -> None:
    """Six holders claim from two shards and hold what they get; nobody ever sees too many at work."""
    await limit(bus, indexed=indexed, **limits)
    for shard in (0, 1):
        await send(bus, "acme beta gamma", 8, shard)
    running: Counter[str] = Counter()
    peak: Counter[str] = Counter()
    left = 48

    async def work(hand: Hand, messages: list[Message]) -> None:
        nonlocal left
        running.update(message.key.tenant for message in messages)
        peak["all"] = max(peak["all"], running.total())
        peak["one"] = max(peak["one"], *running.values())
        await bus.db.fetch_value("SELECT pg_sleep(0.003)")
        for message in messages:
            running[message.key.tenant] -= 1
            left -= 1
            await hand.finish(message)

    async def consume(hand: Hand, shard: int) -> None:
        while left:
            if messages := await hand.claim(f"{LANE}/{shard}", 3):
                await work(hand, messages)

    with anyio.fail_after(15):
        async with anyio.create_task_group() as tasks:
            for n in range(6):
                tasks.start_soon(consume, await Hand(bus, f"box-{n}").register(), n % 2)
    assert peak["all"] <= limits.get("max_running", 6)
    assert peak["one"] <= limits.get("max_running_per_tenant", 6)
    assert peak["all"] > 1, "they did work at the same time"


async def test_processes_share_a_limit_and_use_every_slot_at_once(dsn: str, bus: Bus) -> None:
    """Two processes with polls of a minute: each end of a message wakes whoever waits for the slot."""
    running, peak = 0, 0

    async def handle(task: dict[str, Any], ctx: cogo.Context) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await ctx.db.fetch_value("SELECT pg_sleep(0.01)")
        running -= 1

    role = cogo.Role("t", "echo", handle=handle, concurrency=4, max_running=3)
    async with process(dsn, [role], poll_ms=60_000), process(dsn, [role], poll_ms=60_000):
        assert (await bus.lanes())[0]["limits"] == {"max_running": 3}
        ids = await bus.enqueue_many(LANE, [{} for _ in range(40)])
        for id in ids:
            assert (await bus.result(id, timeout_s=10)).status == "done"
    assert 1 < peak <= 3


@pytest.mark.parametrize("way", ["cancel", "lease", "update"])
async def test_a_slot_that_becomes_free_in_any_other_way(dsn: str, bus: Bus, way: str) -> None:
    """Cancelled, reclaimed as poison or ended by an outsider: the next one starts within a second or two."""
    hand = await Hand(bus).register()
    done: list[int] = []

    async def handle(task: dict[str, Any], ctx: cogo.Context) -> None:
        done.append(ctx.message_id)

    role = cogo.Role("t", "echo", handle=handle, max_running=1)
    await limit(bus, indexed=False, max_running=1)
    first = await bus.enqueue(LANE, {})
    (message,) = await hand.claim(LANE)
    async with process(dsn, [role], poll_ms=60_000):
        second = await bus.enqueue(LANE, {})
        await eventually_async(lambda: bus.db.fetch_value("SELECT count(*) = 1 FROM cogo.bus_idle"))
        assert done == []
        match way:
            case "cancel":
                await bus.cancel(first, actor="test")
            case "update":
                await update(bus, first, status="done")
            case "lease":
                await update(bus, first, attempts=5)
                sql = "UPDATE cogo.bus_holders SET lease_until = now() - interval '1 s' WHERE epoch = %s"
                await bus.db.execute(sql, (hand.epoch,))
                await eventually_async(lambda: reclaim(bus))
        assert (await bus.result(second, timeout_s=8)).status == "done"
    assert message.id not in done


async def test_who_waits_for_a_slot_looks_again_by_itself(bus: Bus) -> None:
    """Not every way in which a slot becomes free wakes somebody: an empty claim says when to look."""
    hand = await Hand(bus).register()
    await limit(bus, indexed=True, max_running=1)
    await send(bus, "acme", 2)
    (message,) = await hand.claim(LANE)
    found = await bus.claim(message.key.lane, 5, holder="hand", epoch=1, timeout_ms=1_000)
    assert (found.messages, found.due_s) == ([], 1.0)
    empty = await bus.claim(Lane("t", "echo", 1), 5, holder="hand", epoch=1, timeout_ms=1_000)
    assert (empty.messages, empty.due_s) == ([], None), "where nothing waits nobody looks"


@pytest.mark.parametrize("limits", [{"max_running": 1}, {}], ids=["limited", "not limited"])
async def test_a_finish_wakes_who_waits_for_the_slot(dsn: str, bus: Bus, limits: dict[str, int]) -> None:
    """On every shard, since the limit is the role's; a lane without limits is left asleep."""
    hand = await Hand(bus).register()
    await limit(bus, indexed=False, **limits)
    await send(bus, "acme", 1)
    (message,) = await hand.claim(LANE)
    await bus.sleep_on([Lane("t", "echo", 0), Lane("t", "echo", 3), Lane("t", "other", 0)], hand.epoch)
    async with await connect(dsn, "listener") as conn:
        await conn.execute("LISTEN cogo")
        await hand.finish(message)
        await bus.db.execute("NOTIFY cogo, 'end'")
        heard = []
        async for note in conn.notifies(timeout=10):
            heard.append(note.payload)
            if note.payload == "end":
                break
    assert heard == [*(["lane:t/echo/0", "lane:t/echo/3"] if limits else []), "end"]


async def test_limits_and_ordering_keys_together(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await limit(bus, indexed=True, max_running_per_tenant=2)
    keyed = [await bus.enqueue(f"{LANE}@acme", {}, ordering_key=key) for key in ("a", "a", "b", "c")]
    first = await hand.claim(LANE)
    assert [message.id for message in first] == [keyed[0], keyed[2]]
    await hand.finish(first[1])
    (third,) = await hand.claim(LANE)
    assert third.id == keyed[3]
    await hand.finish(first[0])
    assert [message.id for message in await hand.claim(LANE)] == [keyed[1]]


async def test_an_expired_message_takes_no_slot(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await limit(bus, indexed=True, fair=True, max_running=1)
    gone = await bus.enqueue(LANE, {}, ttl_ms=1)
    await eventually_async(
        lambda: bus.db.fetch_value(
            "SELECT expires_at < now() FROM public.agent_messages WHERE id = %s", (gone,)
        )
    )
    id = await bus.enqueue(LANE, {})
    assert [message.id for message in await hand.claim(LANE)] == [id]


@pytest.mark.parametrize("wrong", [{"max_running": 0}, {"max_running_per_tenant": 0}])
def test_a_limit_is_at_least_one(wrong: dict[str, int]) -> None:
    async def handle(task: dict[str, Any], ctx: cogo.Context) -> None: ...

    with pytest.raises(cogo.errors.PluginFailed, match="at least 1"):
        Registry.load(Settings(), [cogo.Role("t", "echo", handle=handle, **wrong)])
