"""Proves the door for programs that are no role: connect, connect_sync, and what they raise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hands import Hand, fast_settings, process
from helpers import eventually_async

import cogo
from cogo import errors
from cogo.core.bus import Bus


async def test_a_client_enqueues_and_waits(dsn: str) -> None:
    async def double(task: dict[str, Any], ctx: cogo.Context) -> int:
        return 2 * int(task["n"])

    async with process(dsn, [cogo.Role("t", "double", handle=double)]), cogo.connect(dsn) as bus:
        ids = await bus.enqueue_many("t/double@acme", [{"n": n} for n in range(5)])
        assert [(await bus.result(id)).value for id in ids] == [0, 2, 4, 6, 8]


async def test_errors_come_out_as_they_are(dsn: str) -> None:
    """Not wrapped by the task group that keeps the listener alive."""
    with pytest.raises(errors.MessageUnknown):
        async with cogo.connect(dsn) as bus:
            await bus.result(10**12)
    with pytest.raises(KeyError):
        async with cogo.connect(dsn):
            raise KeyError("mine")


async def test_a_result_that_takes_too_long(dsn: str, bus: Bus) -> None:
    id = await bus.enqueue("t/nobody", {})
    async with cogo.connect(dsn) as far:
        with pytest.raises(errors.ResultPending, match=r"is queued after 0\.05 s"):
            await far.result(id, timeout_s=0.05)
        assert (await far.wait(id, 0)).status == "queued"
        assert await bus.db.fetch_value("SELECT count(*) FROM cogo.bus_waiters") == 0


async def test_many_waiters_of_one_message_are_all_told(dsn: str, bus: Bus) -> None:
    hand = await Hand(bus).register()
    id = await bus.enqueue("t/echo", {})
    found: list[Any] = []
    async with cogo.connect(dsn) as far:

        async def wait() -> None:
            found.append((await far.result(id)).value)

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(wait)
            waiting = "SELECT count(*) = 10 FROM cogo.bus_waiters"
            await eventually_async(lambda: bus.db.fetch_value(waiting))
            (message,) = await hand.claim("t/echo")
            await hand.finish(message, snippet="7")
    assert found == [7] * 10


async def test_leaving_a_stream_of_chunks_early_leaves_nothing_behind(dsn: str, bus: Bus) -> None:
    hand = await Hand(bus).register()
    id = await bus.enqueue("t/echo", {})
    (message,) = await hand.claim("t/echo")
    await bus.add_chunks(id, message.fence, [("token", n) for n in range(600)])
    async with cogo.connect(dsn) as far:
        stream = far.chunks(id)
        assert [(await anext(stream)).data for _ in range(550)] == list(range(550))
        await stream.aclose()
        assert await bus.db.fetch_value("SELECT count(*) FROM cogo.bus_waiters") == 0


async def test_the_time_limit_of_a_stream_never_interrupts_its_reader(dsn: str, bus: Bus) -> None:
    """It once was a cancel scope around the yield, which cancelled the reader's own code."""
    hand = await Hand(bus).register()
    id = await bus.enqueue("t/echo", {})
    (message,) = await hand.claim("t/echo")
    await bus.add_chunks(id, message.fence, [("token", 1), ("token", 2)])
    found: list[int] = []
    async for chunk in bus.chunks(id, timeout_s=0.05):
        await anyio.sleep_until(anyio.current_time() + 0.1)
        found.append(chunk.n)
    assert found == [1, 2]


def test_programs_without_a_loop(dsn: str) -> None:
    with cogo.connect_sync(dsn) as bus:
        id = bus.enqueue("t/echo@acme", {"n": 1})
        assert bus.peek(id).status == "queued"
        assert bus.cancel(id, actor="me") == "cancelled"
        with pytest.raises(errors.MessageUnknown):
            bus.peek(10**12)


async def test_no_database_at_all(tmp_path: Path) -> None:
    settings = fast_settings(data_dir=tmp_path / "home").settings
    with pytest.raises(errors.NoServer):
        async with cogo.connect(settings=settings):
            pass
