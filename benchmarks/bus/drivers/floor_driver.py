"""The floor of pickup: a bare psycopg loop of LISTEN and claim, and an INSERT that notifies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from protocol import Payload, Seen, main

SCHEMA = """
CREATE TABLE job (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n integer, status text DEFAULT 'queued');
CREATE INDEX job_ready ON job (id) WHERE status = 'queued';
"""
INSERT = "WITH i AS (INSERT INTO job (n) VALUES (%s)) SELECT pg_notify('floor', '')"
CLAIM = """
UPDATE job SET status = 'claimed' WHERE id IN (
  SELECT id FROM job WHERE status = 'queued' ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED)
RETURNING n
"""


class Driver:
    """No policy, no completion: what a wakeup and a claim cost at least."""

    def __init__(self) -> None:
        self._conn: Any = None

    async def setup(self, dsn: str, *, waking: bool) -> None:
        del waking
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute(SCHEMA)

    async def open(self, dsn: str) -> None:
        self._conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True)

    async def close(self) -> None:
        await self._conn.close()

    async def many(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            await self.one(payload)

    async def one(self, payload: Payload) -> None:
        await self._conn.execute(INSERT, (payload["n"],), prepare=True)

    async def work(self, dsn: str, seen: Seen, ready: Callable[[], None], stop: asyncio.Event) -> None:
        listening = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        claiming = await psycopg.AsyncConnection.connect(dsn, autocommit=True)

        async def serve() -> None:
            await listening.execute("LISTEN floor")
            await claiming.execute(CLAIM, prepare=True)
            ready()
            async for _ in listening.notifies():
                for (n,) in await (await claiming.execute(CLAIM, prepare=True)).fetchall():
                    seen(n)

        serving = asyncio.ensure_future(serve())
        await stop.wait()
        serving.cancel()


if __name__ == "__main__":
    main(Driver())
