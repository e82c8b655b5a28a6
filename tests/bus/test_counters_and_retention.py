"""Proves that the counters tell the truth, and that what is old goes away in bounded steps."""

from __future__ import annotations

import random
from typing import Any

from hands import Hand, child, counts, insert, kinds, process, reclaim, row, shifted, update
from helpers import eventually_async

import cogo
from cogo.core import upkeep
from cogo.core.bus import Bus

TRUTH = "SELECT status, count(*) AS n FROM public.agent_messages WHERE done_at IS NOT NULL GROUP BY 1"
OLD = "UPDATE public.agent_messages SET created_at = created_at - interval '20 days', done_at = done_at - interval '20 days'"


async def truth(bus: Bus) -> dict[str, int]:
    return {found["status"]: found["n"] for found in await bus.db.fetch(TRUTH)}


async def ends(bus: Bus) -> dict[str, int]:
    return {status: n for status, n in (await counts(bus)).items() if status != "retry"}


async def test_counters_are_the_truth_after_anything(bus: Bus, dsn: str) -> None:
    """A random workload by hand, by outsiders and by the reclaimer, requeues included."""
    chance = random.Random(20261123)
    hand = await Hand(bus).register(lease_ms=3_600_000)
    for _ in range(12):
        await bus.enqueue_many("t/echo@acme", [{} for _ in range(6)])
        await bus.enqueue("t/echo@other", {}, ttl_ms=chance.choice([1_000, 3_600_000]))
        for message in await hand.claim("t/echo", 5) + await hand.claim("t/leaf", 3):
            kind = chance.choice(["done", "done", "failed", "retry", "released", "delegated"])
            follow = [child(f"t/leaf@{message.key.tenant}")] if kind == "delegated" else []
            error = "x: y" if kind in {"failed", "retry"} else None
            await hand.finish(
                message, kind, error=error, follow_ups=follow, retry_ms=0 if kind == "retry" else None
            )
        ids = [found["id"] for found in await bus.db.fetch("SELECT id FROM public.agent_messages")]
        for id in chance.sample(ids, 4):
            found = await row(bus, id)  # now: the one before may have ended this one too
            if found["status"] in {"queued", "claimed", "waiting"}:
                if chance.random() < 0.5:
                    await bus.cancel(found["id"], actor="test")
                else:
                    await update(bus, found["id"], status=chance.choice(["done", "failed", "cancelled"]))
            elif found["status"] != "done" and found["reply_to"] is None:
                await bus.requeue(found["id"], actor="test")
        if chance.random() < 0.3:
            async with shifted(dsn, "2 s") as later:
                await later.db.execute("SELECT cogo.expire(100)")
                await reclaim(later)
        assert await ends(bus) == await truth(bus)
    before = await counts(bus)
    assert len(before) == 4
    assert await bus.db.fetch_value("SELECT cogo.roll_up()") > 0
    assert await counts(bus) == before
    assert await bus.db.fetch_value("SELECT count(*) FROM cogo.bus_stats") == 0
    await bus.db.execute("SELECT cogo.roll_up()")
    assert await counts(bus) == before


async def test_buckets_are_right_to_ten_percent(bus: Bus) -> None:
    sql = "SELECT cogo.bucket(now(), now() + %s * interval '1 ms')"
    for ms in (0.0, 0.05, 1.0, 7.3, 250.0, 60_000.0):
        bucket = await bus.db.fetch_value(sql, (ms,))
        low, high = 0.1 * 1.2**bucket, 0.1 * 1.2 ** (bucket + 1)
        assert bucket == 0 or low * 0.999 <= ms < high * 1.001
    assert await bus.db.fetch_value(sql, (1e15,)) == 127
    assert await bus.db.fetch_value(sql, (-5,)) == 0


