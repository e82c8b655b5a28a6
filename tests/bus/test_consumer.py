"""Proves how a role is fed: its slots, threads and worker processes, cancellation and the drain."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import handlers
import pytest
from hands import process, row
from helpers import eventually, eventually_async

import cogo
from cogo.core import consumer as consumers
from cogo.core.bus import Bus
from cogo.core.runtime import Runtime


async def done(bus: Bus, count: int) -> bool:
    sql = "SELECT count(*) FROM public.agent_messages WHERE status = 'done'"
    return bool(await bus.db.fetch_value(sql) == count)


# -- slots -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_no_more_run_at_once_than_the_role_allows(dsn: str, bus: Bus, kind: str) -> None:
    lock = threading.Lock()
    full = threading.Barrier(3, timeout=10)
    now, most = 0, 0

    def enter() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)

    def leave() -> None:
        nonlocal now
        with lock:
            now -= 1

    async def on_loop(task: Any, ctx: cogo.Context) -> None:
        enter()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        leave()

    def in_thread(task: Any, ctx: cogo.Context) -> None:
        enter()
        full.wait()  # three at a time are needed to get on: they do run side by side
        leave()

    role = cogo.Role("t", "work", handle=on_loop if kind == "async" else in_thread, concurrency=3)
    async with process(dsn, [role]):
        await bus.enqueue_many("t/work", [{} for _ in range(30)])
        await eventually_async(lambda: done(bus, 30))
    assert (now, most) == (0, 3)


async def test_nothing_is_claimed_that_has_no_slot(dsn: str, bus: Bus) -> None:
    """No queue in memory: what this process can't run is there for others."""
    gate = anyio.Event()

    async def work(task: Any, ctx: cogo.Context) -> None:
        await gate.wait()

    claimed = "SELECT count(*) FROM public.agent_messages WHERE status = 'claimed'"
    async with process(dsn, [cogo.Role("t", "work", handle=work, concurrency=2)]):
        await bus.enqueue_many("t/work", [{} for _ in range(5)])
        await eventually_async(lambda: bus.db.fetch_value(claimed))
        await bus.enqueue("t/work", {})
        assert await bus.db.fetch_value(claimed) <= 2
        gate.set()
        await eventually_async(lambda: done(bus, 6))


async def test_shards_take_turns(dsn: str, bus: Bus) -> None:
    """A shard with much to do starves none of the others."""
    first = anyio.Event()

    async def work(task: Any, ctx: cogo.Context) -> None:
        if ctx.key.shard == 2:
            first.set()

    await bus.enqueue_many("t/work/0", [{} for _ in range(3_000)])
    await bus.enqueue("t/work/2", {})
    role = cogo.Role("t", "work", handle=work, concurrency=1, shards=(0, 1, 2))
    async with process(dsn, [role]):
        with anyio.fail_after(10):
            await first.wait()
        left = await bus.db.fetch_value("SELECT count(*) FROM public.agent_messages WHERE status = 'queued'")
        assert left > 1_000
        await bus.db.execute("DELETE FROM public.agent_messages WHERE status = 'queued'")


# -- threads -----------------------------------------------------------------------------------


