"""Proves strict order per ordering key: one at a time, first come first served, whatever happens to the first."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from typing import Any

import anyio
import psycopg
import pytest
from hands import Hand, child, insert, process, reclaim, row, shifted, update
from helpers import eventually_async
from plans import touched

import cogo
from cogo.core import upkeep
from cogo.core.bus import Bus
from cogo.core.db import Database, connect
from cogo.core.errors import Invalid
from cogo.core.model import Lane, Message
from cogo.core.settings import Settings

LANE = "t/echo@acme"


async def keyed(bus: Bus, count: int, key: str = "k", lane: str = LANE, **options: Any) -> list[int]:
    """Messages of one key, each in a transaction of its own."""
    return [await bus.enqueue(lane, {"n": n}, ordering_key=key, **options) for n in range(count)]


async def in_turn(hand: Hand, lane: str = "t/echo") -> list[int]:
    """Claim and finish until nothing comes any more; the ids in order."""
    ids: list[int] = []
    while messages := await hand.claim(lane, 10):
        for message in messages:
            ids.append(message.id)
            await hand.finish(message)
    return ids


async def test_one_at_a_time_and_in_order(bus: Bus) -> None:
    hand = await Hand(bus).register()
    ids = await keyed(bus, 4)
    assert ids == sorted(ids)
    (first,) = await hand.claim("t/echo")
    assert first.id == ids[0]
    assert await hand.claim("t/echo") == []
    await hand.finish(first)
    assert await in_turn(hand) == ids[1:]


async def test_other_keys_tenants_roles_and_messages_without_a_key_go_on(bus: Bus) -> None:
    hand = await Hand(bus).register()
    ids = [(await keyed(bus, 2, key, lane))[0] for key, lane in
           [("k", LANE), ("other", LANE), ("k", "t/echo@beta"), ("k", "t/echo/1@acme")]]  # fmt: skip
    role = (await keyed(bus, 2, "k", "t/role@acme"))[0]
    free = await bus.enqueue_many(LANE, [{}, {}])
    found = {message.id for message in await hand.claim("t/echo")}
    assert found == {*ids[:3], *free}
    # A key is the tenant's within the whole role, over all shards.
    assert await hand.claim("t/echo/1") == []
    assert [message.id for message in await hand.claim("t/role")] == [role]


@pytest.mark.parametrize("way", ["retry", "released", "lease", "waiting"])
async def test_a_first_one_that_has_not_ended_blocks(bus: Bus, way: str) -> None:
    """In backoff, given back, reclaimed or waiting for an answer: the second stays behind it."""
    hand = await Hand(bus).register()
    ids = await keyed(bus, 3)
    (first,) = await hand.claim("t/echo")
    match way:
        case "retry":
            await hand.finish(first, "retry", error="x: y", retry_ms=60_000)
        case "released":
            await hand.finish(first, "released")
        case "lease":
            await bus.db.execute("UPDATE cogo.bus_holders SET lease_until = now() - interval '1 s'")
            assert len(await reclaim(bus)) == 1
        case "waiting":
            await hand.finish(first, "delegated", follow_ups=(child("t/answer@acme"),))
    assert {message.id for message in await hand.claim("t/echo")} <= {ids[0]}
    if way == "waiting":
        (answer,) = await hand.claim("t/answer")
        await hand.finish(answer)
        assert await in_turn(hand) == ids[1:]


@pytest.mark.parametrize("way", ["done", "failed", "cancel", "ttl", "update", "delete", "poison"])
async def test_every_end_lets_the_next_one_through(bus: Bus, dsn: str, way: str) -> None:
    hand = await Hand(bus).register()
    first = await bus.enqueue(LANE, {}, ordering_key="k", ttl_ms=60_000)
    ids = await keyed(bus, 2)
    (claimed,) = await hand.claim("t/echo")
    assert claimed.id == first
    match way:
        case "done" | "failed":
            await hand.finish(claimed, way, error=None if way == "done" else "x: y")
        case "cancel":
            await bus.cancel(first, actor="test")
        case "ttl":
            async with shifted(dsn, "61 s") as later:
                assert await later.db.fetch_value("SELECT cogo.expire(10)") == 1
        case "update":
            await update(bus, first, status="done")
        case "delete":
            await bus.db.execute("DELETE FROM public.agent_messages WHERE id = %s", (first,))
        case "poison":
            await update(bus, first, attempts=5)
            await bus.db.execute("UPDATE cogo.bus_holders SET lease_until = now() - interval '1 s'")
            assert [found[1] for found in await reclaim(bus)] == ["failed"]
    assert await in_turn(hand) == ids


async def test_those_behind_may_end_in_any_order(bus: Bus) -> None:
    """Cancelled, expired or deleted while they wait: the rest keep their order, the first its turn."""
    hand = await Hand(bus).register()
    ids = await keyed(bus, 6)
    await bus.cancel(ids[2], actor="test")
    await update(bus, ids[1], status="failed", error="by hand")
    await bus.db.execute("DELETE FROM public.agent_messages WHERE id = %s", (ids[4],))
    assert await in_turn(hand) == [ids[0], ids[3], ids[5]]


async def test_an_outsider_that_respects_retry_at_keeps_the_order(bus: Bus) -> None:
    """A foreign worker's usual SELECT finds the first of the key only; plain INSERT and COPY are in order."""
    sql = "INSERT INTO public.agent_messages (service, role, ordering_key) SELECT 't','echo','k' FROM generate_series(1,3)"
    await bus.db.execute(sql)
    rows = [("t", "echo", "k"), ("t", "echo", None)]
    await bus.db.copy_in("COPY public.agent_messages (service, role, ordering_key) FROM STDIN", rows)
    due = """SELECT id FROM public.agent_messages WHERE status = 'queued' AND ordering_key IS NOT NULL
             AND (retry_at IS NULL OR retry_at <= now())"""
    for _ in range(4):
        (found,) = await bus.db.fetch(due)
        await update(bus, found["id"], status="claimed", claimed_by="somebody")
        assert await bus.db.fetch(due) == []
        await update(bus, found["id"], status="done")
    assert await bus.db.fetch(due) == []
    done = await bus.db.fetch_value(
        "SELECT array_agg(id ORDER BY done_at) = array_agg(id ORDER BY id)"
        " FROM public.agent_messages WHERE status = 'done'"
    )
    assert done


