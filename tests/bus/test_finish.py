"""Proves the finish: the fence alone guards it, and only what it accepted has any effect."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hands import Hand, child, counts, kinds, policy, row

from cogo.core.bus import Bus
from cogo.core.model import BusEvent, Message, Outcome


async def claimed(bus: Bus, count: int = 1, lane: str = "t/echo") -> tuple[Hand, list[Message]]:
    hand = await Hand(bus).register()
    await bus.enqueue_many(lane, [{"n": n} for n in range(count)])
    return hand, await hand.claim(lane, count)


def outcome(message: Message, kind: Any = "done", **fields: Any) -> Outcome:
    return Outcome(id=message.id, fence=message.fence, kind=kind, **fields)


async def test_a_batch_of_every_kind(bus: Bus) -> None:
    _, (done, failed, retried, delegated, released) = await claimed(bus, 5)
    accepted = await bus.finish([
        outcome(done, snippet="1", url="/u"),
        outcome(failed, "failed", error="rejected: no"),
        outcome(retried, "retry", error="retry: later", retry_ms=50_000),
        outcome(delegated, "delegated", follow_ups=[child("t/next", b'{"c": 1}')]),
        outcome(released, "released"),
    ])  # fmt: skip
    assert accepted == {
        done.id: "done",
        failed.id: "failed",
        retried.id: "queued",
        delegated.id: "waiting",
        released.id: "queued",
    }
    rows = {
        message.id: await row(bus, message.id) for message in (done, failed, retried, delegated, released)
    }
    assert {found["fence"] for found in rows.values()} == {0}
    assert {found["deadline_at"] for found in rows.values()} == {None}
    assert (rows[done.id]["result_snippet"], rows[done.id]["result_url"]) == ("1", "/u")
    assert rows[failed.id]["error"] == "rejected: no"
    assert [rows[id]["done_at"] is not None for id in rows] == [True, True, False, False, False]
    assert [rows[id]["attempts"] for id in rows] == [1, 1, 1, 1, 0]
    assert rows[retried.id]["retry_at"] is not None
    assert rows[released.id]["retry_at"] is None
    assert rows[delegated.id]["awaits"] == delegated.fence
    assert [rows[id]["claimed_by"] for id in (retried.id, released.id)] == [None, None]
    (kid,) = await bus.db.fetch("SELECT * FROM public.agent_messages WHERE role = 'next'")
    assert (kid["reply_to"], kid["reply_fence"], kid["payload"]) == (delegated.id, delegated.fence, {"c": 1})
    assert kid["root_id"] == delegated.id
    assert await counts(bus) == {"done": 1, "failed": 1, "retry": 1}


async def test_a_zombie_has_no_effect_at_all(bus: Bus) -> None:
    """Its row, follow-ups, events and counters stay out, even in a batch with the current claim."""
    hand, (first,) = await claimed(bus)
    assert await hand.finish(first, "released") == "queued"
    (second,) = await hand.claim("t/echo")
    zombie = outcome(
        first, snippet='"zombie"', follow_ups=[child("t/z", delegate=False)], events=[BusEvent(kind="zombie")]
    )
    current = outcome(
        second,
        snippet='"current"',
        follow_ups=[child("t/c", delegate=False)],
        events=[BusEvent(kind="current")],
    )
    assert await bus.finish([zombie, current]) == {first.id: "done"}
    assert (await row(bus, first.id))["result_snippet"] == '"current"'
    roles = await bus.db.fetch("SELECT role FROM public.agent_messages WHERE role IN ('z', 'c')")
    assert roles == [{"role": "c"}]
    assert await kinds(bus) == ["current"]
    assert await bus.finish([zombie]) == {}
    assert await counts(bus) == {"done": 1}


@pytest.mark.parametrize("fence", [0, -1, 10**15])
async def test_a_fence_that_was_never_issued_finishes_nothing(bus: Bus, fence: int) -> None:
    id = await bus.enqueue("t/echo", {})
    assert await bus.finish([Outcome(id=id, fence=fence, kind="done")]) == {}
    assert (await row(bus, id))["status"] == "queued"


async def test_a_released_message_can_come_back_later(bus: Bus) -> None:
    hand, (message,) = await claimed(bus)
    await hand.finish(message, "released", error="bus_unavailable: away", retry_ms=60_000)
    found = await row(bus, message.id)
    assert (found["attempts"], found["retry_at"] is not None) == (0, True)
    assert found["error"].startswith("bus_unavailable")
    assert await hand.claim("t/echo") == []
    assert await counts(bus) == {}
    assert await kinds(bus) == []


async def test_backoff_is_exponential_with_jitter_and_a_cap(bus: Bus) -> None:
    """retry_at = now + least(cap, base * 2^(attempts-1)) * (0.5 .. 1.5), by the database's clock."""
    await policy(bus, "t/echo", backoff_base_ms=1_000, backoff_cap_ms=8_000, max_attempts=1_000)
    sql = "SELECT extract(epoch FROM cogo.backoff('t', 'echo', %s))::float8 FROM generate_series(1, 200)"
    for attempts, middle in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (9, 8.0), (2_000_000, 8.0)):
        waits = [next(iter(found.values())) for found in await bus.db.fetch(sql, (attempts,))]
        assert 0.5 * middle <= min(waits) < 0.65 * middle
        assert 1.35 * middle < max(waits) <= 1.5 * middle
    hand, (message,) = await claimed(bus)
    await hand.finish(message, "retry", error="x: y")
    wait = await bus.db.fetch_value(
        "SELECT extract(epoch FROM retry_at - last_error_at)::float8 FROM public.agent_messages"
    )
    assert 0.5 <= wait <= 1.5


