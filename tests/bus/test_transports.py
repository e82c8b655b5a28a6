"""Proves that every transport of wakeups keeps the same promises; only how soon may differ."""

from __future__ import annotations

from typing import Any

import anyio
import psycopg
import pytest
from hands import process
from helpers import eventually_async
from proxy import proxied

import cogo
from cogo.core import listener as listeners
from cogo.core.bus import Bus
from cogo.core.listener import Listener, NotifyTransport, PollTransport, choose

TRANSPORTS = ["notify", "poll"]
WITHIN_S = 8.0
"""Generous for a busy machine; with poll_ms = 60 s only a wakeup, or the deaf poll, is that soon."""


async def echo(task: dict[str, Any], ctx: cogo.Context) -> Any:
    return task


ECHO = cogo.Role("t", "echo", handle=echo)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


async def idle(bus: Bus, transport: str) -> None:
    """The process has looked, found nothing, and waits."""
    if transport == "notify":
        await eventually_async(lambda: bus.db.fetch_value("SELECT count(*) FROM cogo.bus_idle"))


async def test_an_idle_process_gets_what_is_enqueued(dsn: str, bus: Bus, transport: str) -> None:
    async with process(dsn, [ECHO], listener=transport, poll_ms=60_000) as runtime:
        assert runtime.health().listener_mode == transport
        await eventually_async(lambda: runtime.health().ready)
        for n in range(3):
            await idle(bus, transport)
            id = await bus.enqueue("t/echo", {"n": n})
            assert (await bus.result(id, timeout_s=WITHIN_S)).value == {"n": n}


async def test_results_are_awaited(dsn: str, bus: Bus, transport: str) -> None:
    """By a waiter in the process (through its listener) for work that ends elsewhere."""
    async with process(dsn, [ECHO], listener=transport, poll_ms=60_000) as runtime:
        id = await bus.enqueue("t/nobody", {})
        ended: list[str] = []

        async def wait() -> None:
            ended.append((await runtime.bus.result(id, timeout_s=WITHIN_S)).status)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await eventually_async(lambda: bus.db.fetch_value("SELECT count(*) FROM cogo.bus_waiters"))
            await bus.cancel(id, actor="test")
        assert ended == ["cancelled"]
        assert (await runtime.bus.wait(await bus.enqueue("t/nobody", {}), 0.05)).status == "queued"


async def test_chunks_arrive_in_order_and_end_with_the_message(dsn: str, bus: Bus, transport: str) -> None:
    go = anyio.Event()

    async def stream(task: dict[str, Any], ctx: cogo.Context) -> str:
        for n in range(20):
            await ctx.progress({"n": n}, kind="token")
        await go.wait()
        await ctx.progress({"n": 20}, kind="token")
        return "end"

    async with process(dsn, [cogo.Role("t", "stream", handle=stream)], listener=transport) as runtime:
        id = await bus.enqueue("t/stream", {})
        found: list[tuple[int, int]] = []
        async for chunk in runtime.bus.chunks(id, timeout_s=WITHIN_S):
            found += [(chunk.n, chunk.data["n"])]
            if len(found) == 20:
                go.set()  # all twenty were seen while the handler was still at work
        assert found == [(n + 1, n) for n in range(21)]
        again = [chunk.n async for chunk in runtime.bus.chunks(id, after=18)]
        assert again == [19, 20, 21]


async def test_killed_backends_are_replaced(dsn: str, bus: Bus, transport: str) -> None:
    """Every session of the process is terminated, the listener's too, and work goes on."""
    async with process(dsn, [ECHO], listener=transport, poll_ms=60_000) as runtime:
        for n in range(2):
            await idle(bus, transport)
            before = {row["pid"] for row in await _sessions(bus)}
            assert before
            await bus.db.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'cogo:%%'"
            )
            id = await bus.enqueue("t/echo", {"n": n})
            assert (await runtime.bus.result(id, timeout_s=2 * WITHIN_S)).value == {"n": n}
            await eventually_async(lambda: runtime.health().ready)
            assert not before & {row["pid"] for row in await _sessions(bus)}


async def _sessions(bus: Bus) -> list[dict[str, Any]]:
    return await bus.db.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'cogo:%%'"
    )


