"""Proves that the id a client was given is the id that gets answered, however the last child ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from hands import Hand, child, counts, kinds, policy, reclaim, row, shifted, update
from helpers import eventually_async

from cogo.core.bus import Bus
from cogo.core.errors import MessageState
from cogo.core.model import Message

Chain = tuple[int, int, Message]


async def chain(bus: Bus, **options: Any) -> tuple[Hand, int, int, Message]:
    """A root -> middle -> leaf, the first two waiting, the leaf claimed; (hand, root, middle, leaf)."""
    hand = await Hand(bus).register(lease_ms=60_000)
    root = await bus.enqueue("t/root@acme", {}, **options)
    (message,) = await hand.claim("t/root")
    assert await hand.finish(message, "delegated", follow_ups=[child("t/middle@acme")]) == "waiting"
    (message,) = await hand.claim("t/middle")
    assert await hand.finish(message, "delegated", follow_ups=[child("t/leaf@acme")]) == "waiting"
    (leaf,) = await hand.claim("t/leaf", timeout_ms=120_000)
    assert leaf.root_id == root
    return hand, root, message.id, leaf


async def done(bus: Bus, hand: Hand, leaf: Message) -> None:
    assert await hand.finish(leaf, snippet='"answer"', url="/api/artifacts/1") == "done"


async def failed(bus: Bus, hand: Hand, leaf: Message) -> None:
    assert await hand.finish(leaf, "failed", error="rejected: no") == "failed"


async def out_of_attempts(bus: Bus, hand: Hand, leaf: Message) -> None:
    assert await hand.finish(leaf, "retry", error="handler_error: boom") == "failed"


async def poison(bus: Bus, hand: Hand, leaf: Message) -> None:
    await bus.db.execute("UPDATE cogo.bus_holders SET lease_until = now() - interval '1 s'")
    assert [found[:2] for found in await reclaim(bus)] == [(leaf.id, "failed")]


async def ttl(bus: Bus, hand: Hand, leaf: Message) -> None:
    async with shifted(bus.db.dsn, "61 s") as later:
        assert await later.db.fetch_value("SELECT cogo.expire(1000)") == 3


async def outsider_done(bus: Bus, hand: Hand, leaf: Message) -> None:
    await update(bus, leaf.id, status="done", result_snippet='"foreign"')


async def outsider_failed(bus: Bus, hand: Hand, leaf: Message) -> None:
    await update(bus, leaf.id, status="failed", error="mine: broke")


async def cancelled(bus: Bus, hand: Hand, leaf: Message) -> None:
    assert await bus.cancel(leaf.id, actor="ops", reason="enough") == "cancelled"


ENDS: dict[str, tuple[Callable[[Bus, Hand, Message], Awaitable[None]], dict[str, Any]]] = {
    "done": (done, {"status": "done", "result_snippet": '"answer"', "result_url": "/api/artifacts/1", "error": None}),
    "failed": (failed, {"status": "failed", "error": "rejected: no"}),
    "out of attempts": (out_of_attempts, {"status": "failed", "error": "handler_error: boom"}),
    "poison": (poison, {"status": "failed", "error": "poison: all attempts used up; the last one ended as "
                        "claim_lost: the lease of hand ended"}),
    "ttl": (ttl, {"status": "failed"}),
    "outsider done": (outsider_done, {"status": "done", "result_snippet": '"foreign"'}),
    "outsider failed": (outsider_failed, {"status": "failed", "error": "mine: broke"}),
    "cancelled": (cancelled, {"status": "cancelled", "error": "cancelled: enough"}),
}  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
async def test_the_root_ends_as_the_leaf_ends(bus: Bus, how: str) -> None:
    end, expected = ENDS[how]
    await policy(bus, "t/leaf", max_attempts=1, events="leaf")
    await policy(bus, "t/middle", events="middle")
    await policy(bus, "t/root", events="root")
    hand, root, middle, leaf = await chain(bus, ttl_ms=60_000)
    await end(bus, hand, leaf)
    rows = [await row(bus, id) for id in (leaf.id, middle, root)]
    assert [{key: found[key] for key in expected} for found in rows] == [expected] * 3
    assert all(found["done_at"] is not None and found["awaits"] is None for found in rows)
    assert {found["fence"] for found in rows} == {0}
    status = expected["status"]
    assert await counts(bus) == {status: 3}
    told = [kind for kind in await kinds(bus) if kind.endswith(("_done", "_failed"))]
    assert sorted(told) == sorted(
        f"{lane}_{status}" for lane in ("leaf", "middle", "root") if status != "cancelled"
    )
    if how in {"done", "failed", "out of attempts"}:  # the audit of a finish reads from the child up
        assert told == [f"{lane}_{status}" for lane in ("leaf", "middle", "root") if status != "cancelled"]


async def test_ttl_names_its_code_on_every_hop(bus: Bus) -> None:
    _, root, middle, leaf = await chain(bus, ttl_ms=60_000)
    await ttl(bus, Hand(bus), leaf)
    for id in (root, middle, leaf.id):
        assert (await row(bus, id))["error"].startswith("ttl_expired: ")


async def test_ttl_in_small_batches_counts_nothing_twice(bus: Bus) -> None:
    """The limit cuts between child and parent: the settle trigger ends the rest, once."""
    for _ in range(3):
        await chain(bus, ttl_ms=60_000)
    async with shifted(bus.db.dsn, "61 s") as later:
        while await later.db.fetch_value("SELECT cogo.expire(2)"):
            pass
    assert await counts(bus) == {"failed": 9}
    assert await kinds(bus) == ["t_failed"] * 9


async def test_a_retry_of_the_child_leaves_the_parent_waiting(bus: Bus) -> None:
    await policy(bus, "t/middle", events="middle")
    hand, root, middle, leaf = await chain(bus)
    assert await hand.finish(leaf, "retry", error="handler_error: once", retry_ms=0) == "queued"
    assert [(await row(bus, id))["status"] for id in (root, middle)] == ["waiting", "waiting"]
    assert await kinds(bus) == ["middle_retry"], "who waits for it hears of the retry"
    (leaf,) = await hand.claim("t/leaf")
    await hand.finish(leaf, snippet="2")
    assert (await bus.result(root)).value == 2


async def test_a_reclaimed_child_is_told_to_its_parent_too(bus: Bus) -> None:
    await policy(bus, "t/middle", events="middle")
    _, root, middle, leaf = await chain(bus)
    await bus.db.execute("UPDATE cogo.bus_holders SET lease_until = now() - interval '1 s'")
    assert [found[:2] for found in await reclaim(bus)] == [(leaf.id, "queued")]
    assert [(await row(bus, id))["status"] for id in (root, middle)] == ["waiting", "waiting"]
    assert await kinds(bus, middle) == ["middle_retry"]
    assert await counts(bus) == {"retry": 1}


async def test_cancelling_a_waiting_root_cancels_what_it_waits_for(bus: Bus) -> None:
    hand, root, middle, leaf = await chain(bus)
    assert await bus.cancel(root, actor="ops", reason="not needed") == "cancelled"
    rows = [await row(bus, id) for id in (root, middle, leaf.id)]
    assert {found["status"] for found in rows} == {"cancelled"}
    assert await hand.finish(leaf, snippet="1") is None
    assert await counts(bus) == {"cancelled": 3}
    assert await kinds(bus) == ["cancelled"] * 3
    assert await bus.db.fetch_value("SELECT count(*) FROM cogo.bus_cancels") == 0


async def test_a_plain_update_cancels_the_chain_at_the_next_round(bus: Bus) -> None:
    _, root, middle, leaf = await chain(bus)
    await update(bus, root, status="cancelled")
    assert (await row(bus, middle))["status"] == "waiting"
    while await bus.db.fetch_value("SELECT cogo.cascade_cancels()"):
        pass
    assert [(await row(bus, id))["status"] for id in (middle, leaf.id)] == ["cancelled", "cancelled"]


async def test_a_stale_child_settles_nothing(bus: Bus) -> None:
    """The root was cancelled and requeued while its first child's answer was still under way."""
    hand, root, middle, stale = await chain(bus)
    await bus.db.execute("SELECT cogo.cancel(%s, 'ops', '')", (root,))  # the cascade has not run yet
    assert await bus.requeue(root, actor="ops") == "queued"
    (message,) = await hand.claim("t/root")
    await hand.finish(message, "delegated", follow_ups=[child("t/middle@acme", b'{"second": true}')])
    assert await hand.finish(stale, snippet='"stale"') == "done"
    assert (await row(bus, middle))["status"] == "done", "the stale child's own parent does wait for it"
    assert (await row(bus, root))["status"] == "waiting"
    (fresh,) = await hand.claim("t/middle")
    await hand.finish(fresh, snippet='"fresh"')
    assert (await bus.result(root)).value == "fresh"


