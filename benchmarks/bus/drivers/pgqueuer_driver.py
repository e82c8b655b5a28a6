"""PgQueuer over asyncpg (its benchmark page: about twice as fast as psycopg)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job  # noqa: TC002 (PgQueuer resolves the annotation)
from pgqueuer.queries import Queries

from protocol import Payload, Seen, main

ENTRYPOINT = "noop"
BATCH = 100


class Driver:
    """Durability `balanced`: the queue is logged, the log of what is done is not."""

    def __init__(self) -> None:
        self._free: list[Queries] = []

    async def setup(self, dsn: str, *, waking: bool) -> None:
        del waking
        os.environ["PGQUEUER_DURABILITY"] = "balanced"
        await Queries(AsyncpgDriver(await asyncpg.connect(dsn))).install()

    async def open(self, dsn: str) -> None:
        # Not AsyncpgPoolDriver: asyncpg's pool resets a connection after each use, one more round trip.
        self._free = [Queries(AsyncpgDriver(await asyncpg.connect(dsn))) for _ in range(8)]

    async def close(self) -> None:
        """The end of the process closes them."""

    @contextmanager
    def _queries(self) -> Iterator[Queries]:
        queries = self._free.pop()
        yield queries
        self._free.append(queries)

    async def many(self, payloads: Sequence[Payload]) -> None:
        texts = [b"%d" % payload["n"] for payload in payloads]
        with self._queries() as queries:
            await queries.enqueue([ENTRYPOINT] * len(texts), texts, [0] * len(texts))

    async def one(self, payload: Payload) -> None:
        with self._queries() as queries:
            await queries.enqueue(ENTRYPOINT, b"%d" % payload["n"])

    async def work(self, dsn: str, seen: Seen, ready: Callable[[], None], stop: asyncio.Event) -> None:
        manager = PgQueuer(AsyncpgDriver(await asyncpg.connect(dsn)))

        @manager.entrypoint(ENTRYPOINT)
        async def handle(job: Job) -> None:
            seen(int(job.payload))

        running = asyncio.ensure_future(manager.run(batch_size=BATCH))
        ready()
        await stop.wait()
        manager.shutdown.set()
        await running


if __name__ == "__main__":
    main(Driver())
