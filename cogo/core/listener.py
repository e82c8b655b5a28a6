"""The process's one subscription. It delivers wakeups, never data: truth is in the table.

A transport yields texts (`lane:rag/embed/0`, `result:7`, `cancel:7`); the Listener sorts them to those
who wait. After every (re)connect everybody is woken once, because what was sent in between is lost.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import anyio
import psycopg

from . import telemetry
from .db import connect
from .errors import BusUnavailable
from .model import Lane

CHANNEL = "cogo"
PROBE_S = 10.0
"""A self-NOTIFY this often: the only thing that notices a black-holed connection."""
PROBE_ANSWER_S = 2.0
START_PROBE_S = 2.0
DEAF_POLL_S = 1.0
"""How often consumers look by themselves while no transport pushes."""


class Transport(Protocol):
    """Where wakeups come from. `run` connects, calls `ready` each time it is live, and yields texts.

    It raises BusUnavailable when the connection is lost; the Listener starts it again.
    """

    name: str
    pushes: bool

    def run(self, ready: Callable[[], None]) -> AsyncIterator[str]: ...


class PollTransport:
    """No push at all: consumers look by themselves."""

    name = "poll"
    pushes = False

    async def run(self, ready: Callable[[], None]) -> AsyncIterator[str]:
        ready()
        await anyio.sleep_forever()
        yield ""  # makes this an async generator


class NotifyTransport:
    """LISTEN on a session connection of its own, which tests itself every PROBE_S."""

    name = "notify"
    pushes = True

    def __init__(self, dsn: str, application: str) -> None:
        self._dsn = dsn
        self._application = application

    async def run(self, ready: Callable[[], None]) -> AsyncIterator[str]:
        conn = await connect(self._dsn, self._application)
        try:
            with anyio.fail_after(PROBE_S):
                await conn.execute(f"LISTEN {CHANNEL}")
            ready()
            async for text in self._texts(conn):
                yield text
        except TimeoutError as error:
            raise BusUnavailable("the listener's own wakeup did not come back") from error
        except psycopg.Error as error:
            raise BusUnavailable(f"the listener's connection failed: {error}") from error
        finally:
            with anyio.move_on_after(1.0, shield=True):
                await conn.close()

    async def _texts(self, conn: psycopg.AsyncConnection[Any]) -> AsyncIterator[str]:
        # notifies() is never left before its time is up: what it had read already would be lost.
        probe, serial = "", 0
        due = time.monotonic() + PROBE_S
        while True:
            async for note in conn.notifies(timeout=max(0.01, due - time.monotonic())):
                if note.payload != probe:
                    yield note.payload
                    continue
                probe, due = "", time.monotonic() + PROBE_S
            if time.monotonic() < due:
                continue
            if probe:
                raise TimeoutError
            serial += 1
            probe = f"probe:{conn.info.backend_pid}:{serial}"
            with anyio.fail_after(PROBE_ANSWER_S):
                await conn.execute("SELECT pg_notify(%s, %s)", (CHANNEL, probe))
            due = time.monotonic() + PROBE_ANSWER_S


async def pushes_arrive(dsn: str, application: str) -> bool:
    """LISTEN, NOTIFY from a second connection, and see it come: poolers in transaction mode fail here."""
    listening = await connect(dsn, application)
    async with listening, await connect(dsn, application) as other:
        await listening.execute(f"LISTEN {CHANNEL}")
        probe = f"probe:start:{other.info.backend_pid}:{time.monotonic_ns()}"
        await other.execute("SELECT pg_notify(%s, %s)", (CHANNEL, probe))
        async for note in listening.notifies(timeout=START_PROBE_S):
            if note.payload == probe:
                return True
    return False


class ResultEvent:
    """Fires whenever its message changes; close it when nobody waits any more."""

    def __init__(self, listener: Listener, message_id: int) -> None:
        self._listener = listener
        self._id = message_id
        self._event = anyio.Event()

    def fire(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = anyio.Event()

    def close(self) -> None:
        waiting = self._listener.waiting_results
        waiting.get(self._id, set()).discard(self)
        if not waiting.get(self._id, True):
            del waiting[self._id]


class Listener:
    """Sorts wakeups to consumers, waiters and running handlers; one per process."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.live = False
        self.since: float | None = None
        self.waiting_results: dict[int, set[ResultEvent]] = {}
        self._lanes: dict[str, list[Callable[[], None]]] = {}
        self._on_cancel: list[Callable[[int], None]] = []
        self._on_connect: list[Callable[[], None]] = []

    @property
    def pushing(self) -> bool:
        """True while wakeups are pushed; else consumers poll every DEAF_POLL_S."""
        return self.live and self.transport.pushes

    def on_lane(self, lane: Lane, wake: Callable[[], None]) -> None:
        self._lanes.setdefault(str(lane), []).append(wake)

    def on_cancel(self, cancel: Callable[[int], None]) -> None:
        self._on_cancel.append(cancel)

    def on_connect(self, connected: Callable[[], None]) -> None:
        self._on_connect.append(connected)

    def result_event(self, message_id: int) -> ResultEvent:
        event = ResultEvent(self, message_id)
        self.waiting_results.setdefault(message_id, set()).add(event)
        return event

    async def run(self) -> None:
        """Keep the transport alive for ever, with backoff 0.1 .. 2 s between attempts."""
        outage = telemetry.Outage("listener")
        pause_s = 0.1

        def ready() -> None:
            nonlocal pause_s
            pause_s = 0.1
            outage.end()
            self._ready()

        while True:
            try:
                async for text in self.transport.run(ready):
                    self.deliver(text)
            except BusUnavailable as error:
                outage.begin(error)
            self.live = False
            self._wake_everybody()  # they notice that nobody pushes and poll
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, 2.0)

    def deliver(self, text: str) -> None:
        """Hand one wakeup on; unknown texts are ignored (a newer COGO may send them)."""
        kind, _, rest = text.partition(":")
        if kind == "lane":
            for wake in self._lanes.get(rest, ()):
                wake()
        elif kind == "result" and rest.isdecimal():
            for event in self.waiting_results.get(int(rest), ()):
                event.fire()
        elif kind == "cancel" and rest.isdecimal():
            for cancel in self._on_cancel:
                cancel(int(rest))

    def _ready(self) -> None:
        self.live = True
        self.since = time.monotonic()
        for connected in self._on_connect:
            connected()
        self._wake_everybody()

    def _wake_everybody(self) -> None:
        for wakes in self._lanes.values():
            for wake in wakes:
                wake()
        for events in self.waiting_results.values():
            for event in events:
                event.fire()


async def choose(mode: str, dsn: str, application: str) -> Transport:
    """The transport for COGO_LISTENER: `auto` takes notify when pushes arrive, else poll."""
    if mode == "poll":
        return PollTransport()
    if mode == "notify" or await pushes_arrive(dsn, application):
        return NotifyTransport(dsn, application)
    telemetry.log.warning(
        telemetry.line(
            "listener.deaf",
            why="LISTEN does not work through this connection; is it a pooler in transaction mode?",
            hint="use the session port (5432 on Supabase), or set COGO_LISTENER=poll to silence this",
        )
    )
    return PollTransport()
