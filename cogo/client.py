"""For programs that use the bus without being a role, and for those that run one.

`connect` gives a Bus; `enqueue` works inside the caller's own transaction; `serve` is what
`cogo serve` calls.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from .core import bus as _bus
from .core import listener as _listener
from .core.bus import Bus
from .core.db import Database
from .core.embedded import running_dsn
from .core.listener import Listener
from .core.model import Role, RoutingKey
from .core.settings import Loaded, Secret, Settings, load

if TYPE_CHECKING:
    import psycopg

    from .core.runtime import Runtime


def find_dsn(settings: Settings) -> str:
    """DATABASE_URL, else the embedded server that runs here. Raises NoServer."""
    return settings.database_url.reveal() if settings.database_url else running_dsn(settings)


@asynccontextmanager
async def connect(dsn: str | None = None, *, settings: Settings | None = None) -> AsyncIterator[Bus]:
    """A Bus on `dsn`, DATABASE_URL or the running embedded server. Raises NoServer, BusUnavailable."""
    settings = settings or load().settings
    application = f"cogo:client@{os.getpid()}"
    found = dsn or find_dsn(settings)
    transport: _listener.Transport = (
        _listener.PollTransport()
        if settings.listener == "poll"
        else _listener.NotifyTransport(found, application)
    )
    listener = Listener(transport)
    db = Database(found, application=application, pool_max=settings.pool_max)
    await db.open()
    try:
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.run)
            try:
                yield Bus(db, listener)
            except Exception as error:  # noqa: BLE001 (raised again below: the group would wrap it)
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        with anyio.CancelScope(shield=True):
            await db.close()


class SyncBus:
    """The methods of Bus for programs without an event loop; each call blocks until it is done."""

    def __init__(self, portal: Any, bus: Bus) -> None:
        self._portal = portal
        self._bus = bus

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._bus, name)
        if not inspect.iscoroutinefunction(method):
            raise AttributeError(f"{name} needs an event loop: use cogo.connect()")

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._portal.call(lambda: method(*args, **kwargs))

        return call


@contextmanager
def connect_sync(dsn: str | None = None) -> Iterator[SyncBus]:
    """Like connect, for the rest of the world: `with cogo.connect_sync() as bus: bus.enqueue(…)`."""
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(connect(dsn)) as bus:
        yield SyncBus(portal, bus)


async def enqueue(
    conn: psycopg.AsyncConnection[Any], key: str | RoutingKey, payload: Any, **options: Any
) -> int:
    """Insert one message on the caller's own psycopg connection, inside its transaction.

    Options: idempotency_key, traceparent, ttl_ms, priority, ordering_key. Returns the id. Raises
    IdempotencyConflict, RoutingInvalid, ResultInvalid.
    """
    return (await _bus.enqueue(conn, key, payload, **options))[0]


async def serve(
    *,
    roles: Sequence[Role | str] = (),
    dsn: str | None = None,
    loaded: Loaded | None = None,
    migrate: bool = False,
    stop: anyio.Event | None = None,
    signals: bool = False,
    ready: Callable[[Runtime], None] = lambda _: None,
) -> None:
    """Run roles in this process until `stop` is set: several roles, one listener, one lease.

    `roles` are Role objects, or names of installed plugins; without any the settings (`loaded`, or
    plugins.toml and the environment) decide. A TCP port opens only when an enabled role brings
    routes or the port was given by a flag. `signals`: the process is ours, so SIGTERM and SIGINT end it
    too, and the garbage collector looks rarely.
    """
    from .core import runtime
    from .http.service import HttpService

    loaded = loaded or load()
    settings = loaded.settings
    if dsn is not None:
        settings = msgspec.structs.replace(settings, database_url=Secret(dsn))
    if roles:  # what the caller names is all there is, whatever plugins.toml says
        names = tuple(role for role in roles if isinstance(role, str))
        settings = msgspec.structs.replace(settings, roles=names)
    inline = [role for role in roles if isinstance(role, Role)]
    http = HttpService(always=loaded.origins["port"] == "flag")
    await runtime.run(
        settings, inline=inline, upgrade=migrate, services=[http], stop=stop, signals=signals, ready=ready
    )