async def test_the_last_attempt_ends_the_message(bus: Bus) -> None:
    await policy(bus, "t/echo", max_attempts=2, events="echo")
    hand, (message,) = await claimed(bus)
    assert await hand.finish(message, "retry", error="handler_error: one", retry_ms=0) == "queued"
    (message,) = await hand.claim("t/echo")
    assert await hand.finish(message, "retry", error="handler_error: two", retry_ms=0) == "failed"
    found = await row(bus, message.id)
    assert (found["status"], found["error"], found["retry_at"]) == ("failed", "handler_error: two", None)
    assert found["done_at"] is not None
    assert await kinds(bus) == ["echo_retry", "echo_failed"]
    assert await counts(bus) == {"retry": 1, "failed": 1}


async def test_a_retry_clears_nothing_and_a_success_clears_the_error(bus: Bus) -> None:
    hand, (message,) = await claimed(bus)
    await hand.finish(message, "retry", error="x: y", retry_ms=0)
    assert (await row(bus, message.id))["error"] == "x: y"
    (message,) = await hand.claim("t/echo")
    await hand.finish(message, snippet="1")
    found = await row(bus, message.id)
    assert (found["error"], found["last_error_at"] is not None) == (None, True)


async def test_every_way_back_into_the_lane_takes_a_fresh_place(bus: Bus) -> None:
    hand, (first, second) = await claimed(bus, 2)
    before = max([(await row(bus, message.id))["seq"] for message in (first, second)])
    await hand.finish(first, "retry", error="x: y", retry_ms=0)
    await hand.finish(second, "released")
    assert min([(await row(bus, message.id))["seq"] for message in (first, second)]) > before


async def test_follow_ups_with_a_used_key_are_left_out(bus: Bus) -> None:
    hand, messages = await claimed(bus, 2)
    for message in messages:
        follow = child("t/next@acme", delegate=False, key="once")
        assert await hand.finish(message, follow_ups=[follow]) == "done"
    assert await bus.db.fetch_value("SELECT count(*) FROM public.agent_messages WHERE role = 'next'") == 1


async def test_a_message_without_a_trace_takes_the_one_of_its_attempt(bus: Bus) -> None:
    hand, (message,) = await claimed(bus)  # enqueue_many writes none
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    await hand.finish(message, traceparent=trace)
    assert (await row(bus, message.id))["trace_id"] == "a" * 32


async def test_batches_from_many_connections_do_not_deadlock(bus: Bus) -> None:
    """The same ids in opposite orders, from eight sessions: sorted arrays take the locks in one order."""
    _, messages = await claimed(bus, 200)
    accepted: list[int] = []

    async def finish_all(backwards: bool) -> None:
        batch = [outcome(message) for message in messages]
        accepted.append(len(await bus.finish(batch[::-1] if backwards else batch)))

    async with anyio.create_task_group() as tasks:
        for turn in range(8):
            tasks.start_soon(finish_all, bool(turn % 2))
    assert sorted(accepted) == [0] * 7 + [200]
    assert await counts(bus) == {"done": 200}


async def test_progress_is_numbered_through_and_fenced(bus: Bus) -> None:
    """Concurrent writers of one message take turns; a zombie adds nothing."""
    hand, (message,) = await claimed(bus)

    async def add(n: int) -> None:
        assert await bus.add_chunks(message.id, message.fence, [("token", n), ("token", n)])

    async with anyio.create_task_group() as tasks:
        for n in range(8):
            tasks.start_soon(add, n)
    rows = await bus.db.fetch("SELECT n, data FROM cogo.message_chunks ORDER BY n")
    assert [found["n"] for found in rows] == list(range(1, 17))
    assert all(rows[n]["data"] == rows[n + 1]["data"] for n in range(0, 16, 2))
    await hand.finish(message, "released")
    assert not await bus.add_chunks(message.id, message.fence, [("token", "late")])
    assert await bus.db.fetch_value("SELECT count(*) FROM cogo.message_chunks") == 16
