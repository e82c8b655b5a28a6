"""Proves dead letters: what failed is found by lane and code, and goes back as one requeued message would."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest
from hands import Hand, child, counts, insert, kinds, row, shifted, update
from plans import touched

from cogo.core import operate
from cogo.core.bus import Bus
from cogo.core.db import connect
from cogo.core.errors import Invalid, RoutingInvalid

LANE = "t/echo"


async def fail(bus: Bus, lane: str, error: str | None, times: int = 1) -> list[int]:
    """Messages that failed with this error; their ids."""
    hand = await Hand(bus).register()
    ids = []
    for _ in range(times):
        ids.append(await bus.enqueue(lane, {}))
        (message,) = await hand.claim(lane, 1)
        await hand.finish(message, "failed", error=error)
    return ids


async def test_grouped_by_lane_and_code(bus: Bus) -> None:
    acme = await fail(bus, f"{LANE}@acme", "task_invalid: $.n is missing", 2)
    beta = await fail(bus, f"{LANE}@beta", "task_invalid: another word", 1)
    await fail(bus, f"{LANE}@acme", "poison: all used up")
    await fail(bus, "t/other@acme", "poison: all used up")
    await insert(bus, LANE, status="failed", error="it just broke", last_error_at="2026-01-02Z")
    await insert(bus, LANE, status="done")
    found = await bus.dead()
    top = found[0]
    assert (top.service, top.role, top.code, top.n, top.tenants) == ("t", "echo", "task_invalid", 3, 2)
    assert {(g.role, g.code, g.n) for g in found[1:]} == {
        ("echo", "poison", 1), ("other", "poison", 1), ("echo", "other", 1)}  # fmt: skip
    assert (top.sample_id, top.sample_error, top.answers) == (beta[0], "task_invalid: another word", 0)
    assert top.first_seen == (await row(bus, acme[0]))["last_error_at"]
    assert top.last_seen == (await row(bus, beta[0]))["last_error_at"]
    assert not top.capped
    assert [g.n for g in await bus.dead(LANE, tenants=["acme"])] == [2, 1]
    assert await bus.dead("t/nothing") == []
    assert len(await bus.dead(limit=1)) == 1


async def test_redriven_messages_begin_a_new_life_like_a_requeued_one(bus: Bus) -> None:
    """Row, audit and counters are the same as after cogo.requeue()."""
    one, other = await fail(bus, LANE, "x: y", 2)
    for id in (one, other):
        await bus.hold(id, "default", 1.0, 5)
    before = await counts(bus)
    await bus.requeue(one, actor="ann", reason="mended")
    assert await bus.redrive(LANE, actor="ann", reason="mended") == operate.Redriven(1, 0)
    assert before == {"failed": 2}
    assert await counts(bus) == {}
    left, right = await row(bus, one), await row(bus, other)
    assert right["seq"] > left["seq"]
    same = {"id", "seq", "created_at", "traceparent", "trace_id", "last_error_at"}
    assert {k: v for k, v in left.items() if k not in same} == {
        k: v for k, v in right.items() if k not in same
    }
    assert (right["status"], right["attempts"], right["error"]) == ("queued", 0, None)
    events = await bus.db.fetch(
        "SELECT message_id, actor, detail FROM public.bus_events WHERE kind = 'requeued'"
    )
    told = {"actor": "ann", "detail": {"was": "failed", "reason": "mended"}}
    assert events == [{"message_id": id} | told for id in (one, other)]
    assert await bus.db.fetch_value("SELECT count(*) FROM cogo.budget_holds") == 0
    messages = await (await Hand(bus).register()).claim(LANE)
    assert [message.id for message in messages] == [one, other]


async def test_the_time_to_live_begins_anew(bus: Bus, dsn: str) -> None:
    id = await bus.enqueue(LANE, {}, ttl_ms=60_000)
    for start in ("61 s", "200 s"):
        async with shifted(dsn, start) as later:
            assert await later.db.fetch_value("SELECT cogo.expire(10)") == 1
            assert await later.redrive(LANE, actor="ann") == operate.Redriven(1, 0)
            left = await later.db.fetch_value(
                "SELECT expires_at - cogo.now() FROM public.agent_messages WHERE id = %s", (id,)
            )
            assert timedelta(seconds=59) < left <= timedelta(seconds=60)


async def test_each_filter(bus: Bus) -> None:
    a = await fail(bus, f"{LANE}@acme", "x: 1", 2)
    b = await fail(bus, f"{LANE}@beta", "x: 1")
    c = await fail(bus, f"{LANE}@beta", "y: 1")
    d = await fail(bus, "t/other@beta", "y: 1")
    since = (await row(bus, c[0]))["last_error_at"]
    for only, ids in (
        ({"lane": LANE}, a + b + c), ({"tenants": ["beta"]}, b + c + d), ({"code": "x"}, a + b),
        ({"before": since}, a + b), ({"ids": [a[0], d[0], 999]}, [a[0], d[0]]), ({"tenants": []}, []),
        ({"lane": LANE, "tenants": ["acme", "beta"], "code": "y"}, c), ({"code": "x: 1"}, []),
    ):  # fmt: skip
        assert (await bus.redrive(actor="ann", dry_run=True, **only)).redriven == len(ids), only
        assert (await bus.redrive(actor="ann", **only)).redriven == len(ids), only
        queued = await bus.db.fetch(
            "SELECT id FROM public.agent_messages WHERE status = 'queued' ORDER BY id"
        )
        assert [found["id"] for found in queued] == sorted(ids)
        for id in ids:  # back to where they were
            at = since if id == c[0] else "2026-01-01Z" if id < c[0] else "2099-01-01Z"
            await update(bus, id, status="failed", error="y: 1" if id >= c[0] else "x: 1")
            await bus.db.execute(
                "UPDATE public.agent_messages SET last_error_at = %s WHERE id = %s", (at, id)
            )


async def test_everything_has_to_be_asked_for(bus: Bus) -> None:
    with pytest.raises(Invalid, match="say which"):
        await bus.redrive(actor="ann")
    with pytest.raises(RoutingInvalid):
        await bus.redrive("t/echo/3", actor="ann")


async def test_answers_are_refused_and_counted(bus: Bus) -> None:
    """Who waited for them has ended with them, and is what has to come back."""
    hand = await Hand(bus).register()
    root = await bus.enqueue("t/root", {})
    (message,) = await hand.claim("t/root")
    await hand.finish(message, "delegated", follow_ups=(child(LANE),))
    (answer,) = await hand.claim(LANE)
    await hand.finish(answer, "failed", error="x: y")
    alone = await fail(bus, LANE, "x: y")
    (group,) = await bus.dead(LANE)
    assert (group.n, group.answers) == (2, 1)
    assert await bus.redrive(LANE, actor="ann", dry_run=True) == operate.Redriven(1, 1)
    assert await bus.redrive(LANE, actor="ann") == operate.Redriven(1, 1)
    assert (await row(bus, answer.id))["status"] == "failed"
    assert (await row(bus, alone[0]))["status"] == "queued"
    assert await bus.redrive("t/root", actor="ann") == operate.Redriven(1, 0)
    assert (await row(bus, root))["status"] == "queued"


async def test_in_batches_with_a_limit(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "REDRIVE_BATCH", 100)
    await bus.db.execute(
        "INSERT INTO public.agent_messages (service, role, tenant, status, error, last_error_at)"
        " SELECT 't', 'echo', 'tenant-' || mod(n, 7), 'failed', 'x: y', now() FROM generate_series(1, 1050) n"
    )
    assert await bus.redrive(LANE, actor="ann", limit=250) == operate.Redriven(250, 0)
    assert await bus.redrive(LANE, actor="ann") == operate.Redriven(800, 0)
    assert await bus.dead() == []
    assert len(await kinds(bus)) == 1050
    seqs = await bus.db.fetch_value("SELECT count(DISTINCT seq) FROM public.agent_messages WHERE seq > 1050")
    assert seqs == 1050


async def test_two_operators_at_once(bus: Bus) -> None:
    """Each message goes back once; keys of both are no trap."""
    for n in range(60):
        id = await bus.enqueue(LANE, {}, ordering_key=f"k{n % 5}")
        await update(bus, id, status="failed", error="x: y")
    found: list[int] = []

    async def redrive() -> None:
        found.append((await bus.redrive(LANE, actor="ann")).redriven)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(redrive)
    assert sum(found) == 60
    assert len(await kinds(bus)) == 60 + 60  # failed, requeued


async def test_the_order_of_keys_survives(bus: Bus) -> None:
    hand = await Hand(bus).register()
    ids = [await bus.enqueue(LANE, {}, ordering_key="k") for _ in range(4)]
    for _ in ids:
        (message,) = await hand.claim(LANE)
        await hand.finish(message, "failed", error="x: y")
    assert (await bus.redrive(LANE, actor="ann")).redriven == 4
    order = []
    while messages := await hand.claim(LANE):
        order += [message.id for message in messages]
        await hand.finish(messages[0])
    assert order == ids


async def test_a_row_that_somebody_holds_is_left_out(bus: Bus, dsn: str) -> None:
    held, free = await fail(bus, LANE, "x: y", 2)
    async with await connect(dsn, "other") as conn, conn.transaction():
        await conn.execute("SELECT FROM public.agent_messages WHERE id = %s FOR UPDATE", (held,))
        assert (await bus.redrive(LANE, actor="ann")).redriven == 1
    assert (await row(bus, free))["status"] == "queued"
    assert (await bus.redrive(LANE, actor="ann")).redriven == 1


async def test_redrive_wakes_who_sleeps(bus: Bus, dsn: str) -> None:
    await fail(bus, f"{LANE}/3", "x: y")
    hand = await Hand(bus).register()
    await bus.sleep_on([operate.Lane("t", "echo", 3)], hand.epoch)
    async with await connect(dsn, "listener") as conn:
        await conn.execute("LISTEN cogo")
        await bus.redrive(LANE, actor="ann")
        heard = [note.payload async for note in conn.notifies(timeout=10, stop_after=1)]
    assert heard == ["lane:t/echo/3"]


async def test_nothing_of_it_reads_what_is_done(bus: Bus) -> None:
    """By the partial index of failed messages: 50,000 done ones cost no page."""
    await fail(bus, LANE, "x: y", 3)
    cost = []
    for count in (0, 50_000):
        await bus.db.execute(
            "INSERT INTO public.agent_messages (service, role, status)"
            " SELECT 't', 'echo', 'done' FROM generate_series(1, %s)",
            (count,),
        )
        await bus.db.execute("ANALYZE public.agent_messages")
        ((_, groups),) = await touched(bus.db, "SELECT * FROM cogo.dead_letters()")
        ((_, counts),) = await touched(bus.db, "SELECT * FROM cogo.redrive('t', 'echo', p_dry_run => true)")
        cost.append(groups + counts)
    assert cost[1] < 2 * cost[0] + 50, cost
