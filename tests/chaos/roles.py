"""The roles of a chaos run: small handlers that say who they were, in what they write and in their process's log.

Each puts the fence of its claim into its result or its error, so that the checker can compare it with the fence
that the database had issued last.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from chaos.recorder import Lines

from cogo import Context, Delegate, Reject, Retry, Role

Task = dict[str, Any]
Handle = Callable[[Any, Context], Awaitable[Any]]

EXIT_CODE = 13
"""How a process ends whose handler ends it."""
CALL_USD = 0.25

POLICIES: dict[str, dict[str, Any]] = {
    "noop": {},
    "evented": {"events": "evented"},
    "slow": {"timeout_s": 6.0},
    "thread": {"timeout_s": 3.0},
    "effect": {"events": "effect", "timeout_s": 4.0},
    "follow": {},
    "delegate": {"events": "delegate"},
    "child": {},
    "spend": {},
    "flaky": {},
    "limited": {"fair": True, "max_running": 5, "max_running_per_tenant": 2},
    "poison": {"max_attempts": 3, "timeout_s": 1.0},
    "exit": {"max_attempts": 2},
}
"""By the second part of the lane `chaos/…`, what differs from USUAL."""
USUAL = {"max_attempts": 8, "events": None, "timeout_s": 8.0}
FOREIGN = "foreign"
"""The lane that only outsiders serve."""


def lanes() -> dict[str, dict[str, Any]]:
    """What the checker needs to know of each lane."""
    found = {f"chaos/{name}": USUAL | policy for name, policy in POLICIES.items()}
    return found | {f"chaos/{FOREIGN}": {"max_attempts": 5, "events": None}}


async def passes(seconds: float) -> None:
    """Return after so many seconds; for handlers and faults, where time is the matter itself."""
    with anyio.move_on_after(seconds):
        await anyio.Event().wait()


def mine(ctx: Context, **more: Any) -> dict[str, Any]:
    """A result that tells under which claim it was made."""
    return {"fence": ctx.message.fence, **more}


async def noop(task: Task, ctx: Context) -> Any:
    return mine(ctx)


async def slow(task: Task, ctx: Context) -> Any:
    """Takes its time; one that `talks` also asks for more, and shows progress."""
    wait_s = task.get("wait_s", 0.5)
    if task.get("talks"):
        await ctx.extend(8.0)
        for number in range(3):
            await ctx.progress({"number": number, **mine(ctx)})
            await passes(wait_s / 3)
    else:
        await passes(wait_s)
    return mine(ctx)


def thread(task: Task, ctx: Context) -> Any:
    threading.Event().wait(task.get("wait_s", 0.2))
    return mine(ctx)


INSERT_EFFECT = "INSERT INTO chaos.effects (message_id, fence, key) VALUES (%s, %s, %s)"


async def effect(task: Task, ctx: Context) -> Any:
    """An effect that is committed together with the end of the message."""
    async with ctx.transaction() as tx:
        await tx.execute(INSERT_EFFECT, (ctx.message_id, ctx.message.fence, f"{ctx.message_id}:effect"))
        await passes(task.get("wait_s", 0.0))
        tx.done(mine(ctx))


async def loose_effect(task: Task, ctx: Context) -> Any:
    """The same, done wrong: committed by itself, so that a second attempt repeats it."""
    await ctx.db.execute(INSERT_EFFECT, (ctx.message_id, ctx.message.fence, f"{ctx.message_id}:effect"))
    await passes(task.get("wait_s", 0.0))
    return mine(ctx)


def _left(ctx: Context, number: int, **more: Any) -> dict[str, Any]:
    """The payload of a follow-up: of whom, and under which claim it left."""
    return {"parent": ctx.message_id, "left_under": ctx.message.fence, "i": number, **more}


async def follow(task: Task, ctx: Context) -> Any:
    await passes(task.get("wait_s", 0.0))
    for number in range(task.get("follow", 1)):
        await ctx.bus.enqueue("chaos/noop", _left(ctx, number))
    return mine(ctx)


async def delegate(task: Task, ctx: Context) -> Any:
    """`hops` more messages answer for this one; the last does what `then` says."""
    more = {
        "hops": task.get("hops", 1) - 1,
        "then": task.get("then", "done"),
        "wait_s": task.get("wait_s", 0.0),
    }
    to = Delegate(to="chaos/delegate" if more["hops"] else "chaos/child", payload=_left(ctx, 0, **more))
    if not task.get("transaction"):
        return to
    async with ctx.transaction() as tx:
        tx.delegate(to)
    return None


async def child(task: Task, ctx: Context) -> Any:
    await passes(task.get("wait_s", 0.0))
    if task.get("then") == "reject":
        raise Reject(f"as asked, fence={ctx.message.fence}")
    if task.get("then") == "retry" and ctx.attempt == 1:
        raise Retry(f"as asked, fence={ctx.message.fence}", after=0.05)
    return mine(ctx)


async def spend(task: Task, ctx: Context, log: Lines) -> Any:
    """Draws until the budget says no; every second attempt gives up after one call."""
    for number in range(task.get("calls", 4)):
        await ctx.spend(cost_usd=CALL_USD)
        log.write("handler", stage="spent", id=ctx.message_id, fence=ctx.message.fence, root=ctx.root_id,
                  cost_usd=CALL_USD)  # fmt: skip
        if number == 0 and ctx.attempt == 1:
            raise Retry(f"once more, fence={ctx.message.fence}", after=0.05)
    return mine(ctx)


async def flaky(task: Task, ctx: Context) -> Any:
    if ctx.attempt <= task.get("fails", 1):
        raise Retry(f"not yet, fence={ctx.message.fence}", after=0.02)
    return mine(ctx)


async def poison(task: Task, ctx: Context) -> Any:
    """What no attempt survives: `how` is raise, hang or exit."""
    if task["how"] == "hang":
        await anyio.Event().wait()
    if task["how"] == "exit":
        os._exit(EXIT_CODE)
    raise RuntimeError(f"poison, fence={ctx.message.fence}")


def recorded(handle: Handle, log: Lines) -> Handle:
    """The handler, with a line at its start and one at its end."""

    async def run(task: Task, ctx: Context) -> Any:
        about = {"id": ctx.message_id, "fence": ctx.message.fence, "lane": str(ctx.key.lane)}
        log.write("handler", stage="start", attempt=ctx.attempt, **about)
        how = "done"
        try:
            return await handle(task, ctx)
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            log.write("handler", stage="end", how=how, **about)

    return run


def recorded_thread(log: Lines) -> Callable[[Task, Context], Any]:
    def run(task: Task, ctx: Context) -> Any:
        about = {"id": ctx.message_id, "fence": ctx.message.fence, "lane": str(ctx.key.lane)}
        log.write("handler", stage="start", attempt=ctx.attempt, **about)
        result = thread(task, ctx)
        log.write("handler", stage="end", how="done", **about)
        return result

    return run


def all_roles(log: Lines, *, loose_effects: bool = False) -> list[Role]:
    """One Role for each lane; `loose_effects` plants a bug into the handler of chaos/effect."""
    handlers: dict[str, Handle] = {
        "noop": noop, "evented": noop, "slow": slow, "follow": follow, "delegate": delegate, "child": child,
        "effect": loose_effect if loose_effects else effect, "spend": functools.partial(spend, log=log),
        "flaky": flaky, "limited": slow, "poison": poison, "exit": poison,
    }  # fmt: skip
    handles: dict[str, Callable[..., Any]] = {name: recorded(each, log) for name, each in handlers.items()}
    handles["thread"] = recorded_thread(log)
    return [_role(name, handle) for name, handle in handles.items()]


def _role(name: str, handle: Callable[..., Any]) -> Role:
    return Role("chaos", name, handle=handle, concurrency=8, backoff_base_s=0.05, backoff_cap_s=0.4,
                **(USUAL | POLICIES[name]))  # fmt: skip