async def test_a_cascade_that_comes_late_cancels_what_the_root_waits_for_now(bus: Bus) -> None:
    """Cancelled, and requeued before the cascade ran: the new life goes on."""
    hand, root, middle, leaf = await chain(bus)
    await bus.db.execute("SELECT cogo.cancel(%s, 'ops', '')", (root,))
    await bus.requeue(root, actor="ops")
    (message,) = await hand.claim("t/root")
    await hand.finish(message, "delegated", follow_ups=[child("t/middle@acme")])
    while await bus.db.fetch_value("SELECT cogo.cascade_cancels()"):
        pass
    assert (await row(bus, middle))["status"] == "cancelled", "the child of the life that was cancelled"
    assert (await row(bus, root))["status"] == "waiting"
    (fresh,) = await hand.claim("t/middle")
    await hand.finish(fresh, snippet="1")
    assert (await bus.result(root)).status == "done"


async def test_requeue_is_for_roots_that_failed_or_were_cancelled(bus: Bus) -> None:
    hand, root, middle, leaf = await chain(bus, ttl_ms=60_000)
    for living in (root, middle, leaf.id):
        with pytest.raises(MessageState, match="only failed and cancelled"):
            await bus.requeue(living, actor="ops")
    await hand.finish(leaf, "failed", error="rejected: no")
    for ended in (middle, leaf.id):
        with pytest.raises(MessageState, match=f"requeue the root, {root}"):
            await bus.requeue(ended, actor="ops")
    assert await bus.requeue(root, actor="ops", reason="again") == "queued"
    found = await row(bus, root)
    assert (found["attempts"], found["error"], found["done_at"], found["awaits"]) == (0, None, None, None)
    assert await counts(bus) == {"failed": 2}
    (event,) = await bus.db.fetch("SELECT actor, detail FROM public.bus_events WHERE kind = 'requeued'")
    assert event == {"actor": "ops", "detail": {"was": "failed", "reason": "again"}}
    (message,) = await hand.claim("t/root")
    await hand.finish(message, snippet="1")
    with pytest.raises(MessageState):
        await bus.requeue(root, actor="ops")