async def test_latencies_are_counted_where_they_belong(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await bus.enqueue("t/echo@acme", {})
    (message,) = await hand.claim("t/echo")
    await hand.finish(message)
    await bus.cancel(await bus.enqueue("t/echo@acme", {}), actor="test")
    rows = await bus.db.fetch(
        "SELECT service, role, tenant, status, pickup_b, total_b, n FROM cogo.bus_stats ORDER BY id"
    )
    assert [(found["status"], found["tenant"], found["n"]) for found in rows] == [
        ("done", "acme", 1),
        ("cancelled", "acme", 1),
    ]
    assert 0 <= rows[0]["pickup_b"] <= rows[0]["total_b"]
    assert rows[1]["pickup_b"] == -1, "it was never picked up"


# -- retention ---------------------------------------------------------------------------------


async def test_old_ends_go_in_batches_and_living_messages_stay(bus: Bus) -> None:
    hand = await Hand(bus).register()
    ended = await bus.enqueue_many("t/echo", [{} for _ in range(25)])
    for message in await hand.claim("t/echo", 25):
        await hand.finish(message)
    queued = await bus.enqueue("t/echo", {})
    claimed = await bus.enqueue("t/other", {})
    await hand.claim("t/other")
    await bus.db.execute(OLD)
    fresh = await bus.enqueue("t/echo", {})
    await bus.cancel(fresh, actor="test")
    first = await bus.db.fetch_one("SELECT * FROM cogo.retain(14, 0, 10)")
    assert first == {"deleted": 10, "next_after": ended[9]}
    assert await upkeep.retain_once(bus, 14) == 15
    left = await bus.db.fetch("SELECT id FROM public.agent_messages ORDER BY id")
    assert [found["id"] for found in left] == [queued, claimed, fresh]
    assert await upkeep.retain_once(bus, 14) == 0


async def test_a_child_stays_as_long_as_its_parent_lives(bus: Bus) -> None:
    hand = await Hand(bus).register()
    root = await bus.enqueue("t/root", {})
    (message,) = await hand.claim("t/root")
    await hand.finish(message, "delegated", follow_ups=[child("t/leaf")])
    (leaf,) = await hand.claim("t/leaf")
    await hand.finish(leaf)
    # The parent was requeued, and is older than the retention while it waits again.
    await bus.db.execute(
        "UPDATE public.agent_messages SET status = 'waiting', done_at = NULL, seq = nextval('cogo.bus_seq') WHERE id = %s",
        (root,),
    )
    await bus.db.execute(OLD)
    assert await upkeep.retain_once(bus, 14) == 0
    assert (await row(bus, leaf.id))["status"] == "done"
    await update(bus, root, status="failed", error="x: y")
    await bus.db.execute(OLD)
    assert await upkeep.retain_once(bus, 14) == 2


async def test_the_tables_around_the_bus_are_kept_small(bus: Bus, dsn: str) -> None:
    hand = await Hand(bus).register(lease_ms=1_000)
    id = await bus.enqueue("t/echo", {})
    (message,) = await hand.claim("t/echo")
    await bus.add_chunks(id, message.fence, [("token", n) for n in range(12)])
    await bus.hold(id, "acme", 1.0, None)
    await bus.keep("acme", b"x")
    await bus.sleep_on([cogo.Lane("t", "echo", 0)], hand.epoch)
    await bus.db.execute(
        "INSERT INTO public.bus_events (kind, tenant) SELECT 'old', 'acme' FROM generate_series(1, 12)"
    )
    await bus.db.execute(
        "INSERT INTO cogo.decisions (tenant, intent, reason, policy_version) VALUES ('acme', 'x', 'y', 'z')"
    )
    await bus.db.execute("INSERT INTO cogo.bus_waiters VALUES (%s, gen_random_uuid(), now())", (id,))
    tables = ("public.bus_events", "cogo.message_chunks", "cogo.budget_holds", "cogo.artifacts", "cogo.bus_idle",
              "cogo.decisions", "cogo.bus_waiters", "cogo.bus_holders")  # fmt: skip

    async def sizes(seen_by: Bus) -> list[int]:
        return [await seen_by.db.fetch_value(f"SELECT count(*) FROM {table}") for table in tables]

    assert await bus.db.fetch_value("SELECT cogo.retain_rest(14, 5)") == 0
    assert await sizes(bus) == [12, 12, 1, 1, 1, 1, 1, 1]
    async with shifted(dsn, "15 days") as later:
        assert await later.db.fetch_value("SELECT cogo.retain_rest(14, 5)") == 5, "a bounded piece at a time"
        assert await sizes(bus) == [7, 7, 1, 0, 0, 0, 0, 1]
        assert await upkeep.retain_once(later, 14) == 0
    # The budget lives as long as its root, and the holder as long as it holds a claim.
    assert await sizes(bus) == [0, 0, 1, 0, 0, 0, 0, 1]
    await bus.cancel(id, actor="test")
    async with shifted(dsn, "15 days") as later:
        await upkeep.retain_once(later, 14)
    assert (await sizes(bus))[2::5] == [0, 0]


async def test_the_same_artifact_lives_as_long_as_its_last_use(bus: Bus) -> None:
    url = await bus.keep("acme", b"body")
    await bus.db.execute("UPDATE cogo.artifacts SET created_at = now() - interval '20 days'")
    assert await bus.keep("acme", b"body") == url
    await bus.keep("other", b"body")
    await upkeep.retain_once(bus, 14)
    assert await bus.db.fetch_value("SELECT count(*) FROM cogo.artifacts") == 2


async def test_upkeep_runs_by_itself(dsn: str, bus: Bus) -> None:
    async def echo(task: Any, ctx: cogo.Context) -> int:
        return 1

    async with process(dsn, [cogo.Role("t", "echo", handle=echo)]):
        await bus.result(await bus.enqueue("t/echo", {}))
        late = await insert(bus, "t/nobody", payload='{"__assignment": {"ttl_ms": 1}}')
        await eventually_async(lambda: _failed(bus, late))
    assert "t_failed" in await kinds(bus)


async def _failed(bus: Bus, id: int) -> bool:
    return bool((await row(bus, id))["status"] == "failed")