async def test_retry_at_that_was_cleared_by_hand_breaks_nothing(bus: Bus) -> None:
    hand = await Hand(bus).register()
    ids = await keyed(bus, 3)
    await bus.db.execute("UPDATE public.agent_messages SET retry_at = NULL WHERE ordering_key = 'k'")
    (first,) = await hand.claim("t/echo")
    assert first.id == ids[0]
    assert await hand.claim("t/echo") == []
    await hand.finish(first)
    assert await in_turn(hand) == ids[1:]


async def test_a_message_behind_others_may_have_a_time_of_its_own(bus: Bus, dsn: str) -> None:
    """Not before it, and not before the others: then whoever sleeps is told."""
    hand = await Hand(bus).register()
    (first,) = await keyed(bus, 1)
    soon = await insert(bus, LANE, ordering_key="k", retry_at="2020-01-01Z")
    late = await insert(bus, LANE, ordering_key="k", retry_at="2099-01-01Z")
    (claimed,) = await hand.claim("t/echo")
    assert claimed.id == first
    await bus.sleep_on([Lane("t", "echo", 0)], hand.epoch)
    async with await connect(dsn, "listener") as conn:
        await conn.execute("LISTEN cogo")
        await hand.finish(claimed)
        heard = [note.payload async for note in conn.notifies(timeout=10, stop_after=1)]
    assert heard == ["lane:t/echo/0"]
    assert await in_turn(hand) == [soon]
    assert (await row(bus, late))["status"] == "queued"


@pytest.mark.parametrize("key", ["", "x" * 256, "\x00"])
async def test_a_key_that_is_none(bus: Bus, key: str) -> None:
    with pytest.raises(Invalid):
        await bus.enqueue(LANE, {}, ordering_key=key)
    if "\x00" not in key:
        with pytest.raises(psycopg.errors.CheckViolation):
            await insert(bus, LANE, ordering_key=key)


# -- producers at the same time ----------------------------------------------------------------


async def test_ids_are_in_the_order_of_commits(bus: Bus, dsn: str) -> None:
    """A producer whose transaction is open holds up others of the same key, and nobody else."""
    hand = await Hand(bus).register()
    later: list[int] = []

    async def second() -> None:
        later.append(await bus.enqueue(LANE, {}, ordering_key="k"))

    async with await connect(dsn, "first") as conn, anyio.create_task_group() as tasks:
        async with conn.transaction():
            first = await cogo.enqueue(conn, LANE, {}, ordering_key="k")
            tasks.start_soon(second)
            await eventually_async(lambda: waits_for_a_key(bus))
            other = await bus.enqueue(LANE, {}, ordering_key="other")
            free = await bus.enqueue(LANE, {})
            assert {message.id for message in await hand.claim("t/echo")} == {other, free}
    assert first < later[0]
    assert await in_turn(hand) == [first, later[0]]


