"""Proves that executors share one limit, one breaker and one retry budget for each target, and lose nothing by them."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hands import Hand, kinds, process, shifted
from helpers import eventually_async

import cogo
from cogo.core.bus import Bus
from cogo.core.db import Database
from cogo.core.errors import InvalidSetting
from cogo.core.model import Outcome
from cogo.core.registry import Registry
from cogo.core.settings import Settings
from cogo.plugins import executor

EXECUTE = "orchestrator/execute@{}"


class Target:
    """A target whose messages run until the test lets them end, and end as the test says."""

    def __init__(self, **options: Any) -> None:
        self.go = anyio.Event()
        self.fail: Exception | None = None
        self.running = self.most = 0
        self.role = cogo.Role("voice", "shout", handle=self.handle, concurrency=16, **options)

    async def handle(self, task: dict[str, Any], ctx: cogo.Context) -> str:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if task.get("waits"):
                await self.go.wait()
            if self.fail:
                raise self.fail
            return "HI"
        finally:
            self.running -= 1


def executors(dsn: str, **policy: Any) -> Any:
    return process(dsn, ["executor"], plugins={"executor": policy})


async def send(bus: Bus, *, tenant: str = "acme", ttl_ms: int | None = None, **payload: Any) -> int:
    order = {"to": "voice/shout", "payload": payload, "assignment": {"ttl_ms": ttl_ms}}
    return await bus.enqueue(EXECUTE.format(tenant), order)


async def put_off(bus: Bus, code: str) -> int:
    """How many messages of the executor are queued for that reason."""
    return int(await bus.db.fetch_value(
        "SELECT count(*) FROM public.agent_messages WHERE role = 'execute' AND status = 'queued' AND error LIKE %s",
        (f"retry: {code}: voice/shout %",)))  # fmt: skip


async def handed_out(bus: Bus) -> int:
    """How many of the target's messages have not ended."""
    return int(await bus.db.fetch_value(
        "SELECT count(*) FROM public.agent_messages WHERE service = 'voice' AND status IN ('queued', 'claimed', 'waiting')"
    ))  # fmt: skip


async def until_put_off(bus: Bus, code: str, count: int) -> None:
    async def there() -> bool:
        return await put_off(bus, code) == count

    await eventually_async(there)


async def until_asked_again(bus: Bus) -> None:
    """Each message that is put off now has been tried once more: that gives it another seq."""
    waiting = "SELECT id, seq FROM public.agent_messages WHERE role = 'execute' AND status = 'queued'"
    before = {row["id"]: row["seq"] for row in await bus.db.fetch(waiting)}
    assert before

    async def all_changed() -> bool:
        now = {row["id"]: row["seq"] for row in await bus.db.fetch(waiting)}
        return all(now.get(id, seq) != seq for id, seq in before.items())

    await eventually_async(all_changed)


def code_of(result: Any) -> str:
    return str(result.error or "").split(":")[0]


# -- concurrency ----------------------------------------------------------------------------------


async def test_two_executors_obey_one_limit_and_lose_nothing(dsn: str) -> None:
    target = Target()
    limit = {"concurrency": {"voice/shout": 2}, "max_in_flight": 100}
    async with executors(dsn, **limit) as one, executors(dsn, **limit), process(dsn, [target.role]):
        bus = one.bus
        ids = [await send(bus, waits=True) for _ in range(6)]
        await until_put_off(bus, "target_busy", 4)
        await until_asked_again(bus)
        assert await handed_out(bus) == 2
        target.go.set()
        results = [await bus.result(id, timeout_s=15) for id in ids]
        assert {(result.status, result.attempts) for result in results} == {("done", 1)}
        assert target.most <= 2
        found = await kinds(bus)
        assert [found.count(f"execute_{kind}") for kind in ("enqueued", "done", "retry")] == [6, 6, 4]
        why = await bus.db.fetch_value(
            "SELECT detail FROM public.bus_events WHERE kind = 'execute_retry' LIMIT 1"
        )
        assert why == {"error": "target_busy: voice/shout has 2 of 2 under way", "attempts": 0}


