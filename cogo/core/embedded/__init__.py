"""The embedded Postgres: one process owns the server, the others of the same data home share it.

The owner holds a lock whose descriptor every process of the server inherits, so the lock is free
exactly when nothing of that server runs any more. Whoever then takes it starts the server again on
the same socket: that is how a dead server is restarted and how a dead owner is replaced.
Why it is built so: docs/adr/0003-embedded-postgres.md.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import anyio.to_thread

from cogo.core.errors import CogoError, DataHomeForeign, EmbeddedFailed, NoServer
from cogo.core.settings import Settings, make_data_home

from .home import Home
from .server import Server, initdb, prepare

__all__ = ["Embedded", "own_or_share", "running_dsn"]

log = logging.getLogger("cogo.embedded")

SHARE_S: Final = 120.0
"""How long a sharer waits for the owner's server; only recovery after a crash comes near it."""
RETRY_S: Final = 0.3
RETRY_MAX_S: Final = 10.0
STEADY_S: Final = 10.0
"""A server that lived this long is not in a crash loop."""


class Embedded:
    """This process's part in the embedded Postgres; made by `own_or_share`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._home = Home(settings.data_dir.absolute())
        self._lock: int | None = None
        self._server: Server | None = None

    @property
    def dsn(self) -> str:
        """Where to connect: over the unix socket, as the superuser `cogo`, to the database `postgres`."""
        return self._home.dsn

    @property
    def owner(self) -> bool:
        """Whether the server is a child of this process."""
        return self._server is not None

    async def watch(self) -> None:
        """Keep a server running for ever: restart ours when it dies, replace an owner that is gone.

        Runs in the process's task group. The lock is tried every 0.3 s; a start that fails, or a
        server that dies young, doubles that to 10 s at most, and another process may be first.
        """
        wait_s = RETRY_S
        while True:
            await anyio.sleep(wait_s)
            if self._server is not None:
                steady = self._server.age_s > STEADY_S
                wait_s = RETRY_S if steady else wait_s
                if self._server.running:
                    continue
                wait_s = wait_s if steady else min(2 * wait_s, RETRY_MAX_S)
                log.error("the embedded postgres died: %s", self._server.last_words())
                # Our descriptor goes too: then the lock frees when the last backend is gone, not before.
                await self._leave()
            try:
                if self._take_lock():
                    await self._start()
                    log.warning("this process (pid %d) now owns the embedded postgres", os.getpid())
            except CogoError as error:
                log.error("%s", error.line())  # noqa: TRY400 (the code says more than a traceback)
                await self._leave()
                wait_s = min(2 * wait_s, RETRY_MAX_S)

    async def _join(self) -> None:
        """Return when a server is ready: one that runs already, or ours."""
        with anyio.move_on_after(SHARE_S):
            while not self._take_lock():
                if self._home.ready():
                    return
                await anyio.sleep(0.02)
        if self._lock is None:
            raise EmbeddedFailed(
                f"the server of {self._home.path} was not ready in {SHARE_S:.0f} s; "
                f"its owner is the process {self._home.owner_pid()}"
            )
        await self._start()

    def _take_lock(self) -> bool:
        try:
            self._lock = self._home.try_lock()
        except OSError as error:
            raise EmbeddedFailed(f"the lock of {self._home.path} can't be taken: {error}") from error
        return self._lock is not None

    async def _start(self) -> None:
        """Start the server; we hold the lock. What is left half-started, `_leave` clears away."""
        lock = self._lock
        assert lock is not None
        try:
            means = await anyio.to_thread.run_sync(prepare, self._home, self._settings)
            if not self._home.has_cluster():
                await initdb(self._home, means, lock)
            self._server = Server(self._home, means, lock)
            await self._server.ready()
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedFailed(f"the embedded postgres can't be started: {error}") from error

    async def _leave(self) -> None:
        """Stop the server if it is ours, and free the lock; cancellation waits for it."""
        with anyio.CancelScope(shield=True):
            if self._server is not None:
                await self._server.stop()
                self._home.tidy()
        self._server = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@asynccontextmanager
async def own_or_share(settings: Settings) -> AsyncIterator[Embedded]:
    """A running Postgres for the data home of these settings: ours, or the one of another process.

    Makes the data home and the cluster when they don't exist. On exit an owner stops the server;
    processes that share it take over in their `watch()`. Enter it on the main thread: where Linux
    ends the server with the process, it ends it with the thread that started it.
    Raises NoPostgres, EmbeddedFailed, DataHomeForeign, DataHomeVersion, InvalidSetting.
    """
    make_data_home(settings)
    embedded = Embedded(settings)
    try:
        await embedded._join()  # noqa: SLF001 (the only door into the class)
        yield embedded
    finally:
        await embedded._leave()  # noqa: SLF001


def running_dsn(settings: Settings) -> str:
    """The DSN of the embedded server that runs on this data home; nothing is started or made.

    Raises NoServer, DataHomeForeign.
    """
    home = Home(settings.data_dir.absolute())
    owner = home.owner_uid()
    if owner is not None and owner != os.geteuid():
        raise DataHomeForeign(f"{home.path} belongs to uid {owner}, this process runs as uid {os.geteuid()}")
    if not home.ready():
        raise NoServer(f"no server runs on the data home {home.path}, and no DATABASE_URL is set")
    return home.dsn
