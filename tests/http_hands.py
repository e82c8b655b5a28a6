"""Helpers of the HTTP tests: a real process with HTTP, and clients for each kind of caller."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
from hands import fast_settings

import cogo
from cogo.core.runtime import Runtime
from cogo.core.settings import Settings
from cogo.http.tokens import AccessRole, mint_token


class Served(msgspec.Struct):
    """A running process, its address, and clients."""

    runtime: Runtime
    url: str
    tokens: Settings
    """The settings that know the keys."""

    def client(self, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=20)

    def as_(self, role: AccessRole, *tenants: str) -> httpx.AsyncClient:
        """A client with a token of this role."""
        token = mint_token(self.tokens, tenants, role, 600, subject=f"{role}@test")
        return self.client(authorization=f"Bearer {token}")

    async def rows(self) -> int:
        return int(await self.runtime.db.fetch_value("SELECT count(*) FROM public.agent_messages"))


@asynccontextmanager
async def serving(
    dsn: str, home: Path, roles: list[Any], *, plugins: dict[str, Any] | None = None, **changes: Any
) -> AsyncIterator[Served]:
    """`cogo.serve` with these roles and tables of plugins, on a free port, in this test's own loop."""
    stop, ready = anyio.Event(), anyio.Event()
    found: list[Runtime] = []

    def note(runtime: Runtime) -> None:
        found.append(runtime)
        ready.set()

    loaded = fast_settings(data_dir=home, **({"port": 0} | changes))
    loaded.settings.plugins.update(plugins or {})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(cogo.serve, roles=roles, dsn=dsn, loaded=loaded, stop=stop, ready=note))
        await ready.wait()
        about = msgspec.json.decode((home / "servers" / f"{os.getpid()}.json").read_bytes())
        try:
            yield Served(found[0], about["url"], found[0].settings)
        finally:
            stop.set()
