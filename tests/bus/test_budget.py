"""Proves the one ledger: never overdrawn, shared by all hops and attempts, closed with the root."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import anyio
import pytest
from hands import Hand, child, process, shifted

import cogo
from cogo import errors
from cogo.core.bus import Bus


async def hold(bus: Bus) -> dict[str, Any]:
    (found,) = await bus.db.fetch("SELECT * FROM cogo.budget_holds")
    return found


async def test_concurrent_draws_never_overdraw(bus: Bus) -> None:
    id = await bus.enqueue("t/root", {})
    await bus.hold(id, "acme", 1.0, 1_000)
    oks: list[bool] = []

    async def draw() -> None:
        found = await bus.draw(id, 0.1, 60)
        assert found is not None
        assert found["left_cost_usd"] >= 0
        assert found["left_tokens"] >= 0
        oks.append(found["ok"])

    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(draw)
    assert sum(oks) == 10  # 0.1 ten times is exactly 1: the money is decimal
    found = await hold(bus)
    assert (found["spent_cost_usd"], found["spent_tokens"]) == (Decimal("1.0"), 600)


async def test_a_draw_is_all_or_nothing_and_each_limit_counts(bus: Bus) -> None:
    id = await bus.enqueue("t/root", {})
    await bus.hold(id, "acme", 1.0, 100)
    for cost, tokens, ok in (
        (0.5, 101, False),
        (1.5, 1, False),
        (0.5, 50, True),
        (0.0, 50, True),
        (0.0, 1, False),
    ):
        found = await bus.draw(id, cost, tokens)
        assert found is not None
        assert found["ok"] is ok
    assert (await hold(bus))["spent_cost_usd"] == Decimal("0.5")
    assert await bus.draw(id + 1, 1.0, 1) is None


async def test_tiny_costs_add_up(bus: Bus) -> None:
    """A fixed scale would round each of them to nothing."""
    id = await bus.enqueue("t/root", {})
    await bus.hold(id, "acme", 1e-8, None)
    for _ in range(10):
        found = await bus.draw(id, 1e-9, 0)
        assert found is not None
        assert found["ok"]
    found = await bus.draw(id, 1e-9, 0)
    assert found is not None
    assert not found["ok"]


async def test_the_first_hold_counts(bus: Bus) -> None:
    id = await bus.enqueue("t/root", {})
    await bus.hold(id, "acme", 1.0, None)
    await bus.hold(id, "acme", 100.0, None)
    assert (await hold(bus))["max_cost_usd"] == Decimal(1)


@pytest.mark.parametrize("end", ["done", "failed", "cancelled", "expired", "by its child"])
async def test_whatever_ends_the_root_closes_its_budget(bus: Bus, dsn: str, end: str) -> None:
    hand = await Hand(bus).register()
    id = await bus.enqueue("t/root", {}, ttl_ms=60_000)
    await bus.hold(id, "acme", 1.0, None)
    (message,) = await hand.claim("t/root")
    if end == "cancelled":
        await bus.cancel(id, actor="ops")
    elif end == "expired":
        async with shifted(dsn, "61 s") as later:
            await later.db.execute("SELECT cogo.expire(10)")
    elif end == "by its child":
        await hand.finish(message, "delegated", follow_ups=[child("t/leaf")])
        assert (await hold(bus))["closed_at"] is None
        (leaf,) = await hand.claim("t/leaf")
        await hand.finish(leaf)
    else:
        await hand.finish(message, end, error="x: y" if end == "failed" else None)
    assert (await hold(bus))["closed_at"] is not None
    found = await bus.draw(id, 0.0, 0)
    assert found is not None
    assert not found["ok"]


async def test_a_zombie_cannot_open_a_budget_for_what_has_ended(bus: Bus) -> None:
    hand = await Hand(bus).register()
    id = await bus.enqueue("t/root", {})
    (message,) = await hand.claim("t/root")
    await hand.finish(message)
    await bus.hold(id, "acme", 1.0, None)
    found = await bus.draw(id, 0.1, 1)
    assert found is not None
    assert not found["ok"]


ASSIGNED = {"__assignment": {"budget": {"maxCostUsd": 0.10, "maxTokens": 100}, "model": "small"}}


async def test_hops_and_attempts_share_what_the_root_may_spend(dsn: str, bus: Bus) -> None:
    """The first attempt's spending counts for the second, and the child draws from the root's hold."""

    async def first(task: dict[str, Any], ctx: cogo.Context) -> cogo.Delegate:
        await ctx.spend(cost_usd=0.04, tokens=40, model="small")
        if ctx.attempt == 1:
            raise cogo.Retry("again", after=0)
        return cogo.Delegate(to="t/second", payload=task)

    async def second(task: dict[str, Any], ctx: cogo.Context) -> str:
        with pytest.raises(errors.BudgetExceeded, match="more than what is left"):
            await ctx.spend(cost_usd=0.03, model="small")
        await ctx.spend(cost_usd=0.02, tokens=20, model="small")
        for other in ("large", None):  # a call that names no model could be one to any
            with pytest.raises(errors.ModelDenied):
                await ctx.spend(model=other)
        await ctx.spend(tokens=1, model="small")
        return "unreachable"

    roles = [cogo.Role("t", "first", handle=first), cogo.Role("t", "second", handle=second)]
    async with process(dsn, roles):
        id = await bus.enqueue("t/first@acme", ASSIGNED)
        result = await bus.result(id)
    assert (result.status, result.attempts) == ("failed", 2)
    assert (result.error or "").startswith("budget_exceeded: ")
    found = await hold(bus)
    assert (found["root_id"], found["tenant"], found["spent_tokens"]) == (id, "acme", 100)
    assert found["closed_at"] is not None


async def test_what_was_not_used_goes_back(dsn: str, bus: Bus) -> None:
    """Of a reservation the rest, once; never more than was drawn, and of what was not drawn nothing."""

    async def work(task: dict[str, Any], ctx: cogo.Context) -> str:
        drawn = await ctx.spend(cost_usd=0.09, tokens=90, model="small")
        with pytest.raises(errors.BudgetExceeded) as short:
            await ctx.spend(tokens=20, model="small")
        assert short.value.extra == {"left_cost_usd": Decimal("0.01"), "left_tokens": 10}
        for wrong in ({"cost_usd": 0.1}, {"tokens": 91}, {"tokens": -1}, {"cost_usd": float("nan")}):
            with pytest.raises(errors.Invalid):
                await drawn.settle(**wrong)
        await drawn.settle(cost_usd=0.02, tokens=15)
        await drawn.settle()
        await ctx.spend(cost_usd=0.08, tokens=85, model="small")
        return "all of it"

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        assert (await bus.result(await bus.enqueue("t/work", ASSIGNED))).value == "all of it"
    found = await hold(bus)
    assert (found["spent_cost_usd"], found["spent_tokens"]) == (Decimal("0.10"), 100)


async def test_a_refund_needs_an_open_hold_and_the_current_claim(bus: Bus) -> None:
    hand = await Hand(bus).register()
    id = await bus.enqueue("t/root", {})
    (message,) = await hand.claim("t/root")
    assert not await bus.refund(id, id, message.fence, 0.1, 1), (
        "without a hold there is nothing to give back to"
    )
    await bus.hold(id, "acme", 1.0, 100)
    await bus.draw(id, 0.5, 50)
    assert not await bus.refund(id, id, message.fence + 1, 0.1, 1)
    assert not await bus.refund(id, id, 0, 0.1, 1)
    assert not await bus.refund(id, id, message.fence, -0.1, 1), "that would be spending without a limit"
    assert await bus.refund(id, id, message.fence, 0.2, 20)
    found = await hold(bus)
    assert (found["spent_cost_usd"], found["spent_tokens"]) == (Decimal("0.3"), 30)
    assert await bus.refund(id, id, message.fence, 5.0, 500)
    found = await hold(bus)
    assert (found["spent_cost_usd"], found["spent_tokens"]) == (0, 0), "never below zero"
    await bus.draw(id, 0.5, 50)
    await hand.finish(message)
    assert not await bus.refund(id, id, message.fence, 0.1, 1), "what has ended is closed"


async def test_a_lost_claim_credits_nobody(dsn: str, bus: Bus) -> None:
    """The first attempt is cancelled and requeued while it works: its refund must not reach the new hold."""
    began, go_on = anyio.Event(), anyio.Event()
    outcome: list[str] = []

    async def work(task: dict[str, Any], ctx: cogo.Context) -> str:
        drawn = await ctx.spend(cost_usd=0.05, tokens=50, model="small")
        if began.is_set():
            return "second"
        began.set()
        with anyio.CancelScope(shield=True):
            await go_on.wait()
            try:
                await drawn.settle()
            except errors.ClaimLost:
                outcome.append("lost")
        return "first"

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        id = await bus.enqueue("t/work", ASSIGNED)
        await began.wait()
        await bus.cancel(id, actor="ops")
        await bus.requeue(id, actor="ops")
        assert (await bus.result(id)).value == "second"
        go_on.set()
    assert outcome == ["lost"]
    assert (await hold(bus))["spent_tokens"] == 50


async def test_many_settle_at_once(bus: Bus) -> None:
    hand = await Hand(bus).register()
    id = await bus.enqueue("t/root", {})
    (message,) = await hand.claim("t/root")
    await bus.hold(id, "acme", 1.0, None)

    async def turn() -> None:
        found = await bus.draw(id, 0.01, 0)
        assert found is not None
        assert found["ok"]
        assert await bus.refund(id, id, message.fence, 0.007, 0)

    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(turn)
    assert (await hold(bus))["spent_cost_usd"] == Decimal("0.12")


@pytest.mark.parametrize(
    "spent", [{"cost_usd": -1.0}, {"tokens": -1}, {"cost_usd": float("nan")}, {"cost_usd": float("inf")}]
)
async def test_nobody_earns_by_spending(dsn: str, bus: Bus, spent: dict[str, Any]) -> None:
    async def work(task: dict[str, Any], ctx: cogo.Context) -> None:
        await ctx.spend(**spent)

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        result = await bus.result(await bus.enqueue("t/work", ASSIGNED))
    assert (result.status, result.attempts) == ("failed", 1)
    assert (result.error or "").startswith("invalid: ")


async def test_without_an_assignment_nothing_limits(dsn: str, bus: Bus) -> None:
    async def work(task: dict[str, Any], ctx: cogo.Context) -> str:
        await ctx.spend(cost_usd=1e6, tokens=10**9, model="any")
        return "spent"

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        assert (await bus.result(await bus.enqueue("t/work", {}))).value == "spent"
    assert await bus.db.fetch("SELECT FROM cogo.budget_holds") == []
