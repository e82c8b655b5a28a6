"""Proves that work goes on when the database has been away: nothing lost, nothing accepted twice."""

from __future__ import annotations

import functools
from collections import Counter
from contextlib import suppress
from typing import Any

import anyio
import pytest
from hands import counts, process, row
from helpers import eventually_async
from proxy import proxied

import cogo
from cogo.core import consumer as consumers
from cogo.core.bus import Bus
from cogo.core.db import Database
from cogo.core.errors import BusUnavailable

MANY = 120
LONG_LEASE = {"lease_ms": 20_000, "beat_ms": 300}


class History:
    """Which handler saw which claim, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.gate = anyio.Event()

    async def handle(self, task: dict[str, Any], ctx: cogo.Context) -> int:
        self.seen.append((ctx.message_id, ctx.message.fence))
        await self.gate.wait()
        return ctx.message.fence

    def role(self, concurrency: int = 8) -> cogo.Role:
        return cogo.Role("t", "work", handle=self.handle, concurrency=concurrency, max_attempts=20)

    async def check(self, bus: Bus, ids: list[int]) -> None:
        """Each message is done once, with the answer of its last claim, and no claim was seen twice."""
        rows = await bus.db.fetch(
            "SELECT id, status, result_snippet, fence FROM public.agent_messages ORDER BY id"
        )
        assert [(found["id"], found["status"], found["fence"]) for found in rows] == [
            (id, "done", 0) for id in ids
        ]
        answers = {found["id"]: int(found["result_snippet"]) for found in rows}
        assert answers == dict(sorted(self.seen)), "the newest claim's answer is what counts"
        assert max(Counter(self.seen).values()) == 1
        assert (await counts(bus))["done"] == len(ids)


async def all_done(bus: Bus) -> bool:
    left = await bus.db.fetch_value("SELECT count(*) FROM public.agent_messages WHERE status <> 'done'")
    return bool(left == 0)


async def test_handlers_go_on_through_an_outage_that_is_shorter_than_the_lease(dsn: str, bus: Bus) -> None:
    history = History()
    async with proxied(dsn) as proxy, process(proxy.dsn, [history.role()], **LONG_LEASE):
        ids = await bus.enqueue_many("t/work", [{} for _ in range(20)])
        await eventually_async(lambda: len(history.seen) == 8)
        async with proxy.away():
            history.gate.set()  # eight outcomes for a database that is not there
            for _ in range(3):
                await anyio.wait_all_tasks_blocked()
        await eventually_async(lambda: all_done(bus), timeout_s=15)
    await history.check(bus, ids)
    assert len(history.seen) == 20, "no handler had to run again"


async def test_an_outage_longer_than_the_lease_stops_the_handlers(dsn: str, bus: Bus) -> None:
    history = History()
    async with proxied(dsn) as proxy, process(proxy.dsn, [history.role()], lease_ms=1_000) as runtime:
        ids = await bus.enqueue_many("t/work", [{} for _ in range(20)])
        await eventually_async(lambda: len(history.seen) == 8)
        async with proxy.away():
            await eventually_async(lambda: not runtime.lease.stands)
            assert not runtime.health().ready
            history.gate.set()
        await eventually_async(lambda: all_done(bus), timeout_s=15)
        await eventually_async(lambda: runtime.health().ready)
    await history.check(bus, ids)
    assert len(history.seen) > 20


async def test_killed_backends_in_the_middle_of_everything(
    dsn: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "RECOVER_EVERY_S", 0.5)
    history = History()
    history.gate.set()
    kill = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'cogo:%%'"
    )
    async with process(dsn, [history.role()], **LONG_LEASE):
        ids: list[int] = []
        for _ in range(6):
            ids += await bus.enqueue_many("t/work", [{} for _ in range(MANY // 6)])
            await eventually_async(lambda: bus.db.fetch_value(kill))
        await eventually_async(lambda: all_done(bus), timeout_s=17)
    await history.check(bus, ids)


async def test_a_claim_whose_answer_was_lost_is_found_and_given_back(
    dsn: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed, but nobody knows of it: the lease stands, so only this process can put it back."""
    monkeypatch.setattr(consumers, "RECOVER_EVERY_S", 0.3)
    history = History()
    history.gate.set()
    async with proxied(dsn) as proxy:
        proxy.lose_answers_to = b"cogo.claim"
        ids = await bus.enqueue_many("t/work", [{}, {}, {}])
        async with process(proxy.dsn, [history.role()], **LONG_LEASE):
            await eventually_async(lambda: all_done(bus))
        assert proxy.lost == 1
    await history.check(bus, ids)
    assert {(await row(bus, id))["attempts"] for id in ids} == {1}, "no handler saw the lost claim"