async def test_each_requeue_gives_the_same_time_to_live_again(bus: Bus) -> None:
    id = await bus.enqueue("t/root", {}, ttl_ms=60_000)
    for minutes in (10, 30, 31):
        async with shifted(bus.db.dsn, f"{minutes} min") as later:
            await later.cancel(id, actor="ops")
            await later.requeue(id, actor="ops")
            left = await later.db.fetch_value(
                "SELECT extract(epoch FROM expires_at - cogo.now())::float8 FROM public.agent_messages"
            )
            assert 58 < left <= 61


async def test_cancel_and_finish_at_once_never_deadlock(bus: Bus) -> None:
    """Two real sessions, twenty times: the child is finished while its parent is cancelled."""
    ended: set[tuple[str, str]] = set()
    for _ in range(20):
        hand, root, middle, leaf = await chain(bus)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hand.finish, leaf)
            tasks.start_soon(_cancel, bus, middle)
        statuses = [(await row(bus, id))["status"] for id in (middle, root)]
        assert statuses in (["done", "done"], ["cancelled", "cancelled"])
        ended.add((statuses[0], (await row(bus, leaf.id))["status"]))
    assert ended <= {("done", "done"), ("cancelled", "cancelled"), ("cancelled", "done")}
    total = await counts(bus)
    assert sum(total.values()) == 60


async def _cancel(bus: Bus, id: int) -> None:
    await bus.cancel(id, actor="ops")


async def test_a_finish_waits_for_the_cancel_of_its_parent_and_the_other_way_round(bus: Bus) -> None:
    """The lock order itself: each side stands still where the other holds the parent, and then goes on."""
    hand, root, middle, leaf = await chain(bus)
    async with anyio.create_task_group() as tasks, bus.db.transaction() as conn:
        await conn.execute("SELECT cogo.cancel(%s, 'ops', '')", (middle,))
        tasks.start_soon(hand.finish, leaf)
        await eventually_async(lambda: _waits_for_a_lock(bus))
    assert [(await row(bus, id))["status"] for id in (leaf.id, middle, root)] == [
        "done",
        "cancelled",
        "cancelled",
    ]

    hand, root, middle, leaf = await chain(bus)
    async with anyio.create_task_group() as tasks, bus.db.transaction() as conn:
        await conn.execute("SELECT 1 FROM public.agent_messages WHERE id = %s FOR UPDATE", (leaf.id,))
        await conn.execute(
            "UPDATE public.agent_messages SET status = 'done' WHERE id = %s", (leaf.id,)
        )  # an outsider's finish, whose trigger has settled both parents
        tasks.start_soon(_cancel, bus, middle)
        await eventually_async(lambda: _waits_for_a_lock(bus))
    assert [(await row(bus, id))["status"] for id in (leaf.id, middle, root)] == ["done"] * 3


async def _waits_for_a_lock(bus: Bus) -> int:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return int(await bus.db.fetch_value(sql))
