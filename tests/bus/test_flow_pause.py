"""Proves pause and resume, of a lane and of a tenant in it: nothing new is begun, nothing is lost, all is audited."""

from __future__ import annotations

from typing import Any

import anyio
import psycopg
import pytest
from hands import Hand, insert, policy, process, row, shifted
from helpers import eventually_async
from plans import touched

import cogo
from cogo.core.bus import Bus
from cogo.core.db import connect
from cogo.core.errors import Invalid, RoutingInvalid

LANE = "t/echo"


async def claimed(hand: Hand, limit: int = 10) -> list[int]:
    return [message.id for message in await hand.claim(LANE, limit)]


async def audit(bus: Bus) -> list[tuple[Any, ...]]:
    rows = await bus.db.fetch(
        "SELECT kind, tenant, service, role, actor, detail ->> 'reason' AS why FROM public.bus_events ORDER BY id"
    )
    return [tuple(found.values()) for found in rows]


async def test_a_paused_lane_and_its_audit(bus: Bus) -> None:
    hand = await Hand(bus).register()
    ids = await bus.enqueue_many(LANE, [{}, {}])
    (running,) = await hand.claim(LANE, 1)
    assert await bus.pause(LANE, actor="ann", reason="the model is down")
    assert not await bus.pause(LANE, actor="bob"), "paused already"
    assert await claimed(hand) == []
    assert await hand.finish(running) == "done", "what runs goes on"
    assert await bus.resume(LANE, actor="bob", reason="it is up")
    assert not await bus.resume(LANE, actor="bob")
    assert await claimed(hand) == ids[1:]
    assert await audit(bus) == [
        ("paused", "*", "t", "echo", "ann", "the model is down"),
        ("resumed", "*", "t", "echo", "bob", "it is up"),
    ]


@pytest.mark.parametrize("shards", [(0,), (0, 3)])
async def test_a_paused_tenant_stands_aside_for_the_others(bus: Bus, shards: tuple[int, ...]) -> None:
    hand = await Hand(bus).register()
    acme, beta = {}, {}
    for shard in shards:
        acme[shard] = await bus.enqueue_many(f"{LANE}/{shard}@acme", [{} for _ in range(3)])
        beta[shard] = await bus.enqueue_many(f"{LANE}/{shard}@beta", [{} for _ in range(3)])
    assert await bus.pause(LANE, tenant="acme", actor="ann", reason="it floods us")
    assert not await bus.pause(LANE, tenant="acme", actor="ann")
    for shard in shards:
        assert [message.id for message in await hand.claim(f"{LANE}/{shard}", 10)] == beta[shard]
    assert await bus.resume(LANE, tenant="acme", actor="ann")
    for shard in shards:
        assert [message.id for message in await hand.claim(f"{LANE}/{shard}", 10)] == acme[shard]
    assert [event[:2] for event in await audit(bus)] == [("paused", "acme"), ("resumed", "acme")]


