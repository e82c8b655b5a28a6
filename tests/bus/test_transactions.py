"""Proves what leaves with a finish, what leaves at once, and what commits together or not at all."""

from __future__ import annotations

from typing import Any

import anyio
import psycopg
import pytest
from hands import insert, kinds, process, row
from helpers import eventually_async

import cogo
from cogo import errors
from cogo.core.bus import Bus

NOTES = "CREATE TABLE public.notes (id bigint, attempt int)"
NOTE = "INSERT INTO public.notes VALUES (%s, %s)"


async def notes(bus: Bus) -> list[int]:
    rows = await bus.db.fetch("SELECT attempt FROM public.notes ORDER BY attempt")
    return [found["attempt"] for found in rows]


async def sent(bus: Bus) -> list[dict[str, Any]]:
    return await bus.db.fetch(
        "SELECT role, tenant, payload, priority, root_id, trace_id FROM public.agent_messages"
        " WHERE role <> 'work' ORDER BY id"
    )


# -- ctx.bus.enqueue ---------------------------------------------------------------------------


async def test_buffered_messages_leave_with_the_finish_and_only_then(dsn: str, bus: Bus) -> None:
    async def work(task: Any, ctx: cogo.Context) -> int:
        assert await ctx.bus.enqueue("t/later", {"attempt": ctx.attempt}, priority=1) is None
        assert await ctx.bus.enqueue("t/keyed/3", {}, idempotency_key="once") is None
        ctx.event("worked", attempt=ctx.attempt)
        if ctx.attempt == 1:
            raise cogo.Retry("again", after=0)
        assert await sent(bus) == []
        return ctx.attempt

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        id = await bus.enqueue("t/work@acme", {})
        result = await bus.result(id)
        later, keyed = await sent(bus)
    assert later == {"role": "later", "tenant": "acme", "payload": {"attempt": 2}, "priority": 1,
                     "root_id": id, "trace_id": result.trace_id}  # fmt: skip
    assert keyed["role"] == "keyed"
    assert await kinds(bus) == ["worked"], "what a failed attempt wanted to say stays out"


async def test_now_is_at_once_and_survives_the_failure(dsn: str, bus: Bus) -> None:
    ids: list[int | None] = []

    async def work(task: Any, ctx: cogo.Context) -> None:
        ids.append(await ctx.bus.enqueue("t/at-once", {"n": 1}, now=True, idempotency_key="k"))
        raise cogo.Reject("no")

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        result = await bus.result(await bus.enqueue("t/work@acme", {}))
        assert result.status == "failed"
        (found,) = await sent(bus)
    assert ids[0] is not None
    assert (found["tenant"], found["trace_id"]) == ("acme", result.trace_id)


@pytest.mark.parametrize(
    ("to", "options", "code"),
    [
        ("t/other@evil", {}, "routing_invalid"), ("t/other@evil", {"now": True}, "routing_invalid"),
        ("nonsense", {}, "routing_invalid"), ("t/other", {"priority": 7}, "invalid"),
        ("t/other", {"ttl_ms": -1}, "invalid"), ("t/other", {"idempotency_key": "x" * 300}, "invalid"),
    ],
)  # fmt: skip
async def test_what_cannot_be_sent_fails_where_it_is_sent(
    dsn: str, bus: Bus, to: str, options: dict[str, Any], code: str
) -> None:
    """In particular never to another tenant, whatever a payload made the handler say."""
    caught: list[str] = []

    async def work(task: Any, ctx: cogo.Context) -> None:
        try:
            await ctx.bus.enqueue(to, {}, **options)
        except errors.CogoError as error:
            caught.append(error.code)
            raise

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        result = await bus.result(await bus.enqueue("t/work@acme", {}))
    assert caught == [code]
    assert (result.status, result.attempts) == ("failed", 1)
    assert await sent(bus) == []


async def test_a_delegate_to_another_tenant_is_refused(dsn: str, bus: Bus) -> None:
    async def work(task: Any, ctx: cogo.Context) -> cogo.Delegate:
        return cogo.Delegate(to=task["to"], payload={})

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        result = await bus.result(await bus.enqueue("t/work@acme", {"to": "t/other@evil"}))
    assert (result.error or "").startswith("routing_invalid: ")
    assert await sent(bus) == []


