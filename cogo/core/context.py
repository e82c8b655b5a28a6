"""What a handler gets as its second argument: the claim that it works under, and what it may do."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from . import telemetry
from .bus import Bus, encode_jsonb
from .db import Connection, Database, Params
from .errors import BudgetExceeded, ClaimLost, ModelDenied
from .model import Assignment, BusEvent, Delegate, FollowUp, Message, Outcome, RoutingKey

SNIPPET_BYTES = 16_000
"""A longer result goes to cogo.artifacts; result_url names it."""
SNIPPET_CUT = 2_000
CHUNK_EVERY_S = 0.05


class Transaction:
    """A database transaction whose last statement can be the fenced finish of the message.

    So effects and completion are committed together or not at all.
    """

    def __init__(self, conn: Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx
        self.outcome: Outcome | None = None

    async def fetch(self, sql: str, params: Params = ()) -> list[dict[str, Any]]:
        """All rows."""
        return await (await self._conn.execute(sql.encode(), params)).fetchall()

    async def execute(self, sql: str, params: Params = ()) -> int:
        """Run a statement; the number of rows it touched."""
        return (await self._conn.execute(sql.encode(), params)).rowcount

    def done(self, result: Any = None) -> None:
        """The message ends as done with this result when the transaction commits."""
        snippet = encode_jsonb(result)
        self.outcome = self._ctx.outcome("done", snippet=snippet)

    def delegate(self, delegate: Delegate) -> None:
        """The message waits for this follow-up from the moment the transaction commits."""
        self.outcome = self._ctx.delegated(delegate)


class ContextBus:
    """Messages that leave with the message's own finish, or at once."""

    def __init__(self, ctx: Context, bus: Bus) -> None:
        self._ctx = ctx
        self._bus = bus

    async def enqueue(
        self, to: str, payload: Any, *, idempotency_key: str | None = None, priority: int = 2,
        ttl_ms: int | None = None, now: bool = False,
    ) -> int | None:  # fmt: skip
        """Send a message to `service/role[/shard]` for the same tenant, in the same trace.

        By default it is inserted together with this message's finish, only if that succeeds, and
        None is returned. `now=True` inserts it at once and returns its id; a retry repeats it.
        Raises RoutingInvalid, ResultInvalid.
        """
        if now:
            key = RoutingKey.parse(to, tenant=self._ctx.key.tenant)
            return await self._bus.enqueue(
                key, payload, idempotency_key=idempotency_key, priority=priority, ttl_ms=ttl_ms,
                traceparent=telemetry.new_traceparent(self._ctx.traceparent),
            )  # fmt: skip
        self._ctx.follow_ups.append(
            self._ctx.follow_up(to, payload, key=idempotency_key, priority=priority, ttl_ms=ttl_ms)
        )
        return None


