"""Run by test_old_code.py with an older COGO on its path: one process of it, doing what a process does.

Usage: python old_code.py DSN. Prints one JSON object: how each message ended.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio
import msgspec

import cogo

RESULTS: dict[str, Any] = {"version": cogo.__version__}


async def echo(task: dict[str, Any], ctx: cogo.Context) -> dict[str, Any]:
    """Answers at the second attempt when it is asked to fail."""
    if task.get("fail") and ctx.attempt == 1:
        raise cogo.Retry("once more", after=0)
    await ctx.progress({"at": "work"})
    return {"by": "old", "n": task.get("n")}


async def ask(task: dict[str, Any], _ctx: cogo.Context) -> cogo.Delegate:
    """Lets the new code answer."""
    return cogo.Delegate(to="new/echo", payload=task)


async def refuse(_task: dict[str, Any], _ctx: cogo.Context) -> None:
    """A dead letter."""
    raise cogo.Reject("no")


async def main() -> None:
    """Serve three roles, and use the bus as a client meanwhile."""
    dsn = sys.argv[1]
    stop, ready = anyio.Event(), anyio.Event()
    roles = [
        cogo.Role("old", "echo", handle=echo, events="old"),
        cogo.Role("old", "ask", handle=ask),
        cogo.Role("old", "refuse", handle=refuse),
    ]

    async def serve() -> None:
        await cogo.serve(roles=roles, dsn=dsn, stop=stop, ready=lambda _: ready.set())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await ready.wait()
        async with cogo.connect(dsn) as bus:
            await use(bus)
        stop.set()
    sys.stdout.write(msgspec.json.encode(RESULTS).decode() + "\n")


async def use(bus: cogo.Bus) -> None:
    """Every door of a client."""
    RESULTS["retried"] = (await bus.result(await bus.enqueue("old/echo", {"fail": True}))).value
    RESULTS["delegated"] = (await bus.result(await bus.enqueue("old/ask", {"n": 2}))).value
    RESULTS["keyed"] = [await bus.enqueue("new/echo", {}, idempotency_key="k") for _ in range(2)]
    dead = await bus.enqueue("old/refuse", {})
    RESULTS["refused"] = (await bus.result(dead)).error
    RESULTS["requeued"] = await bus.requeue(dead, actor="old")
    parked = await bus.enqueue("nobody/home", {})
    RESULTS["cancelled"] = await bus.cancel(parked, actor="old")
    ids = await bus.enqueue_many("old/echo", [{"n": n} for n in range(50)])
    RESULTS["many"] = [(await bus.result(id)).value["n"] for id in ids]
    RESULTS["chunks"] = [chunk.data async for chunk in bus.chunks(ids[0])]


if __name__ == "__main__":
    anyio.run(main)