async def test_lane_and_tenants_are_paused_apart(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await policy(bus, LANE)
    for tenant in ("acme", "beta"):
        await bus.pause(LANE, tenant=tenant, actor="ann")
        await bus.enqueue(f"{LANE}@{tenant}", {})
    await bus.pause(LANE, actor="ann")
    await bus.resume(LANE, actor="ann")
    assert await claimed(hand) == []
    await bus.resume(LANE, tenant="beta", actor="ann")
    (message,) = await hand.claim(LANE)
    assert message.key.tenant == "beta"


async def test_retries_of_a_paused_tenant_wait_too(bus: Bus, dsn: str) -> None:
    hand = await Hand(bus).register()
    await bus.enqueue(f"{LANE}@acme", {})
    (message,) = await hand.claim(LANE)
    await hand.finish(message, "retry", error="x: y", retry_ms=1_000)
    await bus.pause(LANE, tenant="acme", actor="ann")
    async with shifted(dsn, "2 s") as later:
        found = await later.claim(message.key.lane, 5, holder="hand", epoch=1, timeout_ms=1_000)
        assert found.messages == []
        assert found.due_s is None, "a retry that may not run doesn't make anybody look again and again"
        await later.resume(LANE, tenant="acme", actor="ann")
        (again,) = await Hand(later).claim(LANE)
        assert again.id == message.id


async def test_from_psql(bus: Bus) -> None:
    """The functions alone are enough; a lane that nobody has served yet may be paused ahead."""
    hand = await Hand(bus).register()
    id = await insert(bus, f"{LANE}@acme")
    for call in ("pause('t', 'echo', NULL, 'me', 'why')", "pause('t', 'echo', 'acme', 'me')"):
        assert await bus.db.fetch_value(f"SELECT cogo.{call}") is True
        assert await claimed(hand) == []
    assert await bus.db.fetch_value("SELECT cogo.resume('t', 'echo', NULL, 'me')") is True
    assert await claimed(hand) == []
    assert await bus.db.fetch_value("SELECT cogo.resume('t', 'echo', 'acme', 'me')") is True
    assert await claimed(hand) == [id]
    assert await bus.db.fetch_value("SELECT cogo.resume('t', 'nothing', NULL, 'me')") is False


async def test_what_can_not_be_paused(bus: Bus) -> None:
    with pytest.raises(Invalid, match="t/ehco"):
        await bus.pause("t/ehco", actor="ann")
    for wrong in ("t", "t/echo/0", "t/echo@acme"):
        with pytest.raises(RoutingInvalid):
            await bus.pause(wrong, actor="ann")
    await policy(bus, LANE)
    with pytest.raises(RoutingInvalid):
        await bus.pause(LANE, tenant="a b", actor="ann")
    assert await audit(bus) == []


async def test_a_restart_resumes_nothing_and_a_resume_wakes(bus: Bus, dsn: str) -> None:
    """Its poll is a minute, so it is the wakeup that brings the messages."""

    async def echo(task: dict[str, Any], ctx: cogo.Context) -> int:
        return ctx.message_id

    await policy(bus, LANE)
    await bus.pause(LANE, actor="ann")
    await bus.pause(LANE, tenant="acme", actor="ann")
    async with process(dsn, [cogo.Role("t", "echo", handle=echo)], poll_ms=60_000):
        acme, beta = await bus.enqueue(f"{LANE}@acme", {}), await bus.enqueue(f"{LANE}@beta", {})
        await eventually_async(lambda: bus.db.fetch_value("SELECT count(*) = 1 FROM cogo.bus_idle"))
        assert {(await row(bus, id))["status"] for id in (acme, beta)} == {"queued"}
        await bus.resume(LANE, actor="ann")
        assert (await bus.result(beta, timeout_s=10)).status == "done"
        assert (await row(bus, acme))["status"] == "queued"
        await bus.resume(LANE, tenant="acme", actor="ann")
        assert (await bus.result(acme, timeout_s=10)).status == "done"


async def test_a_paused_tenant_that_floods_the_lane_does_not_slow_the_others(bus: Bus) -> None:
    """Claims remember that they have passed 20,000 paused messages, and forget it soon enough."""
    hand = await Hand(bus).register()
    await bus.enqueue_many(f"{LANE}@acme", [{} for _ in range(20_000)])
    await bus.enqueue_many(f"{LANE}@beta", [{} for _ in range(200)])
    await bus.pause(LANE, tenant="acme", actor="ann")
    for _ in range(12):  # each goes some thousands further at most
        if await claimed(hand, 5):
            break
    sql = "SELECT * FROM cogo.claim('t', 'echo', 0, 5, 'hand', 1, 60000, '{0,0,0,0}')"
    ((rows, pages),) = await touched(bus.db, sql)
    assert (rows, pages < 500) == (5, True), pages
    await bus.resume(LANE, tenant="acme", actor="ann")
    assert await claimed(hand, 1) == [1], "the first of all is not forgotten"


async def test_a_message_that_shows_late_is_not_passed_over_for_long(bus: Bus, dsn: str) -> None:
    """Its seq is older than the place from which claims look while a tenant is paused."""
    hand = await Hand(bus).register()
    async with await connect(dsn, "late") as conn, conn.transaction():
        late = await cogo.enqueue(conn, f"{LANE}@beta", {})
        await bus.enqueue_many(f"{LANE}@acme", [{} for _ in range(2_000)])
        await bus.pause(LANE, tenant="acme", actor="ann")
        assert await claimed(hand) == []
        seqs = await bus.db.fetch_value("SELECT seqs FROM cogo.bus_floors")
        assert seqs[2] > (await bus.db.fetch_value("SELECT last_value FROM cogo.bus_seq")) - 100
    assert await claimed(hand) == []
    async with shifted(dsn, "11 s") as later:
        assert [message.id for message in await Hand(later).claim(LANE)] == [late]


async def test_claims_at_once_while_a_tenant_is_paused(bus: Bus) -> None:
    await bus.enqueue_many(f"{LANE}@acme", [{} for _ in range(50)])
    ids = set(await bus.enqueue_many(f"{LANE}@beta", [{} for _ in range(200)]))
    await bus.pause(LANE, tenant="acme", actor="ann")
    got: list[int] = []

    async def take(hand: Hand) -> None:
        while found := await claimed(hand, 7):
            got.extend(found)

    async with anyio.create_task_group() as tasks:
        for n in range(5):
            tasks.start_soon(take, await Hand(bus, f"box-{n}").register())
    assert len(got) == len(set(got))
    assert set(got) == ids


async def test_only_those_who_may_use_the_bus_may_pause(bus: Bus) -> None:
    async with bus.db.transaction() as conn:
        await conn.execute("SET LOCAL ROLE authenticated")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await conn.execute("SELECT cogo.pause('t', 'echo', NULL, 'me')")
