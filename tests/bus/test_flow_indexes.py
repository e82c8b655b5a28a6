"""Proves that the indexes of single lanes are made by the processes that want them, and that lanes work without."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from hands import Hand, policy, process
from helpers import eventually_async
from psycopg.conninfo import make_conninfo

import cogo
from cogo.core import operate
from cogo.core.bus import Bus
from cogo.core.db import Database, connect
from cogo.core.operate import keep_lane_indexes, make_lane_indexes

LANE = "t/echo"
STATE = "SELECT name, made FROM cogo.lane_indexes('t', 'echo') ORDER BY name"


async def state(bus: Bus) -> list[bool | None]:
    return [found["made"] for found in await bus.db.fetch(STATE)]


async def works(bus: Bus) -> None:
    """A claim of three from three tenants brings one of each."""
    for tenant in ("hot", "hot", "hot", "a", "b"):
        await bus.enqueue(f"{LANE}@{tenant}", {})
    messages = await (await Hand(bus).register()).claim(LANE, 3)
    assert {message.key.tenant for message in messages} == {"hot", "a", "b"}


async def echo(task: dict[str, Any], ctx: cogo.Context) -> None: ...


@pytest.mark.parametrize(
    ("role", "indexes"),
    [
        ({}, 0), ({"fair": True}, 2), ({"max_running": 3}, 1), ({"max_running_per_tenant": 3}, 2),
        ({"fair": True, "max_running": 3, "max_running_per_tenant": 2}, 2),
    ],
    ids=str,
)  # fmt: skip
async def test_a_process_makes_what_its_role_wants(
    dsn: str, bus: Bus, role: dict[str, Any], indexes: int
) -> None:
    async with process(dsn, [cogo.Role("t", "echo", handle=echo, **role)]):
        await eventually_async(lambda: made(bus, indexes))
        lane = (await bus.lanes())[0]
        assert (lane["fair"], lane["indexed"]) == (role.get("fair", False), True)
        assert lane["limits"] == {name: most for name, most in role.items() if name != "fair"}


async def made(bus: Bus, count: int) -> bool:
    return await state(bus) == [True] * count


async def test_a_role_that_is_no_longer_fair_is_claimed_the_fast_way(dsn: str, bus: Bus) -> None:
    for fair in (True, False):
        async with process(dsn, [cogo.Role("t", "echo", handle=echo, fair=fair)]):
            found = await bus.lanes()
            assert found[0]["fair"] is fair


async def test_makers_at_once(bus: Bus, dsn: str) -> None:
    """Four processes start at the same time: one makes them, nobody fails, and all come to an end."""
    await policy(bus, LANE, fair=True)
    with anyio.fail_after(15):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(keep_lane_indexes, bus.db, [("t", "echo")])
    assert await made(bus, 2)
    await works(bus)


async def test_what_a_crash_left_invalid_is_made_again(bus: Bus, dsn: str) -> None:
    """The maker dies while it waits for an old transaction; meanwhile and afterwards the lane works."""
    await policy(bus, LANE, fair=True)
    dying = Database(dsn, application="dying")
    await dying.open()
    async with await connect(dsn, "old") as conn:
        async with conn.transaction():
            await conn.execute("INSERT INTO public.agent_messages (service, role) VALUES ('t', 'other')")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(dies, dying)
                await eventually_async(lambda: half_made(bus))
                kill = (
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dying'"
                )
                await bus.db.execute(kill)
            assert None in await state(bus)
            await works(bus)
    await dying.close()
    await keep_lane_indexes(bus.db, [("t", "echo")])
    assert await made(bus, 2)


async def dies(db: Database) -> None:
    with pytest.raises(cogo.errors.BusUnavailable):
        await make_lane_indexes(db, "t", "echo")


async def half_made(bus: Bus) -> bool:
    return None in await state(bus)


async def test_an_old_transaction_delays_it_and_leaves_nothing_behind(
    bus: Bus, dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It gives up for a while, so that writers don't pay for half an index, and comes back."""
    monkeypatch.setattr(operate, "INDEX_WAIT_S", 0.1)
    await policy(bus, LANE, fair=True)
    with caplog.at_level(logging.WARNING, "cogo"), anyio.fail_after(15):
        async with anyio.create_task_group() as tasks:
            async with await connect(dsn, "old") as conn, conn.transaction():
                await conn.execute("INSERT INTO public.agent_messages (service, role) VALUES ('t', 'other')")
                tasks.start_soon(keep_lane_indexes, bus.db, [("t", "echo")])
                await eventually_async(lambda: "index.later" in caplog.text)
            await eventually_async(lambda: made(bus, 2))
    assert "lock timeout" in caplog.text


async def test_without_ownership_the_lane_works_only_slower(
    bus: Bus, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    await policy(bus, LANE, fair=True)
    db = Database(make_conninfo(dsn, options="-c role=service_role"))
    await db.open()
    try:
        with caplog.at_level(logging.WARNING, "cogo"), anyio.fail_after(10):
            await keep_lane_indexes(db, [("t", "echo")])
        assert "index.refused" in caplog.text
        assert "lane_indexes()" in caplog.text, "the warning says what to do"
        await works(Bus(db))
    finally:
        await db.close()
    assert await state(bus) == [False, False]


async def test_claims_of_a_fair_lane_use_them(bus: Bus, dsn: str) -> None:
    """Whatever the statistics say, the other indexes can't serve these queries."""
    await policy(bus, LANE, fair=True)
    await make_lane_indexes(bus.db, "t", "echo")
    hand = await Hand(bus).register()
    names = [found["name"] for found in await bus.db.fetch(STATE)]
    used = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = %s"
    for _ in range(3):
        await bus.enqueue_many(f"{LANE}@a", [{} for _ in range(50)])
        before = [await fresh(bus, used, name) for name in names]
        assert len(await hand.claim(LANE, 20)) == 20
        await eventually_async(lambda: grown(bus, used, names, before))  # noqa: B023
        await bus.db.execute("ANALYZE public.agent_messages")


async def fresh(bus: Bus, sql: str, name: str) -> int:
    async with bus.db.connection() as conn:
        await conn.execute("SELECT pg_stat_force_next_flush()")
        row = await (await conn.execute(sql.encode(), (name,))).fetchone()
    return int(next(iter(row.values()))) if row else 0


async def grown(bus: Bus, sql: str, names: list[str], before: list[int]) -> bool:
    now = [await fresh(bus, sql, name) for name in names]
    return all(new > old for new, old in zip(now, before, strict=True))


async def test_each_lane_has_its_own(bus: Bus) -> None:
    for lane in (LANE, "t/other"):
        await policy(bus, lane, fair=True)
        await make_lane_indexes(bus.db, *lane.split("/"))
    names = await bus.db.fetch(
        "SELECT indexname AS name FROM pg_indexes WHERE indexname ~ 'agent_messages_(tenants|running)_'"
    )
    assert len({found["name"] for found in names}) == 4