async def test_a_dark_link_is_noticed(dsn: str, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections stay open but nothing comes through: statements get a time limit of our own."""
    monkeypatch.setattr("cogo.core.bus.STATEMENT_S", 0.5)
    monkeypatch.setattr(consumers, "RECOVER_EVERY_S", 0.5)  # a claim that was sent may still arrive
    history = History()
    async with proxied(dsn) as proxy, process(proxy.dsn, [history.role()], lease_ms=1_000) as runtime:
        ids = await bus.enqueue_many("t/work", [{} for _ in range(20)])
        await eventually_async(lambda: len(history.seen) == 8)
        proxy.freeze()
        history.gate.set()
        await eventually_async(lambda: not runtime.lease.stands)
        proxy.thaw()
        await eventually_async(lambda: all_done(bus), timeout_s=15)
    await history.check(bus, ids)


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
async def test_a_process_can_stop_while_the_database_is_away(
    dsn: str, bus: Bus, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    monkeypatch.setattr("cogo.core.runtime.FORCED_END_S", 0.3)
    history = History()
    async with proxied(dsn) as proxy, anyio.create_task_group() as tasks:
        ended, ready = anyio.Event(), anyio.Event()

        async def run() -> None:
            async with process(proxy.dsn, [history.role()], grace_s=0.3, **LONG_LEASE):
                if busy:
                    await bus.enqueue("t/work", {})
                    await eventually_async(lambda: history.seen)
                async with proxy.away():
                    ready.set()
                    with anyio.move_on_after(0.1):
                        await anyio.sleep_forever()
                    proxy.refusing = True
                proxy.refusing = True
            ended.set()

        tasks.start_soon(run)
        with anyio.fail_after(15):
            await ready.wait()
            await ended.wait()


async def test_a_waiter_outlives_an_outage(dsn: str, bus: Bus) -> None:
    async with proxied(dsn) as proxy, cogo.connect(proxy.dsn) as far:
        id = await bus.enqueue("t/work", {})
        found: list[str] = []

        async def wait() -> None:
            found.append((await far.result(id, timeout_s=15)).status)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await eventually_async(
                functools.partial(bus.db.fetch_value, "SELECT count(*) FROM cogo.bus_waiters")
            )
            async with proxy.away():
                await bus.cancel(id, actor="test")
        assert found == ["cancelled"]


# -- the pool ----------------------------------------------------------------------------------


async def test_dead_connections_are_replaced_together(dsn: str, bus: Bus) -> None:
    """A restart of Postgres kills all of a pool; finding them one by one would take half a minute."""
    db = Database(dsn, application="cogo:pool", pool_min=6, pool_max=6)
    await db.open()
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(db.fetch, "SELECT pg_sleep(0.05)")
        kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'cogo:pool'"
        assert await bus.db.fetch_value(kill) == 6
        with anyio.fail_after(5):
            while True:
                with suppress(BusUnavailable):  # the first may be met before its farewell has arrived
                    assert await db.fetch_value("SELECT 1") == 1
                    break
    finally:
        await db.close()


async def test_who_waits_for_a_connection_gets_it_when_the_database_is_back(dsn: str) -> None:
    async with proxied(dsn) as proxy:
        db = Database(proxy.dsn, pool_min=2, pool_max=2)
        async with proxy.away(), anyio.create_task_group() as tasks:
            await db.open()
            with anyio.fail_after(9):  # the pool's own time limit is 10 s
                tasks.start_soon(db.fetch_value, "SELECT 1")
                await eventually_async(lambda: proxy.refused >= 4)
                proxy.refusing = False
                while tasks._tasks:
                    await anyio.wait_all_tasks_blocked()
        await db.close()
