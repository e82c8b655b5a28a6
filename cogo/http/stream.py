"""Server-sent events of one message: its chunks as they are written, then how it ended."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream

from cogo.core.errors import BusUnavailable
from cogo.core.model import Result

from . import queries

if TYPE_CHECKING:
    from cogo.core.bus import Bus

HEARTBEAT_S = 15.0
LIFE_S = 600.0
"""Seconds after which a stream ends and the client resumes: a lost client must not be kept for ever."""
RETRY_MS = 1_000

_NOT_A_NAME = re.compile(r"[^\w.:-]")

Shape = Callable[[Result], dict[str, Any]]


def event(kind: str, data: bytes, number: int | str | None = None) -> bytes:
    """One event; `data` is JSON on one line."""
    head = b"" if number is None else f"id: {number}\n".encode()
    return head + f"event: {_NOT_A_NAME.sub('_', kind)[:60]}\ndata: ".encode() + data + b"\n\n"


def stream(bus: Bus, message: int, after: int, stop: anyio.Event, shape: Shape) -> Stream:
    """The response that follows `message` from chunk `after` on."""
    events = _events(bus, message, after, stop, shape)
    return Stream(
        events,
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        # When the client leaves, the loop over the generator is cancelled but the generator is not
        # closed: this ends it here, in the request, and not in the garbage collector.
        background=BackgroundTask(events.aclose),
    )


async def _events(
    bus: Bus, message: int, after: int, stop: anyio.Event, shape: Shape
) -> AsyncGenerator[bytes, None]:
    """The stream's bytes. It just ends when its life is over, the process stops or the database is
    away: a client of server-sent events comes back by itself, with the last number that it saw.
    """
    yield f"retry: {RETRY_MS}\n\n".encode()
    until = anyio.current_time() + LIFE_S
    beat_at = anyio.current_time() + HEARTBEAT_S
    with contextlib.suppress(BusUnavailable):
        async with bus.watching(message, LIFE_S) as changed:
            while anyio.current_time() < until and not stop.is_set():
                now = await bus.peek(message)  # read before the chunks: none can come after the end
                rows = await bus.db.fetch(queries.CHUNKS, {"id": message, "after": after})
                for row in rows:
                    after = row["n"]
                    yield event(row["kind"], row["data"].encode(), after)
                if now.terminal and not rows:
                    yield event("outcome", msgspec.json.encode(shape(now)), "end")
                    return
                if not rows and await _next_beat(changed, stop, beat_at):
                    yield b": still here\n\n"
                    beat_at = anyio.current_time() + HEARTBEAT_S


async def _next_beat(changed: Callable[[], Any], stop: anyio.Event, beat_at: float) -> bool:
    """Wait for a change, the stop or the time of the heartbeat; True when it is time for that."""
    async with anyio.create_task_group() as tasks:

        async def first(wait: Callable[[], Any]) -> None:
            await wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(first, changed)
        tasks.start_soon(first, stop.wait)
    return anyio.current_time() >= beat_at