async def test_an_abandoned_thread_keeps_its_slot_and_its_result_is_refused(
    dsn: str, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    release, told = threading.Event(), threading.Event()
    ran: list[int] = []

    def work(task: dict[str, Any], ctx: cogo.Context) -> str:
        ran.append(task["n"])
        if task["n"] == 1:
            release.wait(15)
            if ctx.cancelled():
                told.set()
        return f"from thread {task['n']}"

    role = cogo.Role("t", "work", handle=work, concurrency=1)
    async with process(dsn, [role]):
        stuck = await bus.enqueue("t/work", {"n": 1})
        await eventually_async(lambda: ran == [1])
        await bus.cancel(stuck, actor="test")
        await eventually_async(lambda: "handler.abandoned role=t-work" in caplog.text)
        next_one = await bus.enqueue("t/work", {"n": 2})
        assert (await bus.wait(next_one, 0.3)).status == "queued", "its thread still has the only slot"
        release.set()
        assert (await bus.result(next_one)).value == "from thread 2"
        assert told.is_set()
    assert (await bus.result(stuck)).status == "cancelled"
    assert (await row(bus, stuck))["result_snippet"] is None


async def test_a_timeout_is_told_to_a_thread(dsn: str, bus: Bus) -> None:
    told = threading.Event()

    def work(task: Any, ctx: cogo.Context) -> int:
        if ctx.attempt == 1:
            eventually(ctx.cancelled)
            told.set()
        return ctx.attempt

    role = cogo.Role("t", "work", handle=work, timeout_s=0.5, backoff_base_s=0.001)
    async with process(dsn, [role]):
        result = await bus.result(await bus.enqueue("t/work", {}))
        assert result.value == 2
        assert told.wait(10)


# -- worker processes --------------------------------------------------------------------------


async def test_cpu_bound_work_runs_in_another_process(dsn: str, bus: Bus) -> None:
    role = cogo.Role("t", "work", handle=handlers.whereabouts, process=True)
    async with process(dsn, [role]):
        result = await bus.result(await bus.enqueue("t/work", {"n": 1}))
        assert result.value["task"] == {"n": 1}
        assert result.value["pid"] != os.getpid()


async def test_a_worker_process_that_dies_is_one_failed_attempt(dsn: str, bus: Bus) -> None:
    role = cogo.Role("t", "work", handle=handlers.die, process=True, max_attempts=2, backoff_base_s=0.001)
    async with process(dsn, [role]):
        result = await bus.result(await bus.enqueue("t/work", {}))
        assert (result.status, result.attempts) == ("failed", 2)
        assert (result.error or "").startswith("handler_error: BrokenWorkerProcess")


async def test_cancel_kills_a_worker_process(dsn: str, bus: Bus) -> None:
    role = cogo.Role("t", "work", handle=handlers.spin, process=True, concurrency=1)
    async with process(dsn, [role]) as runtime:
        id = await bus.enqueue("t/work", {})
        await eventually_async(
            lambda: bus.db.fetch_value("SELECT count(*) FROM public.agent_messages WHERE status = 'claimed'")
        )
        await bus.cancel(id, actor="test")
        with anyio.fail_after(10):  # a spinning process would hold up the drain otherwise
            runtime.stop.set()
            await eventually_async(lambda: runtime.lease.stands is False)


# -- cancellation and the drain ----------------------------------------------------------------


@asynccontextmanager
async def stopping(runtime: Runtime) -> AsyncIterator[None]:
    """Ask for the stop; leaving the block waits until the process has left."""
    runtime.stop.set()
    yield
    await eventually_async(lambda: not runtime.lease.stands)


async def test_the_drain_lets_handlers_finish(dsn: str, bus: Bus) -> None:
    running, gate = anyio.Event(), anyio.Event()

    async def work(task: Any, ctx: cogo.Context) -> str:
        running.set()
        await gate.wait()
        return "finished"

    async with process(dsn, [cogo.Role("t", "work", handle=work, concurrency=1)], grace_s=30.0) as runtime:
        first, second = await bus.enqueue("t/work", {}), await bus.enqueue("t/work", {})
        await running.wait()
        async with stopping(runtime):
            gate.set()
    assert (await bus.result(first)).value == "finished"
    assert (await row(bus, second))["status"] == "queued", "nothing is claimed after the stop"


async def test_after_the_grace_messages_are_given_back_uncounted(dsn: str, bus: Bus) -> None:
    running, cleaned = anyio.Event(), anyio.Event()

    async def work(task: Any, ctx: cogo.Context) -> None:
        running.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.set()
            raise ValueError("cleanup went wrong")

    async with process(dsn, [cogo.Role("t", "work", handle=work)], grace_s=0.1) as runtime:
        id = await bus.enqueue("t/work", {})
        await running.wait()
        async with stopping(runtime):
            pass
    assert cleaned.is_set()
    found = await row(bus, id)
    assert (found["status"], found["attempts"], found["fence"], found["claimed_by"]) == ("queued", 0, 0, None)


async def test_a_handler_that_ignores_its_cancellation_ends_as_it_ends(
    dsn: str, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    """It finished the work after all, its claim is current, so the answer counts."""
    running, gate = anyio.Event(), anyio.Event()

    async def work(task: Any, ctx: cogo.Context) -> str:
        running.set()
        with anyio.CancelScope(shield=True):
            await gate.wait()
        return "in the end"

    async with process(dsn, [cogo.Role("t", "work", handle=work)], grace_s=0.1) as runtime:
        id = await bus.enqueue("t/work", {})
        await running.wait()
        async with stopping(runtime):
            await eventually_async(lambda: "handlers.stopped why=drain" in caplog.text)
            gate.set()
    assert (await bus.result(id)).value == "in the end"


async def test_a_crash_of_the_consumer_gives_its_messages_back(
    dsn: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the end of its lease: this process lives on, and would keep them until their deadline."""
    running = anyio.Event()
    attempts: list[int] = []

    async def work(task: Any, ctx: cogo.Context) -> int:
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            running.set()
            await anyio.sleep_forever()
        return ctx.attempt

    async def broken(desk: consumers.Desk) -> None:
        monkeypatch.undo()
        raise RuntimeError("a bug of ours")

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        id = await bus.enqueue("t/work", {})
        await running.wait()
        monkeypatch.setattr(consumers.Desk, "recover", broken)
        await bus.enqueue("t/work", {})
        # Sooner than recover() would find it.
        assert (await bus.result(id, timeout_s=4)).value == 1, "uncounted"
    assert attempts.count(1) == len(attempts)


async def test_a_message_that_comes_back_while_its_old_handler_ends(dsn: str, bus: Bus) -> None:
    """Reclaimed and claimed again by the same process: two handlers of one message, one answer."""
    first, second, gate = anyio.Event(), anyio.Event(), anyio.Event()

    async def work(task: Any, ctx: cogo.Context) -> int:
        (second if first.is_set() else first).set()
        with anyio.CancelScope(shield=True):
            await gate.wait()
        return ctx.message.fence

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        id = await bus.enqueue("t/work", {})
        with anyio.fail_after(10):
            await first.wait()
            await bus.db.execute(
                "UPDATE public.agent_messages SET deadline_at = now() - interval '1 minute' WHERE id = %s",
                (id,),
            )
            await second.wait()
        fence = (await row(bus, id))["fence"]
        gate.set()
        result = await bus.result(id)
        assert (result.value, result.attempts) == (fence, 2)
    later = await bus.db.fetch("SELECT status, attempts FROM public.agent_messages")
    assert later == [{"status": "done", "attempts": 2}]


# -- streamed answers --------------------------------------------------------------------------


async def test_progress_is_written_though_no_more_follows(dsn: str, bus: Bus) -> None:
    """The second piece comes within 50 ms of the first and is not left in memory until the third."""
    gate = anyio.Event()

    async def work(task: Any, ctx: cogo.Context) -> None:
        await ctx.progress(1)
        await ctx.progress(2)
        await gate.wait()

    async with process(dsn, [cogo.Role("t", "work", handle=work)]):
        await bus.enqueue("t/work", {})
        await eventually_async(lambda: _chunks(bus, [1, 2]))
        gate.set()


async def _chunks(bus: Bus, expected: list[Any]) -> bool:
    rows = await bus.db.fetch("SELECT data FROM cogo.message_chunks ORDER BY n")
    return [found["data"] for found in rows] == expected


async def test_progress_of_a_lost_claim_stops_the_handler(dsn: str, bus: Bus) -> None:
    stopped, running = anyio.Event(), anyio.Event()

    async def work(task: Any, ctx: cogo.Context) -> None:
        if ctx.attempt > 1:
            return
        await ctx.progress(1)
        running.set()
        try:
            while True:
                await ctx.progress(2)
                await anyio.lowlevel.checkpoint()
        finally:
            stopped.set()

    async with process(dsn, [cogo.Role("t", "work", handle=work)], listener="poll"):
        id = await bus.enqueue("t/work", {})
        with anyio.fail_after(10):
            await running.wait()
            await bus.cancel(id, actor="test")  # nobody is told: no push
            await stopped.wait()
    assert (await row(bus, id))["status"] == "cancelled"


async def test_a_message_leaves_nothing_to_the_collector(dsn: str, bus: Bus) -> None:
    """No cycle, whatever of its context a handler uses; a process of its own looks for them rarely."""
    left: list[weakref.ref[cogo.Context]] = []

    async def handle(task: Any, ctx: cogo.Context) -> None:
        left.append(weakref.ref(ctx))
        await ctx.bus.enqueue("t/other", {})
        ctx.event("seen")
        await ctx.extend(30)
        await ctx.progress({"n": 1})
        await ctx.progress({"n": 2})

    gc.disable()
    try:
        async with process(dsn, [cogo.Role("t", "work", handle=handle)]):
            await bus.enqueue_many("t/work", [{} for _ in range(5)])
            await eventually_async(lambda: len(left) == 5 and not any(ref() for ref in left))
    finally:
        gc.enable()
