"""The bus from Python: one method per SQL function, plus waiting for results.

Policy is in sql/functions; this file only carries arguments and turns error states into errors.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, Protocol

import anyio
import msgspec
import psycopg

from . import dispatch, telemetry
from .db import Connection, Database
from .dispatch import Claimed
from .errors import (
    BusUnavailable,
    IdempotencyConflict,
    Invalid,
    MessageState,
    MessageUnknown,
    ResultPending,
)
from .inlet import Inlet, Row
from .model import Lane, Outcome, Result, RoutingKey, Status
from .operate import Operations
from .text import array, encode_jsonb

_BULK = 5_000
STATEMENT_S = 30.0
"""A claim or finish without an answer for so long counts as a database that is away."""
GIVEN_UP = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.ReadOnlySqlTransaction,  # a failover is under way
    psycopg.errors.SerializationFailure,
)
"""What the server gave up for now: the same statement may pass a moment later."""
TTL_MAX_MS = 10 * 366 * 86_400_000

ENQUEUE = "SELECT id, created FROM cogo.enqueue(%s, %s, %s, %s, %s::jsonb, %s, %s, %s, %s, %s)"
NEW_IDS = """
SELECT array_agg(nextval('public.agent_messages_id_seq')), row_security_active('public.agent_messages')
FROM generate_series(1, %s)
"""
COPY_IN = "COPY public.agent_messages (id, service, role, shard, tenant, priority, payload) FROM STDIN"
INSERT_MANY = """
INSERT INTO public.agent_messages (id, service, role, shard, tenant, priority, payload) OVERRIDING SYSTEM VALUE
SELECT n.id, %s, %s, %s, %s, %s, n.payload FROM unnest(%s::bigint[], %s::jsonb[]) AS n(id, payload)
"""
RESULT = """
SELECT id, status, result_snippet AS snippet, result_url AS url, error, attempts, trace_id, created_at, done_at
FROM public.agent_messages WHERE id = %s
"""


class Wakeups(Protocol):
    """What a waiter needs of a listener: an event that fires when this message changes."""

    def result_event(self, message_id: int) -> Any: ...


class Chunk(msgspec.Struct, frozen=True):
    """A piece of progress or of a streamed answer; `n` counts from 1 within a message."""

    n: int
    kind: str
    data: Any


def check_options(priority: int, ttl_ms: int | None) -> None:
    """Raises Invalid for a priority or a time to live that the table would refuse."""
    if not 0 <= priority <= 3:
        raise Invalid("priority is 0 (first) to 3 (last)")
    if ttl_ms is not None and not 0 <= ttl_ms <= TTL_MAX_MS:
        raise Invalid("ttl_ms is 0 to ten years of milliseconds")


@contextmanager
def answered() -> Iterator[None]:
    """Turns a statement that hangs, or that the server gave up for now, into BusUnavailable."""
    try:
        with anyio.fail_after(STATEMENT_S):
            yield
    except (TimeoutError, *GIVEN_UP) as error:
        raise BusUnavailable(f"the database gave no answer: {str(error) or 'in time'}") from error


def check_key(text: str | None, kind: str = "idempotency") -> str | None:
    """An idempotency or ordering key has 1..255 characters and no NUL. Raises Invalid."""
    if text is not None and (not 1 <= len(text) <= 255 or "\x00" in text):
        raise Invalid(f"an {kind} key has 1 to 255 characters")
    return text


def new_row(
    key: str | RoutingKey, payload: Any, *, traceparent: str | None = None, ttl_ms: int | None = None,
    priority: int = 2,
) -> Row:  # fmt: skip
    """What an insert needs, checked. Raises RoutingInvalid, ResultInvalid, Invalid."""
    to = RoutingKey.parse(str(key))
    check_options(priority, ttl_ms)
    if traceparent is None or not telemetry.valid_traceparent(traceparent):
        traceparent = telemetry.new_traceparent()
    return Row(to.service, to.role, to.shard, to.tenant, encode_jsonb(payload), traceparent, priority, ttl_ms)


async def enqueue(
    conn: psycopg.AsyncConnection[Any],
    key: str | RoutingKey,
    payload: Any,
    *,
    idempotency_key: str | None = None,
    traceparent: str | None = None,
    ttl_ms: int | None = None,
    priority: int = 2,
    ordering_key: str | None = None,
) -> tuple[int, bool]:
    """Insert one message on the caller's own connection, inside its transaction if it has one.

    Returns (id, created); created is False when the same key came with the same body before. A
    malformed traceparent starts a new trace, as W3C Trace Context asks. Messages of one `ordering_key`
    (within service, role and tenant) are handled one after the other, in the order of their commits.
    Raises IdempotencyConflict, RoutingInvalid, ResultInvalid, Invalid.
    """
    row = new_row(key, payload, traceparent=traceparent, ttl_ms=ttl_ms, priority=priority)
    args = (row.service, row.role, row.shard, row.tenant, row.payload, check_key(idempotency_key),
            row.traceparent, ttl_ms, priority, check_key(ordering_key, "ordering"))  # fmt: skip
    try:
        cursor = await conn.cursor(row_factory=psycopg.rows.tuple_row).execute(ENQUEUE, args)
    except psycopg.Error as error:
        if error.sqlstate == "CG409":
            raise IdempotencyConflict(str(error).splitlines()[0]) from error
        raise
    found = await cursor.fetchone()
    if found is None:
        raise MessageUnknown("the message was deleted while it was being enqueued")
    return int(found[0]), bool(found[1])


async def _insert_bulk(conn: Connection, where: Sequence[str | int], texts: Sequence[str]) -> list[int]:
    """Messages for one routing key and priority, by COPY; their ids."""
    cursor = conn.cursor(row_factory=psycopg.rows.tuple_row)
    row = await (await cursor.execute(NEW_IDS, (len(texts),))).fetchone()
    assert row is not None
    ids, secured = row
    if secured:  # where row security holds for this role, Postgres knows no COPY FROM
        await cursor.execute(INSERT_MANY, (*where, array(ids), array(texts)))
        return list(ids)
    same = "\t".join(map(str, where))
    lines = [f"{id}\t{same}\t{text}\n" for id, text in zip(ids, texts, strict=True)]
    async with cursor.copy(COPY_IN) as copy:
        await copy.write("".join(lines).replace("\\", "\\\\"))  # as COPY's text format asks
    return list(ids)


class Bus(Operations):
    """The bus of one process, over its pool. Safe to use from many tasks."""

    def __init__(
        self,
        db: Database,
        wakeups: Wakeups | None = None,
        *,
        hot: Database | None = None,
        poll_s: float = 0.25,
    ) -> None:
        super().__init__()
        self.db = db
        # Claims and finishes have a few connections of their own that never close: a fresh one plans
        # both statements anew, which takes as long as ten of them.
        self._hot = hot or db
        self._inlet = Inlet(db)
        self._wakeups = wakeups
        self._poll_s = poll_s

    # -- in ------------------------------------------------------------------------------------

    async def enqueue(self, key: str | RoutingKey, payload: Any, **options: Any) -> int:
        """Insert one message and return its id; options as for `cogo.enqueue`, and `max_depth`.

        Raises LaneFull when `max_depth` or more messages wait in the lane already.
        """
        return (await self.enqueue_once(key, payload, **options))[0]

    async def enqueue_once(
        self, key: str | RoutingKey, payload: Any, *, idempotency_key: str | None = None,
        ordering_key: str | None = None, max_depth: int | None = None, **options: Any,
    ) -> tuple[int, bool]:  # fmt: skip
        """Like enqueue, and whether the message is new (False: the same key and body came before)."""
        if max_depth is not None:
            await self.refuse_when_full(RoutingKey.parse(str(key)).lane, max_depth)
        if idempotency_key is None and ordering_key is None:
            return await self._inlet.put(new_row(key, payload, **options)), True
        async with self.db.connection() as conn:
            return await enqueue(
                conn, key, payload, idempotency_key=idempotency_key, ordering_key=ordering_key, **options
            )

    async def enqueue_many(
        self,
        key: str | RoutingKey,
        payloads: Sequence[Any],
        *,
        priority: int = 2,
        max_depth: int | None = None,
    ) -> list[int]:
        """Insert many messages for one routing key, all or none; ids in the order of the payloads."""
        to = RoutingKey.parse(str(key))
        check_options(priority, None)
        if max_depth is not None:
            await self.refuse_when_full(to.lane, max_depth, len(payloads))
        where = (to.service, to.role, to.shard, to.tenant, priority)
        ids: list[int] = []
        async with self.db.transaction() as conn:
            for start in range(0, len(payloads), _BULK):
                texts = [encode_jsonb(one) for one in payloads[start : start + _BULK]]
                ids += await _insert_bulk(conn, where, texts)
        return ids

    # -- out: claim and finish -----------------------------------------------------------------

    async def claim(
        self, lane: Lane, limit: int, *, holder: str, epoch: int, timeout_ms: int,
        after: Sequence[int] = (0, 0, 0, 0),
    ) -> Claimed:  # fmt: skip
        """Take up to `limit` messages of a lane; `timeout_ms` counts where the lane sets none.

        `after` is the watermark: for each priority the seq after which to look.
        """
        with answered():
            async with self._hot.connection() as conn:
                return await dispatch.claim(conn, lane, limit, holder, epoch, timeout_ms, after)

    async def finish(self, outcomes: Sequence[Outcome], conn: Connection | None = None) -> dict[int, Status]:
        """Write outcomes in one transaction; the new status of each that was accepted.

        What is missing from the answer was a stale claim: it had no effect at all.
        """
        if conn is not None:
            return await dispatch.finish(conn, outcomes)
        with answered():
            async with self._hot.connection() as own:
                return await dispatch.finish(own, outcomes)

    async def give_back(self, holder: str, epoch: int, known: Sequence[int], older_ms: int) -> int:
        """Put back what this holder has claimed without knowing it; `known` are fences. How many."""
        sql = "SELECT cogo.give_back(%s, %s, %s::bigint[], %s)"
        return int(await self.db.fetch_value(sql, (holder, epoch, list(known), older_ms)))

    async def warm_up(self, connections: int) -> None:
        """Have the hot connections plan their statements before the first message comes."""
        async with AsyncExitStack() as stack:
            for _ in range(connections):
                await dispatch.finish(await stack.enter_async_context(self._hot.connection()), [])

    async def extend(self, id: int, fence: int, seconds: float) -> bool:
        """Move the deadline of a claim to `seconds` from now, never past expires_at. False: lost."""
        sql = """UPDATE public.agent_messages SET deadline_at = least(expires_at, cogo.now() + %s * interval '1 s')
                 WHERE id = %s AND fence = %s"""
        return await self.db.execute(sql, (seconds, id, fence)) == 1

    async def add_chunks(self, id: int, fence: int, chunks: Sequence[tuple[str, Any]]) -> bool:
        """Append progress to a message, while the claim is current. False: the claim is lost."""
        kinds, datas = [kind for kind, _ in chunks], [encode_jsonb(data) for _, data in chunks]
        sql = "SELECT cogo.add_chunks(%s, %s, %s::text[], %s::text[])"
        return bool(await self.db.fetch_value(sql, (id, fence, kinds, datas)))

    # -- idle lanes ----------------------------------------------------------------------------

    async def sleep_on(self, lanes: Sequence[Lane], epoch: int) -> None:
        """Register as asleep on these lanes: from now on an insert notifies."""
        sql = """INSERT INTO cogo.bus_idle SELECT * FROM unnest(%s::text[], %s::text[], %s::integer[], %s::bigint[])
                 ON CONFLICT DO NOTHING"""
        columns = zip(*((lane.service, lane.role, lane.shard, epoch) for lane in lanes), strict=True)
        await self.db.execute(sql, [list(column) for column in columns])

    async def awake_on(self, lanes: Sequence[Lane], epoch: int) -> None:
        """Busy lanes need no wakeups; their producers are spared the NOTIFY."""
        sql = (
            "DELETE FROM cogo.bus_idle WHERE epoch = %s AND service || '/' || role || '/' || shard = ANY (%s)"
        )
        await self.db.execute(sql, (epoch, [str(lane) for lane in lanes]))

    # -- budgets -------------------------------------------------------------------------------

    async def hold(self, root_id: int, tenant: str, cost_usd: float | None, tokens: int | None) -> None:
        """Open the budget of a root message; the first hold counts."""
        await self.db.execute(
            "SELECT cogo.hold(%s, %s, %s::numeric, %s)", (root_id, tenant, cost_usd, tokens)
        )

    async def draw(self, root_id: int, cost_usd: float, tokens: int) -> dict[str, Any] | None:
        """Draw from a hold: {ok, left_cost_usd, left_tokens}; None when there is no hold."""
        return await self.db.fetch_one(
            "SELECT * FROM cogo.draw(%s, %s::numeric, %s)", (root_id, cost_usd, tokens)
        )

    async def refund(self, root_id: int, id: int, fence: int, cost_usd: float, tokens: int) -> bool:
        """Give back to a hold what was drawn and not used. False: the claim is lost, or the hold is closed."""
        sql = "SELECT cogo.refund(%s, %s, %s, %s::numeric, %s)"
        return bool(await self.db.fetch_value(sql, (root_id, id, fence, cost_usd, tokens)))

    async def keep(
        self,
        tenant: str,
        body: bytes,
        media_type: str = "application/json",
        *,
        conn: Connection | None = None,
    ) -> str:
        """Store a long result; its address for result_url. The same bytes are stored once per tenant."""
        digest = hashlib.sha256(body).hexdigest()
        sql = """
        INSERT INTO cogo.artifacts (tenant, digest, media_type, body) VALUES (%s, %s, %s, %s)
        ON CONFLICT (tenant, digest) DO UPDATE SET created_at = now()
        """  # retention counts from the last message that names it
        await (conn or self.db).execute(sql, (tenant, digest, media_type, body))
        return f"/api/artifacts/{digest}"

    # -- results -------------------------------------------------------------------------------

    async def peek(self, id: int) -> Result:
        """How a message stands now. Raises MessageUnknown."""
        row = await self.db.fetch_one(RESULT, (id,))
        if row is None:
            raise MessageUnknown(f"there is no message {id}")
        return Result(**row)

    async def wait(self, id: int, timeout_s: float) -> Result:
        """The result when the message has ended, or how it stands after `timeout_s`.

        An outage that is shorter than that is waited through. Raises MessageUnknown, BusUnavailable.
        """
        if timeout_s <= 0:
            return await self.peek(id)
        end = time.monotonic() + timeout_s
        with suppress(BusUnavailable):
            if (now := await self.peek(id)).terminal:
                return now
        async with self.watching(id, timeout_s) as changed:
            while True:
                left_s = end - time.monotonic()
                try:
                    if (now := await self.peek(id)).terminal or left_s <= 0:
                        return now
                except BusUnavailable:
                    if left_s <= 0:
                        raise
                await changed(left_s)

    async def result(self, id: int, *, timeout_s: float = 30.0) -> Result:
        """How a message ended. Raises ResultPending after `timeout_s`, MessageUnknown."""
        result = await self.wait(id, timeout_s)
        if not result.terminal:
            raise ResultPending(f"message {id} is {result.status} after {timeout_s:g} s")
        return result

    async def chunks(self, id: int, after: int = 0, timeout_s: float = 600.0) -> AsyncIterator[Chunk]:
        """Progress of a message after number `after`, as it comes, until it has ended."""
        sql = """SELECT n, kind, data FROM cogo.message_chunks
                 WHERE message_id = (SELECT coalesce(root_id, id) FROM public.agent_messages WHERE id = %s)
                   AND n > %s ORDER BY n LIMIT 500"""
        end = time.monotonic() + timeout_s
        async with self.watching(id, timeout_s) as changed:
            while True:  # no cancel scope here: it would cancel the reader's own code between two yields
                left_s = end - time.monotonic()
                rows: list[dict[str, Any]] = []
                try:
                    ended = (await self.peek(id)).terminal  # read before the chunks: none can come after
                    rows = await self.db.fetch(sql, (id, after))
                except BusUnavailable:
                    if left_s <= 0:
                        raise
                    ended = False
                for row in rows:
                    after = row["n"]
                    yield Chunk(**row)
                if not rows:
                    if ended or left_s <= 0:
                        return
                    await changed(left_s)

    @asynccontextmanager
    async def watching(self, id: int, timeout_s: float) -> AsyncIterator[Any]:
        """Register as a waiter, so that the end of the message notifies; gives `await changed(within_s)`.

        The wait has a floor of polling: a wakeup is only ever a hint.
        """
        token = uuid.uuid4()
        event = self._wakeups.result_event(id) if self._wakeups else None
        poll_s = self._poll_s

        async def changed(within_s: float = float("inf")) -> None:
            nonlocal poll_s
            with anyio.move_on_after(min(poll_s, within_s)):
                if event is None:
                    await anyio.sleep_forever()
                else:
                    await event.wait()
            poll_s = min(poll_s * 1.5, 2.0)

        with suppress(BusUnavailable):  # then it is the floor that counts
            await self.db.execute(
                "INSERT INTO cogo.bus_waiters VALUES (%s, %s, cogo.now() + %s * interval '1 s')",
                (id, token, timeout_s + 5),
            )
        try:
            yield changed
        finally:
            if event is not None:
                event.close()
            # Best effort: a row that stays costs a NOTIFY at most, and is cleared away after `until`.
            with suppress(BusUnavailable), anyio.move_on_after(2.0, shield=True):
                await self.db.execute(
                    "DELETE FROM cogo.bus_waiters WHERE message_id = %s AND token = %s", (id, token)
                )

    # -- operators -----------------------------------------------------------------------------

    async def cancel(self, id: int, *, actor: str, reason: str = "") -> Status:
        """Cancel a message and whatever it waits for; its status afterwards. Raises MessageUnknown."""
        status: Status | None = await self.db.fetch_value(
            "SELECT cogo.cancel(%s, %s, %s)", (id, actor, reason)
        )
        if status is None:
            raise MessageUnknown(f"there is no message {id}")
        # Locks go child -> parent only, so the children follow in transactions of their own.
        while await self.db.fetch_value("SELECT cogo.cascade_cancels()"):
            pass
        return status

    async def requeue(self, id: int, *, actor: str, reason: str = "") -> Status:
        """Put a failed or cancelled message back. Raises MessageUnknown, MessageState."""
        try:
            status: Status | None = await self.db.fetch_value(
                "SELECT cogo.requeue(%s, %s, %s)", (id, actor, reason)
            )
        except psycopg.Error as error:
            if error.sqlstate == "CG410":
                raise MessageState(str(error).splitlines()[0]) from error
            raise
        if status is None:
            raise MessageUnknown(f"there is no message {id}")
        return status

    async def message(self, id: int) -> dict[str, Any]:
        """The whole row. Raises MessageUnknown."""
        row = await self.db.fetch_one("SELECT * FROM public.agent_messages WHERE id = %s", (id,))
        if row is None:
            raise MessageUnknown(f"there is no message {id}")
        return row