async def test_who_counts_at_the_same_time_waits_for_the_other(database: Database) -> None:
    """Without that both would see a free place, and take it."""
    bus = Bus(database)
    hand = await Hand(bus).register("orchestrator/execute")
    for _ in range(2):
        await send(bus)
    first, second = await hand.claim("orchestrator/execute")
    found: list[list[dict[str, Any]]] = []

    async def late() -> None:
        found.append(await database.fetch(executor.DISPATCH, params(second)))

    async def waits() -> bool:
        return bool(
            await database.fetch_value(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            )
        )

    async with anyio.create_task_group() as tasks:
        async with database.transaction() as conn:
            assert await (await conn.execute(executor.DISPATCH, params(first))).fetchall() == []
            tasks.start_soon(late)
            await eventually_async(waits)
            assert found == []
    assert [row["refused"] for row in found[0]] == ["target_busy"]


def params(message: Any, **changes: Any) -> dict[str, Any]:
    """Of DISPATCH, as the executor fills them, with room for one."""
    return {
        "id": message.id, "fence": message.fence, "root": message.root_id, "tenant": message.key.tenant,
        "service": "voice", "role": "shout", "cost": None, "tokens": 10, "ttl_ms": 60_000, "most": 1,
        "most_of_tenant": None, "failures": 3, "open_ms": 1000, "retry_ratio": 0.2, "retry_floor": 100,
    } | changes  # fmt: skip


async def test_a_tenant_has_a_limit_of_its_own(dsn: str) -> None:
    target = Target()
    async with executors(dsn, max_in_flight_per_tenant=1) as runtime, process(dsn, [target.role]):
        bus = runtime.bus
        first = await send(bus, waits=True)
        await eventually_async(lambda: target.running == 1)
        second = await send(bus)
        await until_put_off(bus, "target_busy", 1)
        other = await send(bus, tenant="other")
        assert (await bus.result(other)).status == "done"
        target.go.set()
        assert [(await bus.result(id)).status for id in (first, second)] == ["done", "done"]


async def test_what_is_cancelled_makes_room(dsn: str) -> None:
    target = Target()
    async with executors(dsn, max_in_flight=1) as runtime, process(dsn, [target.role, "reclaimer"]):
        bus = runtime.bus
        first = await send(bus, waits=True)
        await eventually_async(lambda: target.running == 1)
        second = await send(bus)
        await until_put_off(bus, "target_busy", 1)
        await bus.cancel(first, actor="test", reason="enough")
        assert (await bus.result(second)).status == "done"


async def test_a_place_of_a_deleted_message_comes_back(dsn: str) -> None:
    async with executors(dsn, max_in_flight=1) as runtime:
        bus = runtime.bus
        await send(bus)
        await until_running(bus, 1)
        assert await bus.db.fetch_value("SELECT cogo.retain_rest(14, 100)") == 0  # it lives
        assert await running(bus) == 1
        await bus.db.execute("DELETE FROM public.agent_messages WHERE service = 'voice'")
        await bus.db.fetch("SELECT cogo.retain_rest(14, 100)")
        assert await running(bus) == 0


async def running(bus: Bus) -> int:
    return int(await bus.db.fetch_value("SELECT count(*) FROM cogo.dispatches WHERE ended_at IS NULL"))


async def until_running(bus: Bus, count: int) -> None:
    async def there() -> bool:
        return await running(bus) == count

    await eventually_async(there)


async def test_who_waits_too_long_fails_with_a_code(dsn: str) -> None:
    target = Target()
    async with executors(dsn, max_in_flight=1) as runtime, process(dsn, [target.role]):
        bus = runtime.bus
        await send(bus, waits=True)
        await eventually_async(lambda: target.running == 1)
        late = await bus.result(await send(bus, ttl_ms=600))
        assert (late.status, code_of(late), late.attempts) == ("failed", "target_busy", 1)
        assert "execute_failed" in await kinds(bus, late.id)
        target.go.set()


# -- breaker --------------------------------------------------------------------------------------