class Context:
    """One attempt at one message. Every method checks the claim by its fence where it writes."""

    def __init__(self, message: Message, assignment: Assignment | None, bus: Bus, settings: Any) -> None:
        self.message = message
        self.assignment = assignment
        self.settings = settings
        self.db: Database = bus.db
        self.bus = ContextBus(self, bus)
        self.log: logging.Logger = telemetry.log
        self.traceparent = message.traceparent or telemetry.new_traceparent()
        self.deadline = None if message.runtime_s is None else time.monotonic() + message.runtime_s
        """Monotonic seconds at which the handler is cancelled."""
        self.follow_ups: list[FollowUp] = []
        self.events: list[BusEvent] = []
        self.finished: str | None = None
        """The status, once a transaction of the handler has finished the message."""
        self.on_extend: Any = None
        self._bus = bus
        self._chunks: list[tuple[str, Any]] = []
        self._chunks_sent = 0.0
        self._cancelled = False

    @property
    def message_id(self) -> int:
        return self.message.id

    @property
    def attempt(self) -> int:
        """1 for the first."""
        return self.message.attempts

    @property
    def key(self) -> RoutingKey:
        return self.message.key

    @property
    def root_id(self) -> int:
        """The id that the client was given."""
        return self.message.root_id

    @property
    def trace_id(self) -> str | None:
        return telemetry.trace_id(self.traceparent)

    def cancelled(self) -> bool:
        """For handlers in threads, which cannot be interrupted: True when they should stop."""
        return self._cancelled

    def cancel(self) -> None:
        self._cancelled = True

    async def spend(self, *, cost_usd: float = 0.0, tokens: int = 0, model: str | None = None) -> None:
        """Draw from the request's budget before a model call, over all its hops and attempts.

        Raises BudgetExceeded when it would be overdrawn (nothing is drawn then), ModelDenied when
        the assignment names another model.
        """
        allowed = self.assignment.model if self.assignment else None
        if model and allowed and model != allowed:
            raise ModelDenied(f"the assignment allows {allowed!r}, the handler asked for {model!r}")
        drawn = await self._bus.draw(self.root_id, cost_usd, tokens)
        if drawn is None and self.assignment is not None:
            budget = self.assignment.budget
            await self._bus.hold(self.root_id, self.key.tenant, budget.maxCostUsd, budget.maxTokens)
            drawn = await self._bus.draw(self.root_id, cost_usd, tokens)
        if drawn is not None and not drawn["ok"]:
            raise BudgetExceeded(
                f"{cost_usd:g} USD and {tokens} tokens are more than what is left: "
                f"{drawn['left_cost_usd']} USD, {drawn['left_tokens']} tokens (None: no limit)"
            )

    async def progress(self, data: Any, *, kind: str = "progress") -> None:
        """Show progress, or stream a piece of the answer, to whoever waits; at most one write per 50 ms."""
        self._chunks.append((kind, data))
        if time.monotonic() - self._chunks_sent >= CHUNK_EVERY_S:
            await self.flush()

    async def flush(self) -> None:
        """Write what progress() has gathered. Raises ClaimLost."""
        if not self._chunks:
            return
        chunks, self._chunks = self._chunks, []
        self._chunks_sent = time.monotonic()
        if not await self._bus.add_chunks(self.message.id, self.message.fence, chunks):
            raise ClaimLost

    async def extend(self, seconds: float) -> None:
        """Ask for `seconds` from now, never past the request's ttl. Raises ClaimLost."""
        if not await self._bus.extend(self.message.id, self.message.fence, seconds):
            raise ClaimLost
        ends = [seconds] if self.message.expires_in_s is None else [seconds, self.message.expires_in_s]
        self.deadline = time.monotonic() + min(ends)
        if self.on_extend is not None:
            self.on_extend(self.deadline)

    def event(self, kind: str, /, **detail: Any) -> None:
        """An audit event for public.bus_events, written with the finish."""
        encode_jsonb(detail)
        self.events.append(BusEvent(kind=kind, detail=detail))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """BEGIN .. COMMIT; with `tx.done(…)` or `tx.delegate(…)` the message ends in the same commit.

        Raises ClaimLost, and rolls everything back, when the claim is no longer current.
        """
        async with self.db.transaction() as conn:
            tx = Transaction(conn, self)
            yield tx
            if tx.outcome is not None:
                accepted = await self._bus.finish([tx.outcome], conn)
                if self.message.id not in accepted:
                    raise ClaimLost
        if tx.outcome is not None:
            self.finished = accepted[self.message.id]

    # -- how an attempt ends; for the consumer --------------------------------------------------

    def outcome(self, kind: Any, **fields: Any) -> Outcome:
        """An outcome with what the handler gathered: follow-ups only if it succeeded, events always."""
        success = kind in ("done", "delegated")
        follow_ups = [*self.follow_ups, *fields.pop("follow_ups", ())] if success else ()
        carries = bool(follow_ups or self.events)
        return Outcome(
            id=self.message.id, fence=self.message.fence, kind=kind, follow_ups=follow_ups,
            events=self.events if success else (),
            traceparent=self.traceparent if carries else None, **fields,
        )  # fmt: skip

    def delegated(self, to: Delegate) -> Outcome:
        child = self.follow_up(to.to, to.payload, priority=to.priority, ttl_ms=to.ttl_ms, delegate=True)
        return self.outcome("delegated", follow_ups=(child,))

    async def done(self, result: Any) -> Outcome:
        """The outcome for a returned value; a long one is stored as an artifact first."""
        text = encode_jsonb(result)
        if len(text) <= SNIPPET_BYTES:
            return self.outcome("done", snippet=text)
        url = await self._bus.keep(self.key.tenant, text.encode())
        return self.outcome("done", snippet=text[:SNIPPET_CUT], url=url)

    def follow_up(self, to: str, payload: Any, **options: Any) -> FollowUp:
        key = RoutingKey.parse(to, tenant=self.key.tenant)
        return FollowUp(
            service=key.service, role=key.role, shard=key.shard, tenant=key.tenant,
            payload=msgspec.Raw(encode_jsonb(payload).encode()),
            traceparent=telemetry.new_traceparent(self.traceparent), **options,
        )  # fmt: skip
