"""Oban for Python (the open-source part): one queue with a high limit, its psycopg pool, its notifier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from oban import Oban, worker
from oban.schema import install
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg_pool import AsyncConnectionPool

from protocol import Payload, Seen, main

LIMIT = 200
POOL = 10


def connected(dsn: str) -> AsyncConnectionPool:
    """As `oban start` makes it: its default size, JSON by orjson."""
    set_json_dumps(orjson.dumps)
    set_json_loads(orjson.loads)
    return AsyncConnectionPool(dsn, min_size=POOL, max_size=POOL, open=False)


class Driver:
    """Its producer acknowledges one by one in a transaction, and claims up to the limit."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._oban: Any = None
        self._seen: Callable[[int], None] = lambda _: None
        driver = self

        @worker(queue="default")
        class Noop:
            async def process(self, job: Any) -> None:
                driver._seen(job.args["n"])

        self._worker = Noop

    async def setup(self, dsn: str, *, waking: bool) -> None:
        del waking
        async with connected(dsn) as pool:
            await install(pool)

    async def open(self, dsn: str) -> None:
        self._pool = connected(dsn)
        await self._pool.open(wait=True)
        self._oban = Oban(pool=self._pool)

    async def close(self) -> None:
        await self._pool.close()

    async def many(self, payloads: Sequence[Payload]) -> None:
        await self._oban.enqueue_many([self._worker.new(payload) for payload in payloads])

    async def one(self, payload: Payload) -> None:
        await self._oban.enqueue(self._worker.new(payload))

    async def work(self, dsn: str, seen: Seen, ready: Callable[[], None], stop: asyncio.Event) -> None:
        self._seen = seen
        async with connected(dsn) as pool, Oban(pool=pool, queues={"default": LIMIT}):
            ready()
            await stop.wait()


if __name__ == "__main__":
    main(Driver())
