"""Requests that wait: for a message, for the client to leave, for the process to stop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

if TYPE_CHECKING:
    from litestar import Request

    from cogo.core.runtime import Runtime

T = TypeVar("T")


async def unless_over(request: Request[Any, Any, Any], work: Callable[[], Awaitable[T]]) -> T | None:
    """Run `work` until it is done; None if the client left or the process stops before that.

    A server does not cancel a handler whose client has gone: without this a closed browser tab
    would hold its wait, and a stop would wait for every long poll.
    """
    runtime: Runtime = request.app.state.runtime
    outcome: list[T] = []
    failure: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        async def worked() -> None:
            try:
                outcome.append(await work())
            except Exception as exc:  # noqa: BLE001 (raised again below, out of its group)
                failure.append(exc)
            tasks.cancel_scope.cancel()

        async def over(event: Callable[[], Awaitable[Any]]) -> None:
            await event()
            tasks.cancel_scope.cancel()

        tasks.start_soon(worked)
        tasks.start_soon(over, runtime.stop.wait)
        tasks.start_soon(over, lambda: _gone(request))
    if failure:
        raise failure[0]
    return outcome[0] if outcome else None


async def _gone(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
