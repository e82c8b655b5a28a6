"""A process with HTTP on a fresh database, for each test that asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from http_hands import Served, serving

Serve = Callable[..., Any]


@pytest.fixture
async def serve(dsn: str, tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts a process with the roles and settings that it is called with."""
    async with AsyncExitStack() as stack:

        async def start(roles: list[Any], **changes: Any) -> Served:
            return await stack.enter_async_context(serving(dsn, tmp_path / "home", roles, **changes))

        yield start


@pytest.fixture
async def served(serve: Serve) -> Served:
    """The ingress, orchestrator routes and metrics, without a consumer that would move messages along."""
    return await serve(["ingress", "metrics"], ingress_public_tenants="demo")
