"""uvicorn inside our own task group: the runtime owns the signals, the sockets and the end.

Two listeners serve one app: TCP when the process has a port, and always a unix socket in the data
home, by which `cogo healthcheck` finds a process whose roles bring no routes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import uvicorn

from cogo.core.errors import PortInUse

from .guarded import Limits, guarded
from .unix import bind_unix, socket_path

if TYPE_CHECKING:
    from anyio.abc import TaskStatus
    from litestar import Litestar

    from cogo.core.runtime import Runtime

log = logging.getLogger("cogo.http")

BACKLOG = 512
KEEP_ALIVE_S = 5


class Bound(msgspec.Struct, frozen=True):
    """Where the process listens; `port` None: only on the unix socket."""

    host: str
    port: int | None
    socket: Path | None


def bind_tcp(host: str, port: int) -> socket.socket:
    """A listening address of our own, so that a taken port is our error. Raises PortInUse (exit 78)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only for sockets that say they are TCP; with it, an answer's
    # body waits 40 ms for the acknowledgement of its headers.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        if exc.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise PortInUse(f"{host}:{port} cannot be listened on: {exc.strerror}") from None
        raise
    sock.setblocking(False)
    return sock


class Server(uvicorn.Server):
    """uvicorn without its signal handlers, its clock of 10 ticks a second and its own end."""

    def __init__(self, config: uvicorn.Config, stop: anyio.Event) -> None:
        super().__init__(config)
        self.stop = stop

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The runtime owns the signals."""
        yield

    async def main_loop(self) -> None:
        """Wait for the end; an idle server does not wake up."""
        await self.stop.wait()
        self.should_exit = True

    def abandon(self) -> None:
        """Let go of everything at once: the task group was cancelled, so there is no grace left."""
        for server in getattr(self, "servers", ()):
            server.close()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()


def _config(app: Any, grace_s: float, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=guarded(limits),
        ws="none",
        lifespan="off",  # entered once by serve_http, for both listeners
        log_config=None,
        log_level="error",  # its warnings are one per malformed request: a stranger could fill the log
        access_log=False,
        server_header=False,
        date_header=False,  # the app writes it (App.__call__)
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(grace_s)),
        backlog=BACKLOG,
    )


async def serve_http(
    runtime: Runtime,
    app: Litestar,
    *,
    host: str = "127.0.0.1",
    port: int | None,
    sock: socket.socket | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    task_status: TaskStatus[Bound] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `runtime.stop`, then let running requests end within the grace.

    `port` None opens no TCP port (0: any free one); `sock` is one that `bind_tcp` made earlier.
    Started with the Bound address. Raises PortInUse.
    """
    settings = runtime.settings
    async with contextlib.AsyncExitStack() as stack:
        tcp = sock if sock is not None else bind_tcp(host, port) if port is not None else None
        listeners = [stack.enter_context(contextlib.closing(tcp))] if tcp else []
        path = socket_path(settings.data_dir, os.getpid())
        if unix := _probe_socket(path):
            stack.callback(path.unlink, missing_ok=True)
            listeners.append(stack.enter_context(contextlib.closing(unix)))
        await stack.enter_async_context(app.lifespan())
        servers = [Server(_config(app, settings.grace_s, limits), runtime.stop) for _ in listeners]
        await stack.enter_async_context(_abandoning(servers))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for server, listener in zip(servers, listeners, strict=True):
            tasks.start_soon(server.serve, [listener])
        bound_port = tcp.getsockname()[1] if tcp else None
        task_status.started(Bound(host=host, port=bound_port, socket=path if unix else None))


def _probe_socket(path: Path) -> socket.socket | None:
    try:
        return bind_unix(path)
    except OSError as exc:  # a read-only or foreign data home: work goes on, only the probe is missing
        log.warning("no probe socket at %s: %s", path, exc.strerror)
        return None


@contextlib.asynccontextmanager
async def _abandoning(servers: list[Server]) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        for server in servers:
            server.abandon()
        raise
