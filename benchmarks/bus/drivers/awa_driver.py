"""awa-pg: queue storage, COPY enqueue, claimers on one hot queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import awa

from protocol import Payload, Seen, main

QUEUE = "noop"
WORKERS = 1024
CLAIMERS = 1
BATCH = 512
POOL = 24


@dataclass
class Noop:
    """The job's arguments, as awa wants them: a dataclass of its own."""

    n: int


class Driver:
    """Its engine is in Rust; the handler is Python, like everybody's here."""

    def __init__(self) -> None:
        self._client: Any = None

    async def setup(self, dsn: str, *, waking: bool) -> None:
        del waking
        await awa.migrate(dsn)
        client = awa.AsyncClient(dsn)
        await client.install_queue_storage()
        await client.close()

    async def open(self, dsn: str) -> None:
        self._client = awa.AsyncClient(dsn, max_connections=POOL)

    async def close(self) -> None:
        await self._client.close()

    async def many(self, payloads: Sequence[Payload]) -> None:
        await self._client.enqueue_many_copy([Noop(**payload) for payload in payloads], queue=QUEUE)

    async def one(self, payload: Payload) -> None:
        await self._client.insert(Noop(**payload), queue=QUEUE)

    async def work(self, dsn: str, seen: Seen, ready: Callable[[], None], stop: asyncio.Event) -> None:
        client = awa.AsyncClient(dsn, max_connections=POOL)

        @client.task(Noop, queue=QUEUE)
        async def handle(job: Any) -> None:
            seen(job.args.n)

        await client.start(
            [{"name": QUEUE, "max_workers": WORKERS, "claimers": CLAIMERS, "claim_batch_size": BATCH}],
            poll_interval_ms=50,
        )
        ready()
        await stop.wait()
        await client.shutdown()
        await client.close()


if __name__ == "__main__":
    main(Driver())
