"""Many callers, one statement: messages that arrive while an insert is under way go together in the next.

An idle process inserts after one turn of the loop. A busy one shares the round trip, the transaction and
the wait for the disk, so eight callers cost little more than one. Each caller still returns only when its
own message is committed, and gets its own error. Messages with an idempotency or an ordering key don't come this way:
they may have to wait for another transaction, and nobody should wait with them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.lowlevel
import psycopg

from .errors import BusUnavailable
from .text import array

if TYPE_CHECKING:
    from .db import Connection, Database

WRITERS = 1
"""Statements under way at the same time. More make batches smaller: with eight callers 1 took 102 us of the
client's time a message, 2 took 134, 4 took 207, and one statement for each message 222."""
MOST = 500
STATEMENT_S = 30.0
LINE_S = 10.0
INSERT = """
INSERT INTO public.agent_messages (service, role, shard, tenant, payload, traceparent, priority, expires_at)
SELECT n.service, n.role, n.shard, n.tenant, n.payload, n.traceparent, n.priority,
       cogo.now() + n.ttl_ms * interval '1 ms'
FROM unnest(%s::text[], %s::text[], %s::integer[], %s::text[], %s::jsonb[], %s::text[], %s::smallint[], %s::bigint[])
  WITH ORDINALITY AS n(service, role, shard, tenant, payload, traceparent, priority, ttl_ms, i)
ORDER BY n.i RETURNING id
"""


class Row(NamedTuple):
    """The columns of one new message."""

    service: str
    role: str
    shard: int
    tenant: str
    payload: str
    traceparent: str
    priority: int
    ttl_ms: int | None


class _Slip:
    """One caller's place in the line."""

    __slots__ = ("error", "event", "id", "leads", "row")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.id = 0
        self.error: BaseException | None = None
        self.leads = False
        self.event = anyio.Event()


class Inlet:
    """One per bus. The caller that finds no statement under way sends what is waiting, for all."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: deque[_Slip] = deque()
        self._writing = 0

    async def put(self, row: Row) -> int:
        """Insert it; its id, once it is committed. Raises BusUnavailable and what the database says of it."""
        slip = _Slip(row)
        if self._writing < WRITERS:
            self._writing += 1
            await self._write(slip)
        else:
            await self._follow(slip)
        if slip.error is not None:
            raise slip.error
        return slip.id

    async def _follow(self, slip: _Slip) -> None:
        """Wait until somebody has sent it, or until it leads itself."""
        self._waiting.append(slip)
        try:
            await self._turn(slip)
        except BaseException:  # nothing is inserted that was not sent yet
            if slip.leads:
                self._pass_on()
            elif slip in self._waiting:
                self._waiting.remove(slip)
            raise
        if slip.leads:
            await self._write(slip)

    async def _turn(self, slip: _Slip) -> None:
        with anyio.move_on_after(LINE_S):
            await slip.event.wait()
        if slip in self._waiting:
            raise BusUnavailable("the database does not answer: the message was not sent")
        if not slip.event.is_set():  # (a wait that is over still costs a turn of the loop)
            await slip.event.wait()

    def _pass_on(self) -> None:
        """This writer's turn is over: the first in the line leads next."""
        if not self._waiting:
            self._writing -= 1
            return
        slip = self._waiting.popleft()
        slip.leads = True
        slip.event.set()

    async def _write(self, leader: _Slip) -> None:
        """Send the leader's message and what waits behind it."""
        followers: list[_Slip] = []
        try:
            # The callers of the batch before are waking up: after one turn of the loop their next messages are
            # here too. Without it, eight callers made batches of one and of eight in turns, a third less in all.
            await anyio.lowlevel.checkpoint()
            followers = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST - 1))]
            with anyio.CancelScope(shield=True):  # the others' messages must not hang on this one's caller
                await self._insert([leader, *followers])
        finally:
            self._pass_on()
            for slip in followers:
                if not slip.id and slip.error is None:  # the leader's task was cancelled from outside anyio
                    slip.error = BusUnavailable("who sent it was stopped: it may be there or not")
                slip.event.set()

    async def _insert(self, batch: list[_Slip]) -> None:
        try:
            with anyio.fail_after(STATEMENT_S):
                async with self._db.connection() as conn:
                    ids = await _insert_rows(conn, [slip.row for slip in batch])
        except psycopg.Error as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            for slip in batch:  # one of them is refused: the others have nothing to do with it
                await self._insert([slip])
        except (BusUnavailable, TimeoutError) as error:
            for slip in batch:
                slip.error = BusUnavailable(f"the database gave no answer: {str(error) or 'in time'}")
        else:
            for slip, id in zip(batch, ids, strict=True):
                slip.id = id


async def _insert_rows(conn: Connection, rows: list[Row]) -> list[int]:
    columns = [array(column) for column in zip(*rows, strict=True)]
    cursor = conn.cursor(row_factory=psycopg.rows.scalar_row)
    return await (await cursor.execute(INSERT, columns, prepare=True)).fetchall()