async def waits_for_a_key(bus: Bus) -> bool:
    sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return bool(await bus.db.fetch_value(sql))


async def test_the_end_of_the_first_meets_a_producer_that_has_not_committed(bus: Bus, dsn: str) -> None:
    """The finish doesn't wait for the producer; the message that it could not see comes in the next round."""
    hand = await Hand(bus).register()
    (first,) = await keyed(bus, 1)
    (claimed,) = await hand.claim("t/echo")
    async with await connect(dsn, "producer") as conn, conn.transaction():
        second = await cogo.enqueue(conn, LANE, {}, ordering_key="k")
        assert await hand.finish(claimed) == "done"
        await upkeep.reclaim_once(bus, Settings())  # still too early: it looks again
    assert await hand.claim("t/echo") == []
    await upkeep.reclaim_once(bus, Settings())
    assert await in_turn(hand) == [second]
    assert await bus.db.fetch_value("SELECT count(*) FROM cogo.bus_keys") == 0


async def test_a_producer_that_cannot_see_the_others(bus: Bus, dsn: str) -> None:
    """Under REPEATABLE READ a message goes aside in any case, and is let through by the next round."""
    hand = await Hand(bus).register()
    async with await connect(dsn, "stale") as conn:
        await conn.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        async with conn.transaction():
            await conn.execute("SELECT 1")  # its snapshot
            (first,) = await keyed(bus, 1)
            second = await cogo.enqueue(conn, LANE, {}, ordering_key="k")
    await upkeep.reclaim_once(bus, Settings())
    assert await in_turn(hand) == [first, second]
    async with await connect(dsn, "stale") as conn, conn.transaction():
        await conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        alone = await cogo.enqueue(conn, LANE, {}, ordering_key="alone")
    await upkeep.reclaim_once(bus, Settings())
    assert await in_turn(hand) == [alone]


async def test_effects_of_a_transaction_and_the_next_of_the_key(bus: Bus) -> None:
    """A message may enqueue the next of its own key in the transaction that ends it."""
    hand = await Hand(bus).register()
    await keyed(bus, 1)
    (claimed,) = await hand.claim("t/echo")
    async with bus.db.transaction() as conn:
        second = await cogo.enqueue(conn, LANE, {}, ordering_key="k")
        await conn.execute(
            "SELECT * FROM cogo.finish(ARRAY[%s]::bigint[], ARRAY[%s]::bigint[],"
            " null, null, null, null, null, null, null, null)",
            (claimed.id, claimed.fence),
        )
    assert await in_turn(hand) == [second]


async def test_follow_ups_have_their_order_and_hold_up_no_finish(bus: Bus, dsn: str) -> None:
    """A producer has the key in an open transaction: the finish goes through, its follow-ups come in turn."""
    hand = await Hand(bus).register()
    parent = await bus.enqueue("t/parent@acme", {})
    (claimed,) = await hand.claim("t/parent")
    follow_ups = [child(LANE, delegate=False, ordering_key="k") for _ in range(2)]
    async with await connect(dsn, "producer") as conn, conn.transaction():
        other = await cogo.enqueue(conn, LANE, {}, ordering_key="k")
        with anyio.fail_after(5):
            assert await hand.finish(claimed, follow_ups=follow_ups) == "done"
        assert await hand.claim("t/echo") == []
    await upkeep.reclaim_once(bus, Settings())
    assert await in_turn(hand) == [other, parent + 4, parent + 6]
    await bus.enqueue("t/parent@acme", {})
    (claimed,) = await hand.claim("t/parent")
    await hand.finish(claimed, follow_ups=follow_ups)
    assert len(await hand.claim("t/echo")) == 1


async def test_a_handler_sends_in_order(dsn: str, bus: Bus) -> None:
    order: list[int] = []

    async def spread(task: dict[str, Any], ctx: cogo.Context) -> None:
        for n in range(3):
            await ctx.bus.enqueue("t/echo", {"n": n}, ordering_key="k")
        await ctx.bus.enqueue("t/echo", {"n": -1}, ordering_key="k", now=True)

    async def note(task: dict[str, Any], ctx: cogo.Context) -> None:
        order.append(task["n"])

    roles = [cogo.Role("t", "spread", handle=spread), cogo.Role("t", "echo", handle=note, concurrency=8)]
    async with process(dsn, roles):
        await bus.enqueue("t/spread@acme", {})
        await eventually_async(lambda: len(order) == 4)
    assert order == [-1, 0, 1, 2]


