"""What a driver does for the benchmark, the same for everybody: `driver.py VERB DSN OPTIONS`.

A driver brings the peer's own calls (Peer); this file brings the load and the clock. Answers are JSON
objects, one a line, on stdout; times are CLOCK_MONOTONIC in nanoseconds, which all processes share.
protocol.mjs says the same in JavaScript (but for `offer`, which only COGO is asked for). Nothing but the
standard library and uvloop: each peer has its own environment.

    setup      {waking}                      make the peer's schema
    enqueue    {count, batch, first}         bulk, one batch after the other; numbers from `first` (0) on
    single     {count, in_flight}            one job a call, so many at the same time
    pace       {count, min_ms, max_ms}       one job a call, at random intervals
    offer      {rate, seconds}               a steady rate in bulks, 100 a second
    work       {total}                       a worker until stdin ends; tells of the first and last start
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

Payload = dict[str, int]


class Peer(Protocol):
    """The calls that differ. Payloads are {"n": number}; a handler passes that number to `seen`."""

    options: dict[str, Any]
    """The verb's, set before any call."""

    async def setup(self, dsn: str, *, waking: bool) -> None:
        """Make the schema; `waking`: for a measurement in which a worker waits for jobs."""

    async def open(self, dsn: str) -> None:
        """Connect as a producer."""

    async def close(self) -> None: ...

    async def many(self, payloads: Sequence[Payload]) -> None: ...

    async def one(self, payload: Payload) -> None: ...

    async def work(self, dsn: str, seen: Seen, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Run a worker until `stop`; call `ready` when it waits for jobs."""


class Seen:
    """Notes the start of every handler: called with the job's number as a handler's first act."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.starts: list[tuple[int, int]] = []

    def __call__(self, number: int) -> None:
        self.starts.append((number, time.monotonic_ns()))
        if len(self.starts) == self.total:
            say(event="all")


def say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def enqueue(peer: Peer, options: dict[str, Any]) -> None:
    first = options.get("first", 0)
    numbers = iter(range(first, first + options["count"]))
    batches = list(iter(lambda: [{"n": n} for n in itertools.islice(numbers, options["batch"])], []))
    started = time.monotonic_ns()
    for batch in batches:
        await peer.many(batch)
    say(event="end", started=started, ended=time.monotonic_ns())


async def single(peer: Peer, options: dict[str, Any]) -> None:
    numbers = iter(range(options["count"]))

    async def caller() -> None:
        for n in numbers:
            await peer.one({"n": n})

    started = time.monotonic_ns()
    await asyncio.gather(*(caller() for _ in range(options["in_flight"])))
    say(event="end", started=started, ended=time.monotonic_ns())


async def pace(peer: Peer, options: dict[str, Any]) -> None:
    chance = random.Random(1)
    sent = []
    for n in range(options["count"]):
        await asyncio.sleep(chance.uniform(options["min_ms"], options["max_ms"]) / 1000)
        called = time.monotonic_ns()
        await peer.one({"n": n})
        sent.append((n, called, time.monotonic_ns()))
    say(event="end", sent=sent)


async def offer(peer: Peer, options: dict[str, Any]) -> None:
    each, ticks = options["rate"] // 100, options["seconds"] * 100
    started, latest = time.monotonic(), 0.0
    for tick in range(ticks):
        due = started + tick / 100
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        latest = max(latest, time.monotonic() - due)
        await peer.many([{"n": tick * each + k} for k in range(each)])
    say(event="end", count=each * ticks, started=int(started * 1e9), ended=time.monotonic_ns(), late_s=latest)


async def work(peer: Peer, dsn: str, options: dict[str, Any]) -> None:
    seen, stop, loop = Seen(options["total"]), asyncio.Event(), asyncio.get_running_loop()

    def wait_for_the_end_of_stdin() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait_for_the_end_of_stdin, daemon=True).start()
    await peer.work(dsn, seen, lambda: say(event="ready"), stop)
    say(event="end", starts=seen.starts)


VERBS: dict[str, Callable[[Peer, dict[str, Any]], Awaitable[None]]] = {
    "enqueue": enqueue,
    "single": single,
    "pace": pace,
    "offer": offer,
}


async def run(peer: Peer, verb: str, dsn: str, options: dict[str, Any]) -> None:
    peer.options = options
    if verb == "setup":
        await peer.setup(dsn, waking=options["waking"])
        say(event="end")
    elif verb == "work":
        await work(peer, dsn, options)
    else:
        await peer.open(dsn)
        await VERBS[verb](peer, options)
        await peer.close()


def main(peer: Peer, *, silent: int = logging.WARNING) -> None:
    """The driver's whole main: everybody in Python gets uvloop, and no log up to the level `silent`."""
    import uvloop

    logging.disable(silent)
    uvloop.run(run(peer, sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