async def test_a_target_that_fails_is_left_alone_then_tried_with_one_message(dsn: str) -> None:
    target = Target(max_attempts=1)
    policy = {"breaker_failures": 3, "breaker_open_s": 3.0}
    async with executors(dsn, **policy) as one, executors(dsn, **policy), process(dsn, [target.role]):
        bus = one.bus
        target.fail = RuntimeError("no")
        for _ in range(3):
            assert code_of(await bus.result(await send(bus))) == "handler_error"
        target.fail, target.most = None, 0
        ids = [await send(bus, waits=True) for _ in range(4)]
        await until_put_off(bus, "target_unavailable", 4)  # open
        await eventually_async(lambda: target.running == 1)  # half open: the probe
        await until_asked_again(bus)
        await until_put_off(bus, "target_unavailable", 3)
        assert (await handed_out(bus), target.most) == (1, 1)
        target.go.set()
        results = [await bus.result(id, timeout_s=15) for id in ids]
        assert {(result.status, result.attempts) for result in results} == {("done", 1)}
        assert await bus.db.fetch_value("SELECT count(*) FROM cogo.dispatches WHERE probe") == 1
        assert (await kinds(bus)).count("execute_retry") == 4


async def test_what_would_be_too_late_is_refused_at_once(dsn: str) -> None:
    target = Target(max_attempts=1)
    async with executors(dsn, breaker_failures=2) as runtime, process(dsn, [target.role]):
        bus = runtime.bus
        target.fail = RuntimeError("no")
        for _ in range(2):
            await bus.result(await send(bus))
        refused = await bus.result(await send(bus, ttl_ms=20_000))  # it is open for 30 s
        assert (code_of(refused), refused.attempts) == ("target_unavailable", 1)
        assert refused.error == (
            "target_unavailable: voice/shout failed 2 times in a row and is left alone for a while"
        )
        assert "execute_retry" not in await kinds(bus, refused.id)


async def test_what_the_caller_got_wrong_opens_no_breaker(dsn: str) -> None:
    target = Target()
    async with executors(dsn, breaker_failures=2) as runtime, process(dsn, [target.role]):
        bus = runtime.bus
        target.fail = cogo.Reject("not a word")
        for _ in range(4):
            assert code_of(await bus.result(await send(bus))) == "rejected"


async def test_a_success_between_closes_it_and_failed_probes_double_the_time(database: Database) -> None:
    bus = Bus(database)

    async def ended(ok: bool | None, second: int, *, probe: bool = False) -> None:
        await database.execute(
            "INSERT INTO cogo.dispatches (message_id, fence, service, role, tenant, probe, retry_ratio, retry_floor, at, ended_at, ok)"
            " VALUES (%(s)s, %(s)s, 'voice', 'shout', 'acme', %(probe)s, 0, 0, now(), "
            "timestamptz '2026-01-01' + %(s)s * interval '1 s', %(ok)s)",
            {"s": second, "probe": probe, "ok": ok},
        )

    async def is_open() -> tuple[int, float] | None:
        """Failures, and for how long from the last one."""
        row = await bus.db.fetch_one(
            "SELECT b.failures, extract(epoch FROM b.until - (SELECT max(ended_at) FROM cogo.dispatches WHERE NOT ok))::float8 AS s"
            " FROM cogo.breaker('voice', 'shout', 2, 30000) b"
        )
        return row and (row["failures"], row["s"])

    for second, ok in enumerate([False, True, False, None]):
        await ended(ok, second)
    assert await is_open() is None
    await ended(False, 10)
    assert await is_open() == (2, 30.0)
    for second in (20, 21, 22, 23, 24):
        await ended(False, second, probe=True)
    assert await is_open() == (7, 300.0)
    await ended(True, 30, probe=True)
    assert await is_open() is None


# -- retry budget ---------------------------------------------------------------------------------