# -- ctx.transaction ---------------------------------------------------------------------------


async def test_effects_and_completion_commit_together(dsn: str, bus: Bus) -> None:
    await bus.db.execute(NOTES)
    before = "SELECT count(*) FROM public.notes"

    async def work(task: Any, ctx: cogo.Context) -> str:
        await ctx.bus.enqueue("t/later", {})
        async with ctx.transaction() as tx:
            await tx.execute(NOTE, (ctx.message_id, ctx.attempt))
            assert await tx.fetch(before) == [{"count": 1}]
            assert await bus.db.fetch_value(before) == 0
            tx.done({"from": "the transaction"})
            ctx.event("inside")
            assert (await row(bus, ctx.message_id))["status"] == "claimed"
        with pytest.raises(errors.MessageState):
            await ctx.bus.enqueue("t/too-late", {})
        return "is ignored"

    async with process(dsn, [cogo.Role("t", "work", handle=work, events="work")]):
        id = await bus.enqueue("t/work", {})
        assert (await bus.result(id)).value == {"from": "the transaction"}
        assert await notes(bus) == [1]
        assert [message["role"] for message in await sent(bus)] == ["later"]
        assert sorted(await kinds(bus)) == ["inside", "work_done"]


@pytest.mark.parametrize("how", ["exception", "sql error"])
async def test_a_failed_transaction_leaves_nothing(dsn: str, bus: Bus, how: str) -> None:
    await bus.db.execute(NOTES)

    async def work(task: Any, ctx: cogo.Context) -> None:
        async with ctx.transaction() as tx:
            await tx.execute(NOTE, (ctx.message_id, ctx.attempt))
            tx.done("never")
            if how == "exception":
                raise cogo.Reject("changed my mind")
            await tx.execute("SELECT 1/0")

    async with process(dsn, [cogo.Role("t", "work", handle=work, max_attempts=1)]):
        result = await bus.result(await bus.enqueue("t/work", {}))
    assert result.status == "failed"
    assert (result.error or "").startswith(
        "rejected" if how == "exception" else "handler_error: DivisionByZero"
    )
    assert await notes(bus) == []


async def test_a_lost_claim_rolls_the_effects_back(dsn: str, bus: Bus) -> None:
    """The zombie's transaction fails at its last statement; the new claim's goes through."""
    await bus.db.execute(NOTES)
    lost, taken = anyio.Event(), anyio.Event()

    async def work(task: Any, ctx: cogo.Context) -> None:
        if ctx.attempt > 1:
            taken.set()
        async with ctx.transaction() as tx:
            await tx.execute(NOTE, (ctx.message_id, ctx.attempt))
            if ctx.attempt == 1:
                lost.set()
                with anyio.CancelScope(shield=True):
                    await taken.wait()
            tx.done(ctx.attempt)

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        id = await bus.enqueue("t/work", {})
        with anyio.fail_after(10):
            await lost.wait()
            await bus.db.execute("UPDATE public.agent_messages SET deadline_at = now() - interval '1 minute'")
        assert (await bus.result(id)).value == 2
        await eventually_async(lambda: notes(bus))
    assert await notes(bus) == [2]


async def test_a_transaction_can_delegate(dsn: str, bus: Bus) -> None:
    await bus.db.execute(NOTES)

    async def work(task: Any, ctx: cogo.Context) -> None:
        async with ctx.transaction() as tx:
            await tx.execute(NOTE, (ctx.message_id, ctx.attempt))
            tx.delegate(cogo.Delegate(to="t/leaf", payload={"n": 1}))

    async def leaf(task: dict[str, Any], ctx: cogo.Context) -> int:
        return int(task["n"]) + 1

    roles = [cogo.Role("t", "work", handle=work), cogo.Role("t", "leaf", handle=leaf)]
    async with process(dsn, roles):
        assert (await bus.result(await bus.enqueue("t/work", {}))).value == 2
    assert await notes(bus) == [1]


