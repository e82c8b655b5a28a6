"""COGO through its public doors: `cogo.connect`, `bus.enqueue(_many)`, `cogo.serve` with a Role."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio

import cogo
from cogo.core import migrate, telemetry
from cogo.core.settings import load
from protocol import Payload, Seen, main

KEY = "bench/noop"


class Driver:
    """As it ships: the lane's audit event of each message is written, its row is kept."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self._connected: Any = None
        self._bus: Any = None

    async def setup(self, dsn: str, *, waking: bool) -> None:
        del waking
        await migrate.apply(dsn)

    async def open(self, dsn: str) -> None:
        self._connected = cogo.connect(dsn)
        self._bus = await self._connected.__aenter__()

    async def close(self) -> None:
        await self._connected.__aexit__(None, None, None)

    async def many(self, payloads: Sequence[Payload]) -> None:
        await self._bus.enqueue_many(KEY, payloads)

    async def one(self, payload: Payload) -> None:
        await self._bus.enqueue(KEY, payload)

    async def work(self, dsn: str, seen: Seen, ready: Callable[[], None], stop: asyncio.Event) -> None:
        pause_s = self.options.get("handle_ms", 0) / 1000
        numbers = range(self.options.get("sum_to", 0))

        async def handle(task: Any, _ctx: cogo.Context) -> None:
            seen(task["n"])
            sum(numbers)
            if pause_s:
                await anyio.sleep(pause_s)

        role = cogo.Role(
            service="bench", role="noop", handle=handle, events="bench",
            concurrency=self.options.get("concurrency", 2000),
        )  # fmt: skip
        await self.serve(role, dsn, ready, stop)

    async def serve(self, role: cogo.Role, dsn: str, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """As `cogo serve` runs it, with log level warning; nothing but this role."""
        with tempfile.TemporaryDirectory() as home:
            loaded = load(flags={"data_dir": Path(home), "log_level": "warning"}, environ={})
            telemetry.configure(loaded.settings.log_level)
            ended = anyio.Event()

            async def end() -> None:
                await stop.wait()
                ended.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(end)
                await cogo.serve(
                    roles=[role], dsn=dsn, loaded=loaded, stop=ended, signals=True, ready=lambda _: ready()
                )


if __name__ == "__main__":
    main(Driver(), silent=logging.INFO)