async def test_the_retries_of_a_target_have_a_budget(dsn: str) -> None:
    target = Target(backoff_base_s=0.0, max_attempts=4)
    policy = {"retry_floor": 0, "retry_ratio": 0.5, "breaker_failures": 0}
    async with executors(dsn, **policy) as runtime, process(dsn, [target.role]):
        bus = runtime.bus
        for _ in range(4):
            assert (await bus.result(await send(bus))).status == "done"
        target.fail = RuntimeError("no")
        failed = await bus.result(await send(bus))
        assert failed.error == "retry_budget_spent: handler_error: RuntimeError: no"
        attempts = "SELECT attempts FROM public.agent_messages WHERE reply_to = %s"
        assert await bus.db.fetch_value(attempts, (failed.id,)) == 3  # two retries for four successes
        again = await bus.result(await send(bus))
        assert await bus.db.fetch_value(attempts, (again.id,)) == 1
        direct = await bus.result(await bus.enqueue("voice/shout", {}))  # not the executor's to limit
        assert (code_of(direct), direct.attempts) == ("handler_error", 4)
        found = await kinds(bus, failed.id)
        assert [kind for kind in found if kind != "execute_enqueued"] == ["execute_retry"] * 2 + [
            "execute_failed"
        ]


async def test_batches_at_the_same_time_share_the_budget(dsn: str) -> None:
    async with executors(dsn, retry_floor=3, retry_ratio=0) as runtime:
        bus = runtime.bus
        for _ in range(8):
            await send(bus)
        await until_running(bus, 8)
        hand = await Hand(bus).register("voice/shout")
        claimed = await hand.claim("voice/shout")
        kept: list[str] = []

        async def finish(messages: list[Any]) -> None:
            batch = [
                Outcome(id=one.id, fence=one.fence, kind="retry", error="handler_error: no")
                for one in messages
            ]
            kept.extend((await bus.finish(batch)).values())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(finish, claimed[:4])
            tasks.start_soon(finish, claimed[4:])
        assert sorted(kept) == ["failed"] * 5 + ["queued"] * 3
        async with shifted(dsn, "2 minutes") as later:  # the window has passed
            again = await Hand(later).register("voice/shout")
            messages = await again.claim("voice/shout", timeout_ms=600_000)
            assert [await again.finish(one, "retry", error="handler_error: no") for one in messages] == [
                "queued"
            ] * 3


async def test_what_is_not_the_targets_fault_takes_nothing_from_the_budget(dsn: str) -> None:
    async with executors(dsn, retry_floor=0, retry_ratio=0) as runtime:
        bus = runtime.bus
        await send(bus)
        await until_running(bus, 1)
        hand = await Hand(bus).register("voice/shout")
        (message,) = await hand.claim("voice/shout")
        assert await hand.finish(message, "retry", error="claim_lost: the lease ran out") == "queued"


# -- what all have in common ------------------------------------------------------------------------


def test_the_next_try_comes_later_the_longer_it_has_waited() -> None:
    for waited_s, low, high in ((0.0, 0.1, 0.3), (40.0, 5.0, 15.0), (3600.0, 15.0, 45.0)):
        drawn = [executor.put_off_s(waited_s, 0.0, 1e9) for _ in range(200)]
        assert low <= min(drawn) < max(drawn) <= high
        assert len(set(drawn)) > 100  # not all at once
    assert executor.put_off_s(0.0, 30.0, 1e9) > 30
    assert executor.put_off_s(40.0, 0.0, 2.0) == 2.0


@pytest.mark.parametrize(
    "table",
    [
        {"concurrency": {"voice": 2}}, {"concurrency": {"voice/shout": 0}}, {"max_in_flight": 0},
        {"retry_ratio": -1}, {"breaker_open_s": 0}, {"breaker_failures": -1},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_stop_the_start(table: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(table))):
        Registry.load(Settings(roles=("executor",), plugins={"executor": table}))


async def test_a_requeued_message_has_its_whole_time_again(dsn: str) -> None:
    """Its creation may be long ago; what counts is the requeue."""
    target = Target()
    async with executors(dsn, max_in_flight=1) as runtime, process(dsn, [target.role]):
        bus = runtime.bus
        await send(bus, waits=True)
        await eventually_async(lambda: target.running == 1)
        late = await bus.result(await send(bus, ttl_ms=1500))
        assert code_of(late) == "target_busy"
        await bus.db.execute(
            "UPDATE public.agent_messages SET created_at = now() - interval '1 hour' WHERE id = %s",
            (late.id,),
        )
        await bus.requeue(late.id, actor="test")
        await until_put_off(bus, "target_busy", 1)
        target.go.set()