async def test_a_transaction_without_an_ending_is_just_a_transaction(dsn: str, bus: Bus) -> None:
    await bus.db.execute(NOTES)

    async def work(task: Any, ctx: cogo.Context) -> str:
        async with ctx.transaction() as tx:
            await tx.execute(NOTE, (1, 1))
        async with ctx.transaction() as tx:
            await tx.execute(NOTE, (1, 2))
        return "returned"

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        assert (await bus.result(await bus.enqueue("t/work", {}))).value == "returned"
    assert await notes(bus) == [1, 2]


# -- from the caller's own transaction ---------------------------------------------------------


async def test_enqueue_belongs_to_the_callers_transaction(dsn: str, bus: Bus) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        id = await cogo.enqueue(conn, "t/echo@acme", {"n": 1}, idempotency_key="k")
        with pytest.raises(errors.MessageUnknown):
            await bus.peek(id)
        await conn.rollback()
        with pytest.raises(errors.MessageUnknown):
            await bus.peek(id)
        again = await cogo.enqueue(conn, "t/echo@acme", {"n": 1}, idempotency_key="k")
        await conn.commit()
    assert (await row(bus, again))["payload"] == {"n": 1}


async def test_two_sessions_with_one_key_get_one_message(bus: Bus) -> None:
    found: list[tuple[int, bool]] = []

    async def send() -> None:
        found.append(await bus.enqueue_once("t/echo", {"n": 1}, idempotency_key="same"))

    async with anyio.create_task_group() as tasks:
        for _ in range(12):
            tasks.start_soon(send)
    assert len({id for id, _ in found}) == 1
    assert sorted(created for _, created in found) == [False] * 11 + [True]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"priority": -1}, errors.Invalid), ({"ttl_ms": 10**15}, errors.Invalid),
        ({"idempotency_key": ""}, errors.Invalid), ({"idempotency_key": "\x00"}, errors.Invalid),
    ],
)  # fmt: skip
async def test_options_are_checked(bus: Bus, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await bus.enqueue("t/echo", {}, **options)


async def test_a_malformed_traceparent_starts_a_new_trace(bus: Bus) -> None:
    good = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    assert (await row(bus, await bus.enqueue("t/echo", {}, traceparent=good)))["traceparent"] == good
    for bad in ("", "xyz", good.upper(), good.replace("a", "0")):
        found = await row(bus, await bus.enqueue("t/echo", {}, traceparent=bad))
        assert found["traceparent"] != bad
        assert len(found["trace_id"]) == 32


async def test_routing_keys_as_objects_are_checked_too(bus: Bus) -> None:
    assert await bus.enqueue(cogo.RoutingKey("t", "echo", 1, "acme"), {})
    for bad in (
        cogo.RoutingKey("T", "echo"),
        cogo.RoutingKey("t", "echo", -1),
        cogo.RoutingKey("t", "e", 0, "a b"),
    ):
        with pytest.raises(errors.RoutingInvalid):
            await bus.enqueue(bad, {})
        with pytest.raises(errors.RoutingInvalid):
            await bus.enqueue_many(bad, [{}])


async def test_many_are_all_or_none_and_in_order(bus: Bus) -> None:
    ids = await bus.enqueue_many("t/echo", [{"n": n} for n in range(12_000)])
    assert ids == sorted(set(ids))
    last = await row(bus, ids[-1])
    assert last["payload"] == {"n": 11_999}
    with pytest.raises(errors.ResultInvalid):
        await bus.enqueue_many("t/bad", [{}] * 6_000 + ["\x00"])
    assert await bus.db.fetch_value("SELECT count(*) FROM public.agent_messages WHERE role = 'bad'") == 0
    assert await bus.enqueue_many("t/echo", []) == []


async def test_the_key_is_free_again_when_its_message_is_gone(bus: Bus) -> None:
    first = await bus.enqueue("t/echo", {"n": 1}, idempotency_key="k")
    await bus.db.execute("DELETE FROM public.agent_messages")
    assert await bus.enqueue("t/echo", {"n": 2}, idempotency_key="k") != first
    await insert(bus, "t/echo", idempotency_key="plain", payload='{"n": 1}')
    assert (await bus.enqueue_once("t/echo", {"n": 1}, idempotency_key="plain"))[1] is False
