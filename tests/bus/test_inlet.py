"""Proves that callers who enqueue at the same time share statements, and nothing else: not errors, not fates."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import psycopg
import pytest
from helpers import eventually_async
from proxy import proxied

from cogo.core.bus import Bus
from cogo.core.db import Database
from cogo.core.errors import BusUnavailable

REFUSE = """
CREATE FUNCTION public.refuse_bad() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.payload ? 'bad' THEN RAISE EXCEPTION 'bad one' USING ERRCODE = 'P0001'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse_bad BEFORE INSERT ON public.agent_messages FOR EACH ROW EXECUTE FUNCTION public.refuse_bad();
"""


async def put_all(bus: Bus, payloads: list[Any]) -> list[int | Exception]:
    """Enqueue all at the same time; ids and errors in their order."""
    found: list[int | Exception] = [0] * len(payloads)

    async def one(n: int) -> None:
        try:
            found[n] = await bus.enqueue("t/echo", payloads[n])
        except (psycopg.Error, BusUnavailable) as error:
            found[n] = error

    async with anyio.create_task_group() as tasks:
        for n in range(len(payloads)):
            tasks.start_soon(one, n)
    return found


async def rows(bus: Bus) -> list[dict[str, Any]]:
    return await bus.db.fetch("SELECT id, payload, xmin::text AS tx FROM public.agent_messages ORDER BY id")


async def test_many_callers_share_few_transactions(bus: Bus) -> None:
    ids = await put_all(bus, [{"n": n} for n in range(200)])
    stored = await rows(bus)
    assert {row["id"]: row["payload"]["n"] for row in stored} == {id: n for n, id in enumerate(ids)}
    assert len({row["tx"] for row in stored}) < 20


async def test_callers_that_wake_together_send_together(bus: Bus) -> None:
    """Eight callers, one message after the other: their second statement has all eight again."""

    async def caller() -> None:
        for n in range(3):
            await bus.enqueue("t/echo", {"n": n})

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(caller)
    assert len({row["tx"] for row in await rows(bus)}) == 3


async def test_one_caller_alone_is_not_kept_waiting(bus: Bus) -> None:
    """Each of its messages goes at once, in a transaction of its own."""
    for n in range(5):
        await bus.enqueue("t/echo", {"n": n})
    assert len({row["tx"] for row in await rows(bus)}) == 5


async def test_awkward_payloads_arrive_whole(bus: Bus) -> None:
    payloads: list[Any] = [
        {'"': '\\"'},
        {"nul": None},
        "null",
        ["{,}"],
        "\\",
        {"ü": "\n\t", "e": ""},
        1.5,
        None,
    ]
    ids = await put_all(bus, payloads)
    assert [
        row["payload"] for row in sorted(await rows(bus), key=lambda row: ids.index(row["id"]))
    ] == payloads


async def test_a_refused_message_hurts_no_other(bus: Bus) -> None:
    await bus.db.execute(REFUSE)
    found = await put_all(bus, [{"bad" if n == 7 else "good": n} for n in range(20)])
    assert [n for n, one in enumerate(found) if isinstance(one, Exception)] == [7]
    assert isinstance(found[7], psycopg.errors.RaiseException)
    assert len(await rows(bus)) == 19


async def test_a_caller_that_is_cancelled_takes_nobody_along(bus: Bus, dsn: str) -> None:
    """The table is locked, so that the first statement waits: its leader and a follower are cancelled."""
    found: list[int] = []
    scopes = [anyio.CancelScope() for _ in range(6)]

    async def one(n: int) -> None:
        with scopes[n]:
            found.append(await bus.enqueue("t/echo", {"n": n}))

    async def one_was_sent() -> bool:
        sql = """SELECT count(*) FROM pg_stat_activity
                 WHERE wait_event_type = 'Lock' AND datname = current_database()"""
        return bool(await bus.db.fetch_value(sql) == 1)

    async with await psycopg.AsyncConnection.connect(dsn) as locker:
        await locker.execute("LOCK TABLE public.agent_messages IN EXCLUSIVE MODE")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, 0)
            try:
                await eventually_async(one_was_sent)
                for n in range(1, 6):
                    tasks.start_soon(one, n)
                await anyio.wait_all_tasks_blocked()
                scopes[0].cancel()  # leads the first statement: it was sent, so it is inserted
                scopes[5].cancel()  # still in the line: it is not
                await anyio.lowlevel.checkpoint()
            finally:
                await locker.rollback()
    assert {row["payload"]["n"] for row in await rows(bus)} == {0, 1, 2, 3, 4}
    assert len(found) == 5
    assert await bus.enqueue("t/echo", {}) > 0, "the line goes on"


async def test_no_caller_hears_of_success_when_the_sender_is_stopped_from_outside(bus: Bus, dsn: str) -> None:
    """Asyncio's own cancel() goes through anyio's shield: the statement breaks off, for all that it carries."""
    found: list[Any] = []

    async def follow() -> None:
        try:
            found.append(await bus.enqueue("t/echo", {}))
        except BusUnavailable as error:
            found.append(error)

    async def was_sent() -> bool:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return bool(await bus.db.fetch_value(sql) == 1)

    async with await psycopg.AsyncConnection.connect(dsn) as locker:
        await locker.execute("LOCK TABLE public.agent_messages IN EXCLUSIVE MODE")
        async with anyio.create_task_group() as tasks:
            leader = asyncio.get_running_loop().create_task(bus.enqueue("t/echo", {}))
            for _ in range(3):
                tasks.start_soon(follow)
            await eventually_async(was_sent)
            leader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leader
            await locker.rollback()
    assert len(found) == 3
    assert all(isinstance(one, BusUnavailable) for one in found), found
    assert await bus.enqueue("t/echo", {}) > 0, "the line goes on"


@pytest.mark.slow
@pytest.mark.timeout(40)
async def test_each_caller_hears_that_the_database_is_away(dsn: str) -> None:
    async with proxied(dsn) as proxy:
        db = Database(proxy.dsn, application="test")
        await db.open()
        bus = Bus(db)
        await bus.enqueue("t/echo", {})
        async with proxy.away():
            found = await put_all(bus, [{}] * 5)
        assert all(isinstance(one, BusUnavailable) for one in found)

        async def back() -> bool:
            return not isinstance((await put_all(bus, [{}]))[0], Exception)

        await eventually_async(back)
        await db.close()


@pytest.mark.parametrize("most", [1, 3])
async def test_a_batch_has_a_bound(bus: Bus, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr("cogo.core.inlet.MOST", most)
    ids = await put_all(bus, [{"n": n} for n in range(10)])
    assert len(set(ids)) == len(await rows(bus)) == 10
