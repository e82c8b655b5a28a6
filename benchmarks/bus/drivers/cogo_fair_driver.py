"""COGO with many tenants on one fair lane: message n belongs to `tenants[n % len(tenants)]`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import anyio

import cogo
import cogo_driver
from protocol import Payload, Seen, main


class Driver(cogo_driver.Driver):
    """The same doors; the handler takes its time, so that slots are what tenants compete for."""

    def _key(self, number: int) -> str:
        tenants = self.options["tenants"]
        return f"{cogo_driver.KEY}@{tenants[number % len(tenants)]}"

    async def many(self, payloads: Sequence[Payload]) -> None:
        groups: dict[str, list[Payload]] = {}
        for payload in payloads:
            groups.setdefault(self._key(payload["n"]), []).append(payload)
        for key, group in groups.items():
            await self._bus.enqueue_many(key, group)

    async def one(self, payload: Payload) -> None:
        await self._bus.enqueue(self._key(payload["n"]), payload)

    async def work(self, dsn: str, seen: Seen, ready: Callable[[], None], stop: asyncio.Event) -> None:
        async def handle(task: Any, _ctx: cogo.Context) -> None:
            seen(task["n"])
            await anyio.sleep(self.options["handle_ms"] / 1000)

        role = cogo.Role(
            service="bench", role="noop", handle=handle, events="bench",
            concurrency=self.options["concurrency"], fair=True,
        )  # fmt: skip
        await self.serve(role, dsn, ready, stop)


if __name__ == "__main__":
    main(Driver(), silent=logging.INFO)
