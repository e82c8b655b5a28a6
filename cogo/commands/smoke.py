"""Quick checks of a running installation."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import anyio
import click

from cogo.commands.base import command, duration, emit, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cogo.core.bus import Bus
    from cogo.core.runtime import Runtime

LANE = ("smoke", "notify")
SETTLE_S = 1.5
"""After so long a consumer has gone from short polls to sleep, so that only a wakeup can be quick."""
LATE_MS = 1_000.0


@click.group()
def smoke() -> None:
    """Quick checks of a running installation."""


@command(
    "bus:notify",
    group=smoke,
    example="cogo smoke bus:notify\nDATABASE_URL=… cogo smoke bus:notify -n 50 --json",
)
@click.option(
    "-n", "count", type=click.IntRange(1, 1000), default=10, show_default=True, help="Messages to send."
)
async def bus_notify(*, count: int, as_json: bool) -> int:
    """Send messages and see that a wakeup brings them, not a poll.

    Serves the lane smoke/notify in this process for a moment, lets it fall asleep, and times each message
    from before its insert to the start of its handler. Exit code 1 when one came late, as it does behind
    a pooler that swallows LISTEN.
    """
    import cogo
    from cogo.commands.local import database_dsn
    from cogo.core.settings import load

    loaded = load(flags={"holder": f"smoke-{os.getpid()}"})
    dsn = database_dsn(loaded.settings)
    begun: dict[int, float] = {}
    stop, ready = anyio.Event(), anyio.Event()
    found: list[Runtime] = []

    async def handle(task: dict[str, Any], ctx: Any) -> int:
        begun[ctx.message_id] = time.monotonic()
        return int(task["n"])

    def note(runtime: Runtime) -> None:
        found.append(runtime)
        ready.set()

    async def serve() -> None:
        await cogo.serve(
            roles=[cogo.Role(*LANE, handle=handle)], dsn=dsn, loaded=loaded, stop=stop, ready=note
        )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await ready.wait()
        mode = found[0].health().listener_mode
        await anyio.sleep(SETTLE_S)
        times = await send_all(found[0].bus, begun, count)
        stop.set()
    return show(mode, times, as_json=as_json)


async def send_all(bus: Bus, begun: dict[int, float], count: int) -> list[float]:
    """Milliseconds from before each insert to the start of its handler, one message at a time."""
    times = []
    for n in range(count):
        sent = time.monotonic()
        id = await bus.enqueue("/".join(LANE), {"n": n})
        await bus.result(id, timeout_s=30.0)
        times.append((begun[id] - sent) * 1000)
    return sorted(times)


def show(mode: str, times: Sequence[float], *, as_json: bool) -> int:
    middle, last = times[len(times) // 2], times[-1]
    passed = mode != "poll" and last < LATE_MS
    facts = {
        "ok": passed,
        "listener": mode,
        "messages": len(times),
        "p50_ms": round(middle, 2),
        "max_ms": round(last, 2),
    }
    if as_json:
        emit(facts)
    else:
        say(f"listener {mode}: {len(times)} messages, p50 {duration(middle)}, slowest {duration(last)}")
        say("ok: wakeups arrive" if passed else "FAILED: messages wait for a poll; see `cogo doctor`")
    return 0 if passed else 1
