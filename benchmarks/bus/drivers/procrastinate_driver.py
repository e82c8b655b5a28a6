"""Procrastinate with asynchronous tasks, the psycopg connector and LISTEN/NOTIFY."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from procrastinate import App, PsycopgConnector

from protocol import Payload, Seen, main

CONCURRENCY = 20
POOL = 10


class Driver:
    """Its worker fetches one job a call, so concurrency beyond a few connections changes nothing."""

    def __init__(self) -> None:
        self._app: App | None = None

    def _make(self, dsn: str, handle: Callable[[int], None] = lambda _: None) -> App:
        app = App(connector=PsycopgConnector(conninfo=dsn, min_size=POOL, max_size=POOL))

        async def noop(n: int) -> None:
            handle(n)

        self._task = app.task(name="noop")(noop)
        return app

    async def setup(self, dsn: str, *, waking: bool) -> None:
        del waking
        async with self._make(dsn).open_async() as app:
            await app.schema_manager.apply_schema_async()

    async def open(self, dsn: str) -> None:
        self._app = self._make(dsn)
        await self._app.open_async()

    async def close(self) -> None:
        await self._app.close_async()

    async def many(self, payloads: Sequence[Payload]) -> None:
        await self._task.batch_defer_async(*payloads)

    async def one(self, payload: Payload) -> None:
        await self._task.defer_async(**payload)

    async def work(self, dsn: str, seen: Seen, ready: Callable[[], None], stop: asyncio.Event) -> None:
        async with self._make(dsn, seen).open_async() as app:
            worker = asyncio.ensure_future(
                app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False)
            )
            ready()
            await stop.wait()
            worker.cancel()
            await asyncio.wait([worker])


if __name__ == "__main__":
    main(Driver())
