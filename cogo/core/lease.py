"""The lease of this process: until when its claims stand.

The database issues the epoch and keeps the time. Locally a monotonic deadline, counted from before
the last accepted beat was sent, ends earlier than the lease itself: a process that was cut off stops
its handlers before anybody else may take their messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import psycopg

from . import telemetry
from .db import connect, json, translated
from .errors import BusUnavailable

LOCAL_SHARE = 0.65
"""The local deadline as a part of the lease: 13 s of 20 s."""


class Lease:
    """Registers the process and beats until it is cancelled."""

    def __init__(
        self, dsn: str, application: str, *, holder: str, roles: Sequence[str], lanes: Sequence[str],
        beat_ms: int, lease_ms: int, detail: dict[str, Any],
    ) -> None:  # fmt: skip
        self._dsn = dsn
        self._application = application
        self._about = (holder, list(roles), list(lanes))
        self._detail = detail
        self.holder = holder
        self.beat_s = beat_ms / 1000
        self.lease_ms = lease_ms
        self.epoch = 0
        self.deadline = 0.0
        """Monotonic seconds; past it this process must not act on its claims."""
        self.on_lost: Callable[[], None] = lambda: None
        self._lost = 0
        self._left = False
        self._turn = anyio.Lock()
        self._conn: psycopg.AsyncConnection[Any] | None = None

    @property
    def stands(self) -> bool:
        return time.monotonic() < self.deadline

    @property
    def term(self) -> tuple[int, int]:
        """Another value each time the lease began anew: what was built on the old one may be gone."""
        return self.epoch, self._lost

    async def register(self) -> None:
        """Take an epoch from the database. The same HOLDER_ID twice is legal, with a warning."""
        sent = time.monotonic()
        conn = await self._connection()
        holder, roles, lanes = self._about
        with translated(), anyio.fail_after(10):
            cursor = await conn.execute(
                "SELECT epoch, twins FROM cogo.register_holder(%s, %s, %s, %s, %s)",
                (holder, roles, lanes, json(self._detail), self.lease_ms),
            )
            row = await cursor.fetchone()
        if row is None:
            raise BusUnavailable("no epoch was issued")
        self.epoch = row[0]
        self._accept(sent)
        if row[1]:
            telemetry.log.warning(telemetry.line("holder.twin", holder=holder, others=row[1],
                hint="two live processes share a HOLDER_ID: legal, but logs are harder to read"))  # fmt: skip

    async def run(self) -> None:
        """Beat until leave(). When the local deadline passes, `on_lost` is called, once per loss."""
        try:
            await self._beat_on()
        finally:
            await self._drop_connection()

    async def _beat_on(self) -> None:
        outage = telemetry.Outage("lease")
        lost = False
        while not self._left:
            await anyio.sleep(min(0.5 if outage.on else self.beat_s, self._left_s()))
            # Before the beat too: after a stop of the whole process the first beat succeeds, but
            # others may have taken the messages in between.
            lost = self._note_loss(lost)
            sent = time.monotonic()
            try:
                await self._beat()
            except (BusUnavailable, TimeoutError, psycopg.Error) as error:
                outage.begin(error)
                await self._drop_connection()
                lost = self._note_loss(lost)
            else:
                outage.end()
                self._accept(sent)
                lost = False

    def _left_s(self) -> float:
        """Seconds until the local deadline; once that has passed, half a second."""
        left_s = self.deadline - time.monotonic()
        return left_s if left_s > 0 else 0.5

    def _note_loss(self, lost: bool) -> bool:
        if not lost and not self.stands:
            self._lost += 1
            self.on_lost()
            return True
        return lost

    async def leave(self) -> None:
        """End the lease now, so that what is left is taken up at once; best effort."""
        self._left = True  # a beat after this would keep the claims of a process that is gone
        self.deadline = 0.0
        try:
            with anyio.move_on_after(2.0, shield=True), translated():
                async with self._turn:
                    await (await self._connection()).execute("SELECT cogo.leave(%s)", (self.epoch,))
        except (BusUnavailable, psycopg.Error):
            pass  # it ends by itself
        await self._drop_connection()

    async def _beat(self) -> None:
        # While the lease stands no longer than it does, so that a loss is noticed in time.
        within_s = min(self.beat_s, self._left_s()) if self.stands else self.beat_s
        with anyio.fail_after(within_s), translated():
            async with self._turn:
                if self._left:
                    return
                conn = await self._connection()
                cursor = await conn.execute("SELECT cogo.beat(%s, %s)", (self.epoch, self.lease_ms))
                row = await cursor.fetchone()
        if row is None or not row[0]:  # the holder row was deleted, and with it every claim of this epoch
            self.deadline = 0.0
            self._note_loss(lost=False)
            await self.register()

    def _accept(self, sent: float) -> None:
        self.deadline = 0.0 if self._left else sent + self.lease_ms / 1000 * LOCAL_SHARE

    async def _connection(self) -> psycopg.AsyncConnection[Any]:
        if self._conn is None or self._conn.closed:
            self._conn = await connect(self._dsn, self._application)
        return self._conn

    async def _drop_connection(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                await conn.close()