# -- back from the end -------------------------------------------------------------------------


async def fail_first(bus: Bus, hand: Hand) -> tuple[int, int]:
    """The first of two has failed, the second stands at the door; their ids."""
    ids = await keyed(bus, 2)
    (first,) = await hand.claim("t/echo")
    await hand.finish(first, "failed", error="x: y")
    return ids[0], ids[1]


@pytest.mark.parametrize("by", ["requeue", "update"])
async def test_a_requeued_message_goes_before_the_later_ones(bus: Bus, by: str) -> None:
    hand = await Hand(bus).register()
    first, second = await fail_first(bus, hand)
    await (bus.requeue(first, actor="test") if by == "requeue" else update(bus, first, status="queued"))
    assert await in_turn(hand) == [first, second]


async def test_a_requeued_message_waits_for_the_one_at_work(bus: Bus) -> None:
    hand = await Hand(bus).register()
    first, second = await fail_first(bus, hand)
    (third,) = await keyed(bus, 1)
    (working,) = await hand.claim("t/echo")
    assert working.id == second
    await bus.requeue(first, actor="test")
    assert await hand.claim("t/echo") == []
    await hand.finish(working)
    assert await in_turn(hand) == [first, third]


@pytest.mark.parametrize("way", ["retry", "released", "lease", "give_back", "update"])
async def test_a_requeued_message_when_the_one_at_work_is_queued_again(bus: Bus, way: str) -> None:
    """It doesn't end, so nothing opens the door for the one that came back before it: upkeep has to."""
    hand = await Hand(bus).register()
    first, second = await fail_first(bus, hand)
    (working,) = await hand.claim("t/echo")
    assert working.id == second
    await bus.requeue(first, actor="test")
    match way:
        case "retry":
            await hand.finish(working, "retry", error="x: y", retry_ms=0)
        case "released":
            await hand.finish(working, "released")
        case "lease":
            await bus.db.execute("UPDATE cogo.bus_holders SET lease_until = now() - interval '1 s'")
            assert len(await reclaim(bus)) == 1
        case "give_back":
            assert await bus.give_back("hand", hand.epoch, [], 0) == 1
        case "update":
            await update(bus, second, status="queued")
    await bus.db.execute("SELECT cogo.open_doors(100)")
    assert await in_turn(await Hand(bus, "later").register()) == [first, second]


async def test_a_requeued_message_and_a_claim_that_is_under_way(bus: Bus, dsn: str) -> None:
    """The claim began before the message came back, so it can't know of it: it counts all the same."""
    hand = await Hand(bus).register()
    first, second = await fail_first(bus, hand)
    async with await connect(dsn, "claimer") as conn, conn.transaction():
        sql = "SELECT id FROM cogo.claim('t', 'echo', 0, 1, 'other', 1, 60000)"
        assert await (await conn.execute(sql)).fetchall() == [(second,)]
        await bus.requeue(first, actor="test")
        assert await hand.claim("t/echo") == []
    await upkeep.reclaim_once(bus, Settings())
    assert await hand.claim("t/echo") == []
    await update(bus, second, status="done")
    assert await in_turn(hand) == [first]


async def test_a_claim_that_is_older_than_the_requeue_gets_nothing_beside_it(bus: Bus, dsn: str) -> None:
    """The other way round: the message is back before the claim comes to the next of its key."""
    hand = await Hand(bus).register()
    first, second = await fail_first(bus, hand)
    async with await connect(dsn, "operator") as conn, conn.transaction():
        await conn.execute("SELECT cogo.requeue(%s, 'test', '')", (first,))
        assert await hand.claim("t/echo") == [], "it sees the second at the door, but may not have it"
    assert await in_turn(hand) == [first, second]


async def test_a_finish_beside_a_requeue_of_the_same_key(bus: Bus, dsn: str) -> None:
    """Neither sees what the other does: the next round puts right who stands at the door."""
    hand = await Hand(bus).register()
    first, second = await fail_first(bus, hand)
    (third,) = await keyed(bus, 1)
    (working,) = await hand.claim("t/echo")
    async with await connect(dsn, "operator") as conn, conn.transaction():
        await conn.execute("SELECT cogo.requeue(%s, 'test', '')", (first,))
        await hand.finish(working)  # the third goes to the door: the first isn't back yet, as far as it knows
    await upkeep.reclaim_once(bus, Settings())
    assert working.id == second
    assert await in_turn(hand) == [first, third]


