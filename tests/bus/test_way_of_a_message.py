"""Proves the way of a message: enqueue, claim, handler, finish, and that each id is answered."""

from __future__ import annotations

from typing import Any

import pytest
from hands import Hand, child, counts, kinds, process, row

import cogo
from cogo.core.bus import Bus
from cogo.core.errors import IdempotencyConflict, MessageUnknown, ResultInvalid, RoutingInvalid


async def test_a_message_goes_through_by_hand(bus: Bus) -> None:
    hand = await Hand(bus).register("t/echo/0")
    id = await bus.enqueue("t/echo/0@acme", {"n": 1})
    (message,) = await hand.claim("t/echo")
    assert (message.id, message.attempts, message.root_id) == (id, 1, id)
    assert message.fence > 0
    assert await hand.finish(message, snippet='{"n":1}') == "done"
    result = await bus.result(id)
    assert (result.status, result.value) == ("done", {"n": 1})
    assert (await row(bus, id))["fence"] == 0
    assert await counts(bus) == {"done": 1}


async def test_a_second_finish_and_a_stale_fence_have_no_effect(bus: Bus) -> None:
    hand = await Hand(bus).register()
    id = await bus.enqueue("t/echo", {})
    (message,) = await hand.claim("t/echo")
    follow = child("t/next", delegate=False)
    assert await hand.finish(message, "retry", error="x: y", retry_ms=0) == "queued"
    assert await hand.finish(message, follow_ups=[follow], traceparent=None) is None
    (again,) = await hand.claim("t/echo")
    assert again.fence > message.fence
    assert await hand.finish(again, follow_ups=[follow]) == "done"
    assert await hand.finish(again, follow_ups=[follow]) is None
    sent = await bus.db.fetch_value("SELECT count(*) FROM public.agent_messages WHERE role = 'next'")
    assert (sent, (await row(bus, id))["attempts"]) == (1, 2)


async def test_idempotency_keys(bus: Bus) -> None:
    first = await bus.enqueue_once("t/echo@acme", {"a": 1}, idempotency_key="k")
    assert await bus.enqueue_once("t/echo@acme", {"a": 1}, idempotency_key="k") == (first[0], False)
    assert (await bus.enqueue_once("t/echo@other", {"a": 2}, idempotency_key="k"))[1]
    with pytest.raises(IdempotencyConflict):
        await bus.enqueue("t/echo@acme", {"a": 2}, idempotency_key="k")


@pytest.mark.parametrize(
    "key", ["", "a", "A/b", "a/b/x", "a/b/99999", "a/b/0@", "a/b/0@ü", "a/b/0/1", "a/b\n"]
)
async def test_routing_keys_are_checked(bus: Bus, key: str) -> None:
    with pytest.raises(RoutingInvalid):
        await bus.enqueue(key, {})


@pytest.mark.parametrize("payload", [{"a": "x\x00"}, {"\x00": 1}, ["\ud800"], {"a": object()}])
async def test_payloads_that_jsonb_refuses(bus: Bus, payload: Any) -> None:
    with pytest.raises(ResultInvalid):
        await bus.enqueue("t/echo", payload)


async def test_an_unknown_id(bus: Bus) -> None:
    with pytest.raises(MessageUnknown):
        await bus.result(10**12)


async def test_priorities_go_first_and_order_holds_within(bus: Bus) -> None:
    hand = await Hand(bus).register()
    ids = [await bus.enqueue("t/echo", {}, priority=priority) for priority in (2, 2, 0, 3, 1)]
    claimed = [message.id for message in await hand.claim("t/echo", 10)]
    assert sorted(claimed) == sorted(ids)
    order = [await bus.enqueue("t/echo", {}, priority=priority) for priority in (2, 2, 0, 3, 1)]
    one_by_one = [(await hand.claim("t/echo", 1))[0].id for _ in order]
    assert one_by_one == [order[2], order[4], order[0], order[1], order[3]]


async def test_a_process_answers_through_three_hops(dsn: str) -> None:
    async def first(task: dict[str, Any], ctx: cogo.Context) -> cogo.Delegate:
        ctx.event("first_seen", n=task["n"])
        return cogo.Delegate(to="t/second", payload=task)

    async def second(task: dict[str, Any], ctx: cogo.Context) -> cogo.Delegate:
        return cogo.Delegate(to="t/third", payload=task)

    def third(task: dict[str, Any], ctx: cogo.Context) -> dict[str, Any]:  # in a thread
        return {"n": task["n"] + 1, "tenant": ctx.key.tenant}

    roles = [
        cogo.Role("t", "first", handle=first),
        cogo.Role("t", "second", handle=second),
        cogo.Role("t", "third", handle=third, events="third"),
    ]
    async with process(dsn, roles) as runtime:
        id = await runtime.bus.enqueue("t/first@acme", {"n": 1})
        result = await runtime.bus.result(id)
        assert result.value == {"n": 2, "tenant": "acme"}
        assert await kinds(runtime.bus) == ["first_seen", "third_done"]
        traces = await runtime.bus.db.fetch("SELECT DISTINCT trace_id FROM public.agent_messages")
        assert traces == [{"trace_id": result.trace_id}]
