"""Proves that an outcome is written once, whatever happens to its neighbours and to the connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hands import Hand, child, counts, kinds, row
from helpers import eventually_async
from proxy import proxied

from cogo.core import finisher as finishers
from cogo.core.bus import Bus
from cogo.core.db import Database
from cogo.core.finisher import Finisher, Note
from cogo.core.model import BusEvent, Message, Outcome


@asynccontextmanager
async def finishing(bus: Bus) -> AsyncIterator[Finisher]:
    """A finisher at work; leaving the block waits until everything is written."""
    finisher = Finisher(bus)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(finisher.run)
        yield finisher
        finisher.close(within_s=10)


@asynccontextmanager
async def bus_on(dsn: str) -> AsyncIterator[Bus]:
    db = Database(dsn, pool_max=2)
    await db.open()
    yield Bus(db)
    await db.close()


def outcome(message: Message, kind: Any = "done", **fields: Any) -> Outcome:
    return Outcome(id=message.id, fence=message.fence, kind=kind, **fields)


def note(message: Message) -> Note:
    return Note(message, 0.0)


async def claimed(bus: Bus, count: int) -> list[Message]:
    hand = await Hand(bus).register()
    await bus.enqueue_many("t/echo", [{} for _ in range(count)])
    return await hand.claim("t/echo", count)


BAD: dict[str, dict[str, Any]] = {
    "a follow-up that the table refuses": {
        "follow_ups": [child("t/next", delegate=False, traceparent="nonsense")]
    },
    "text that UTF-8 does not take": {"kind": "failed", "error": "x: \udc80"},
    "text that Postgres does not take": {"snippet": "\x00"},
    "a time that no interval takes": {"kind": "retry", "retry_ms": 2**62},
    "an event that JSON does not take": {"events": [BusEvent(kind="odd", detail={"x": object()})]},
}


@pytest.mark.parametrize("what", BAD)
async def test_one_bad_outcome_does_not_hold_up_the_others(bus: Bus, what: str) -> None:
    messages = await claimed(bus, 9)
    fields = dict(BAD[what])
    async with finishing(bus) as finisher:
        for n, message in enumerate(messages):
            good = outcome(message, snippet="1")
            finisher.submit(outcome(message, **fields) if n == 4 else good, note(message))
    statuses = [(await row(bus, message.id))["status"] for message in messages]
    assert statuses == ["done"] * 4 + ["failed"] + ["done"] * 4
    assert (await row(bus, messages[4].id))["error"].startswith(
        "result_invalid: the outcome could not be stored"
    )
    assert await counts(bus) == {"done": 8, "failed": 1}
    assert finisher.unwritten == set()


async def test_an_answer_that_was_lost_is_asked_for_again(
    dsn: str, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch was committed, the connection died before the answer: nothing is written or told twice."""
    caplog.set_level("INFO")
    done, waiting, retried = await claimed(bus, 3)
    async with proxied(dsn) as proxy, bus_on(proxy.dsn) as far:
        proxy.lose_answers_to = b"cogo.finish"
        async with finishing(far) as finisher:
            finisher.submit(outcome(done, events=[BusEvent(kind="seen")]), note(done))
            finisher.submit(outcome(waiting, "delegated", follow_ups=[child("t/next")]), note(waiting))
            finisher.submit(outcome(retried, "retry", error="x: y"), note(retried))
        assert proxy.lost == 1
    assert [(await row(bus, m.id))["status"] for m in (done, waiting, retried)] == [
        "done",
        "waiting",
        "queued",
    ]
    assert await kinds(bus) == ["seen"]
    assert await counts(bus) == {"done": 1, "retry": 1}
    assert await bus.db.fetch_value("SELECT count(*) FROM public.agent_messages WHERE role = 'next'") == 1
    lines = [
        record.message.split(" ")[0] for record in caplog.records if record.message.startswith("message.")
    ]
    assert lines == ["message.done", "message.waiting", "message.queued"]


async def test_a_stale_outcome_is_told_as_lost(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    (message,) = await claimed(bus, 1)
    await bus.cancel(message.id, actor="test")
    async with finishing(bus) as finisher:
        finisher.submit(outcome(message), note(message))
    assert "message.claim_lost" in caplog.text
    assert finisher.unwritten == set()


async def test_two_claims_of_one_message_are_told_apart(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    """The late outcome of the first claim comes in the same batch as the one that counts."""
    caplog.set_level("INFO")
    hand = await Hand(bus).register()
    await bus.enqueue("t/echo", {})
    (first,) = await hand.claim("t/echo")
    await hand.finish(first, "released")
    (second,) = await hand.claim("t/echo")
    async with finishing(bus) as finisher:
        finisher.submit(outcome(first, snippet='"late"'), note(first))
        finisher.submit(outcome(second, snippet='"current"'), note(second))
    assert (await bus.result(first.id)).value == "current"
    lines = [
        record.message.split(" ")[0] for record in caplog.records if record.message.startswith("message.")
    ]
    assert lines == ["message.claim_lost", "message.done"]


async def test_outcomes_wait_for_the_database(dsn: str, bus: Bus) -> None:
    messages = await claimed(bus, 5)
    async with proxied(dsn) as proxy, bus_on(proxy.dsn) as far, finishing(far) as finisher:
        async with proxy.away():
            for message in messages:
                finisher.submit(outcome(message), note(message))
            await anyio.wait_all_tasks_blocked()
            assert finisher.unwritten == {message.fence for message in messages}
    assert await counts(bus) == {"done": 5}


async def test_a_full_backlog_holds_up_who_claims(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishers, "BACKLOG", 3)
    messages = await claimed(bus, 8)
    finisher = Finisher(bus)
    submitted: list[int] = []

    async def submit_all() -> None:
        for message in messages:
            await finisher.room()
            finisher.submit(outcome(message), note(message))
            submitted.append(message.id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(submit_all)
        await anyio.wait_all_tasks_blocked()
        assert len(submitted) == 3
        tasks.start_soon(finisher.run)
        await eventually_async(lambda: len(submitted) == 8)
        finisher.close(within_s=10)
    assert await counts(bus) == {"done": 8}


async def test_the_end_does_not_wait_for_ever(dsn: str, bus: Bus) -> None:
    """The database stays away: after the time that close() gave, the process may go."""
    (message,) = await claimed(bus, 1)
    async with proxied(dsn) as proxy, bus_on(proxy.dsn) as far, proxy.away():
        finisher = Finisher(far)
        finisher.submit(outcome(message), note(message))
        finisher.close(within_s=0.2)
        with anyio.fail_after(5):
            await finisher.run()
    assert finisher.unwritten == {message.fence}