# -- everything at once ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_claimers_and_producers_at_once(bus: Bus, database: Database, seed: int) -> None:
    """Never two of one key at work; each key in the order of its ids, but for the ones that were retried."""
    chance = random.Random(seed)
    keys = ["a", "b", "c"]
    working: set[str] = set()
    begun: dict[str, list[int]] = defaultdict(list)
    key_of: dict[int, str] = {}
    enqueued, ended = 0, 0

    async def produce() -> None:
        nonlocal enqueued
        for _ in range(25):
            key = chance.choice(keys)
            await bus.enqueue(LANE, {"key": key}, ordering_key=key)
            enqueued += 1

    async def handle(hand: Hand, message: Message) -> None:
        nonlocal ended
        key = key_of.setdefault(message.id, message.payload.decode().split('"')[3])
        assert key not in working, f"two of key {key} at once"
        working.add(key)
        begun[key].append(message.id)
        await bus.db.fetch_value("SELECT pg_sleep(%s)", (chance.random() / 200,))
        kind = chance.choices(["done", "failed", "retry", "released"], [6, 1, 2, 1])[0]
        working.remove(key)
        status = await hand.finish(message, kind, error="x: y", retry_ms=0 if kind == "retry" else None)
        ended += status in ("done", "failed")

    async def consume(hand: Hand) -> None:
        while ended < 100:
            for message in await hand.claim("t/echo", 2):
                await handle(hand, message)
            await bus.db.execute("SELECT cogo.open_doors(100)")

    with anyio.fail_after(15):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(produce)
            for n in range(3):
                tasks.start_soon(consume, await Hand(bus, f"box-{n}").register())
    assert enqueued == ended == 100
    for ids in begun.values():
        first_attempts = list(dict.fromkeys(ids))
        assert first_attempts == sorted(first_attempts)
        # An attempt after another message began would mean that the retry did not block.
        assert all(left <= right for left, right in itertools.pairwise(ids)), ids


async def test_the_end_of_one_wakes_who_sleeps_on_the_lane_of_the_next(bus: Bus, dsn: str) -> None:
    hand = await Hand(bus).register()
    await keyed(bus, 1)
    await keyed(bus, 1, lane="t/echo/7@acme")
    (first,) = await hand.claim("t/echo")
    await bus.sleep_on([Lane("t", "echo", 0), Lane("t", "echo", 7)], hand.epoch)
    async with await connect(dsn, "listener") as conn:
        await conn.execute("LISTEN cogo")
        await hand.finish(first)
        heard = [note.payload async for note in conn.notifies(timeout=10, stop_after=1)]
    assert heard == ["lane:t/echo/7"]


async def test_a_key_in_a_process(dsn: str, bus: Bus) -> None:
    """One after the other on eight slots, the retried one too; the poll of the process is a minute."""
    order: list[int] = []

    async def note(task: dict[str, Any], ctx: cogo.Context) -> None:
        order.append(task["n"])
        if task["n"] == 3 and ctx.attempt == 1:
            raise cogo.Retry(after=0.05)

    role = cogo.Role("t", "echo", handle=note, concurrency=8)
    async with process(dsn, [role], poll_ms=60_000):
        ids = await keyed(bus, 12)
        for id in ids:
            assert (await bus.result(id, timeout_s=10)).status == "done"
    assert order == [0, 1, 2, 3, 3, *range(4, 12)]


async def test_thousands_behind_one_key_cost_the_others_nothing(bus: Bus) -> None:
    """They are out of the index that claims read: a claim of another message touches as many pages as ever."""
    hand = await Hand(bus).register()
    cost: list[int] = []
    for many in (0, 20_000):
        await bus.db.execute(
            "INSERT INTO public.agent_messages (service, role, ordering_key)"
            " SELECT 't', 'echo', 'hot' FROM generate_series(1, %s)", (many,),
        )  # fmt: skip
        await hand.claim("t/echo", 1)  # the first of the key
        await bus.enqueue_many("t/echo", [{} for _ in range(40)])
        sql = "SELECT * FROM cogo.claim('t', 'echo', 0, 20, 'hand', 1, 60000, '{0,0,0,0}')"
        ((rows, pages),) = await touched(bus.db, sql)
        assert rows == 20
        cost.append(pages)
    assert cost[1] < 1.5 * cost[0] + 40, cost
    assert (await row(bus, 1))["status"] == "claimed"