async def test_a_cancel_reaches_the_running_handler(dsn: str, bus: Bus) -> None:
    """By push only: with polling the handler ends by itself, and its finish is refused."""
    running, stopped = anyio.Event(), anyio.Event()

    async def work(task: dict[str, Any], ctx: cogo.Context) -> None:
        running.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    async with process(dsn, [cogo.Role("t", "work", handle=work)], listener="notify", grace_s=30.0):
        id = await bus.enqueue("t/work", {})
        with anyio.fail_after(WITHIN_S):
            await running.wait()
            await bus.cancel(id, actor="test")
            await stopped.wait()
    assert (await bus.result(id)).status == "cancelled"


# -- the listener itself -----------------------------------------------------------------------


@pytest.fixture
def fast_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "PROBE_S", 0.05)
    monkeypatch.setattr(listeners, "PROBE_ANSWER_S", 1.0)


@pytest.mark.usefixtures("fast_probes")
async def test_no_wakeup_is_lost_around_the_self_test(dsn: str) -> None:
    """The probe's answer and wakeups arrive in the same packet; everything is handed on, in order."""
    transport = NotifyTransport(dsn, "test:listener")
    ready = anyio.Event()
    found: list[str] = []

    async def listen() -> None:
        async for text in transport.run(ready.set):
            found.append(text)  # noqa: PERF401 (it is looked at while it grows)

    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listen)
        await ready.wait()
        for n in range(1_000):
            await conn.execute("SELECT pg_notify('cogo', %s)", (f"lane:{n}",))
        await eventually_async(lambda: found[-1:] == ["lane:999"])
        tasks.cancel_scope.cancel()
    assert found == [f"lane:{n}" for n in range(1_000)]


@pytest.mark.usefixtures("fast_probes")
async def test_a_link_that_went_dark_is_noticed_and_replaced(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "PROBE_ANSWER_S", 0.2)
    async with proxied(dsn) as proxy, anyio.create_task_group() as tasks:
        listener = Listener(NotifyTransport(proxy.dsn, "test:listener"))
        tasks.start_soon(listener.run)
        await eventually_async(lambda: listener.live)
        proxy.freeze()
        await eventually_async(lambda: not listener.live)
        proxy.thaw()
        await eventually_async(lambda: listener.live)
        tasks.cancel_scope.cancel()


async def test_everybody_is_woken_when_the_listener_is_back(dsn: str) -> None:
    """What was sent in between is lost, so consumers and waiters look once by themselves."""
    async with proxied(dsn) as proxy, anyio.create_task_group() as tasks:
        listener = Listener(NotifyTransport(proxy.dsn, "test:listener"))
        woken: list[str] = []
        listener.on_lane(cogo.Lane("t", "echo", 0), lambda: woken.append("lane"))
        listener.on_connect(lambda: woken.append("connect"))
        result = listener.result_event(7)
        tasks.start_soon(listener.run)
        await eventually_async(lambda: listener.live)
        assert woken == ["connect", "lane"]
        await result.wait()
        async with proxy.away():
            await eventually_async(lambda: not listener.live)
            assert woken == ["connect", "lane", "lane"], "they must notice that nobody pushes"
        await eventually_async(lambda: listener.live)
        assert woken == ["connect", "lane", "lane", "connect", "lane"]
        await result.wait()
        result.close()
        assert listener.waiting_results == {}
        tasks.cancel_scope.cancel()


async def test_the_transport_is_chosen_by_a_probe(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(await choose("auto", dsn, "test"), NotifyTransport)
    assert isinstance(await choose("notify", dsn, "test"), NotifyTransport)
    assert isinstance(await choose("poll", dsn, "test"), PollTransport)
    assert "listener.deaf" not in caplog.text


async def test_behind_a_pooler_in_transaction_mode_it_polls_and_says_so(
    dsn: str, bus: Bus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "START_PROBE_S", 0.3)
    async with proxied(dsn) as proxy:
        proxy.deaf = True
        async with process(proxy.dsn, [ECHO], poll_ms=60_000) as runtime:
            assert runtime.health().listener_mode == "poll"
            assert "listener.deaf" in caplog.text
            assert "pooler" in caplog.text
            id = await bus.enqueue("t/echo", {"n": 1})
            assert (await bus.result(id, timeout_s=WITHIN_S)).value == {"n": 1}


@pytest.mark.parametrize(
    "text", ["", "lane:", "lane:unknown/x/0", "result:", "result:x", "cancel:²", "new:thing"]
)
def test_unknown_wakeups_are_ignored(text: str) -> None:
    listener = Listener(PollTransport())
    heard: list[int] = []
    listener.on_cancel(heard.append)
    listener.deliver(text)
    assert heard == []
