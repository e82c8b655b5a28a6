"""What a handler gets as its second argument: the claim that it works under, and what it may do."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from . import telemetry
from .bus import Bus, check_key, check_options
from .db import Connection, Database, Params
from .errors import (
    BudgetExceeded,
    BusUnavailable,
    ClaimLost,
    Invalid,
    MessageState,
    ModelDenied,
    RoutingInvalid,
)
from .model import Assignment, BusEvent, Delegate, FollowUp, Message, Outcome, OutcomeKind, RoutingKey
from .text import encode_jsonb

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
        self.ending: str | FollowUp | None = None
        """The result as JSON text, or the follow-up that the message will wait for."""

    async def fetch(self, sql: str, params: Params = ()) -> list[dict[str, Any]]:
        """All rows."""
        return await (await self._conn.execute(sql.encode(), params)).fetchall()

    async def execute(self, sql: str, params: Params = ()) -> int:
        """Run a statement; the number of rows it touched."""
        return (await self._conn.execute(sql.encode(), params)).rowcount

    def done(self, result: Any = None) -> None:
        """The message ends as done with this result when the transaction commits."""
        self.ending = encode_jsonb(result)

    def delegate(self, delegate: Delegate) -> None:
        """The message waits for this follow-up from the moment the transaction commits."""
        self.ending = self._ctx.child(delegate)


class Reservation:
    """What `ctx.spend` drew. Until `settle` all of it counts as used, also when the process dies before."""

    def __init__(self, ctx: Context, cost_usd: float, tokens: int, *, drawn: bool) -> None:
        self.cost_usd = cost_usd
        self.tokens = tokens
        self._ctx = ctx
        self._open = drawn
        """False: settled already, or nothing limits this request."""

    async def settle(self, *, cost_usd: float = 0.0, tokens: int = 0) -> None:
        """Say what was really used; the rest goes back to the budget. The first call counts.

        Raises Invalid when it is less than zero or more than was drawn, ClaimLost.
        """
        if not (0 <= cost_usd <= self.cost_usd and 0 <= tokens <= self.tokens):
            raise Invalid("what was used is between zero and what was drawn for it")
        if self._open:
            self._open = False
            await self._ctx.give_back(self.cost_usd - cost_usd, self.tokens - tokens)


class ContextBus:
    """Messages that leave with the message's own finish, or at once."""

    def __init__(self, ctx: Context, bus: Bus) -> None:
        self._ctx = ctx
        self._bus = bus

    async def enqueue(
        self, to: str, payload: Any, *, idempotency_key: str | None = None, priority: int = 2,
        ttl_ms: int | None = None, ordering_key: str | None = None, max_depth: int | None = None,
        now: bool = False,
    ) -> int | None:  # fmt: skip
        """Send a message to `service/role[/shard]` for the same tenant, in the same trace.

        By default it is inserted together with this message's finish, only if that succeeds, and
        None is returned. `now=True` inserts it at once and returns its id; a retry repeats it. With
        `max_depth` it raises LaneFull when so many messages wait there now, and this one is tried again.
        Raises RoutingInvalid, ResultInvalid, Invalid.
        """
        if now:
            return await self._bus.enqueue(
                self._ctx.routed(to), payload, idempotency_key=idempotency_key, priority=priority, ttl_ms=ttl_ms,
                traceparent=telemetry.new_traceparent(self._ctx.traceparent), ordering_key=ordering_key,
                max_depth=max_depth,
            )  # fmt: skip
        if self._ctx.finished is not None:
            raise MessageState(
                "the message has ended already, nothing can leave with its finish; use now=True"
            )
        if max_depth is not None:
            await self._bus.refuse_when_full(self._ctx.routed(to).lane, max_depth)
        self._ctx.follow_ups = follow_ups = self._ctx.follow_ups or []
        follow_ups.append(self._ctx.follow_up(
            to, payload, key=idempotency_key, priority=priority, ttl_ms=ttl_ms, ordering_key=ordering_key,
        ))  # fmt: skip
        return None


class Context:
    """One attempt at one message. Every method checks the claim by its fence where it writes."""

    # One is made for each message, so what most handlers never touch is made on first use.
    # Nothing here may refer back to who made it: a cycle per message costs the collector a third as much as the
    # message costs us.
    _scope: anyio.CancelScope | None = None
    """The slot's, while this attempt runs in it."""
    on_chunk: Callable[[Context], None] | None = None
    """Called when progress lies unwritten, so that somebody writes it soon."""
    finished: str | None = None
    """The status, once a transaction of the handler has finished the message."""
    follow_ups: list[FollowUp] | None = None
    events: list[BusEvent] | None = None
    _chunks: list[tuple[str, Any]] | None = None
    _chunks_sent = 0.0
    _flushing: anyio.Lock | None = None
    _cancelled = False

    def __init__(self, message: Message, assignment: Assignment | None, bus: Bus, settings: Any) -> None:
        self.message = message
        self.assignment = assignment
        self.settings = settings
        self.db: Database = bus.db
        self.log: logging.Logger = telemetry.log
        since = message.claimed_at or time.monotonic()
        self.deadline = None if message.runtime_s is None else since + message.runtime_s
        """Monotonic seconds at which the handler is cancelled."""
        self.expires = None if message.expires_in_s is None else since + message.expires_in_s
        """Monotonic seconds at which the request's time to live ends."""
        self._bus = bus

    @property
    def bus(self) -> ContextBus:
        """Messages that leave with this one's finish, or at once."""
        return ContextBus(self, self._bus)

    @functools.cached_property
    def traceparent(self) -> str:
        """The message's own; one without gets a new trace when somebody asks."""
        return self.message.traceparent or telemetry.new_traceparent()

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

    def within(self, scope: anyio.CancelScope | None) -> None:
        """extend() moves this scope's deadline; None when the attempt is over, since others use it next."""
        self._scope = scope

    def cancelled(self) -> bool:
        """For handlers in threads, which cannot be interrupted: True when they should stop."""
        return self._cancelled

    def cancel(self) -> None:
        self._cancelled = True

    async def spend(self, *, cost_usd: float = 0.0, tokens: int = 0, model: str | None = None) -> Reservation:
        """Draw from the request's budget before a model call, over all its hops and attempts.

        Draw the most that the call can cost, and `settle` the reservation with what it did cost.
        Raises BudgetExceeded when it would be overdrawn (nothing is drawn then; its `extra` has
        `left_cost_usd` and `left_tokens`, None without a limit), ModelDenied when the assignment names a
        model and `model` is not that one.
        """
        if not (0 <= cost_usd < float("inf") and tokens >= 0):
            raise Invalid("cost_usd and tokens are what a call uses: zero or more")
        allowed = self.assignment.model if self.assignment else None
        if allowed and model != allowed:
            raise ModelDenied(f"the assignment allows {allowed!r}, the handler asked for {model!r}")
        drawn = await self._bus.draw(self.root_id, cost_usd, tokens)
        if drawn is None and self.assignment is not None:
            budget = self.assignment.budget
            await self._bus.hold(self.root_id, self.key.tenant, budget.maxCostUsd, budget.maxTokens)
            drawn = await self._bus.draw(self.root_id, cost_usd, tokens)
        if drawn is not None and not drawn["ok"]:
            raise BudgetExceeded(
                f"{cost_usd:g} USD and {tokens} tokens are more than what is left: "
                f"{drawn['left_cost_usd']} USD, {drawn['left_tokens']} tokens (None: no limit)",
                left_cost_usd=drawn["left_cost_usd"],
                left_tokens=drawn["left_tokens"],
            )
        return Reservation(self, cost_usd, tokens, drawn=drawn is not None)

    async def give_back(self, cost_usd: float, tokens: int) -> None:
        """For `Reservation.settle`. Raises ClaimLost: then what was drawn stays spent."""
        message = self.message
        if not await self._bus.refund(self.root_id, message.id, message.fence, cost_usd, tokens):
            raise ClaimLost

    async def progress(self, data: Any, *, kind: str = "progress") -> None:
        """Show progress, or stream a piece of the answer, to whoever waits; at most one write per 50 ms.

        Raises ResultInvalid, ClaimLost.
        """
        encode_jsonb(data)
        self._chunks = chunks = self._chunks or []
        chunks.append((kind, data))
        if time.monotonic() - self._chunks_sent >= CHUNK_EVERY_S:
            await self.flush()
        elif self.on_chunk is not None:
            self.on_chunk(self)

    async def flush(self) -> None:
        """Write what progress() has gathered; while the database is away it is kept. Raises ClaimLost."""
        if not self._chunks:
            return
        self._flushing = self._flushing or anyio.Lock()
        async with self._flushing:  # two writers at once would swap the order
            chunks, self._chunks = self._chunks or [], []
            self._chunks_sent = time.monotonic()
            try:
                current = await self._bus.add_chunks(self.message.id, self.message.fence, chunks)
            except BusUnavailable:
                self._chunks = chunks + self._chunks  # an outage must not end the work whose progress this is
                return
        if not current:
            raise ClaimLost

    async def extend(self, seconds: float) -> None:
        """Ask for `seconds` from now, never past the request's ttl. Raises ClaimLost."""
        if not await self._bus.extend(self.message.id, self.message.fence, seconds):
            raise ClaimLost
        asked = time.monotonic() + seconds
        self.deadline = asked if self.expires is None else min(asked, self.expires)
        if self._scope is not None:
            self._scope.deadline = self.deadline

    def event(self, kind: str, /, **detail: Any) -> None:
        """An audit event for public.bus_events, written with the finish if the attempt succeeds."""
        encode_jsonb(detail)
        self.events = events = self.events or []
        events.append(BusEvent(kind=kind, detail=detail))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """BEGIN .. COMMIT; with `tx.done(…)` or `tx.delegate(…)` the message ends in the same commit.

        Raises ClaimLost, and rolls everything back, when the claim is no longer current.
        """
        async with self.db.transaction() as conn:
            tx = Transaction(conn, self)
            yield tx
            if tx.ending is not None:
                await self.flush()  # after the finish the fence is 0, and progress would be refused
                accepted = await self._bus.finish([await self._ended(tx.ending, conn)], conn)
                if self.message.id not in accepted:
                    raise ClaimLost
        if tx.ending is not None:
            self.finished = accepted[self.message.id]

    # -- how an attempt ends; for the consumer --------------------------------------------------

    def outcome(self, kind: OutcomeKind, **fields: Any) -> Outcome:
        """An outcome with what the handler gathered: follow-ups and events leave only if it succeeded."""
        message = self.message
        gathered = [*(self.follow_ups or ()), *fields.pop("follow_ups", ())]
        if kind not in {"done", "delegated"} or not (gathered or self.events):
            return Outcome(id=message.id, fence=message.fence, kind=kind, **fields)
        return Outcome(
            id=message.id, fence=message.fence, kind=kind, follow_ups=gathered, events=self.events or (),
            traceparent=self.traceparent, **fields,
        )  # fmt: skip

    def delegated(self, to: Delegate) -> Outcome:
        return self.outcome("delegated", follow_ups=(self.child(to),))

    async def done(self, result: Any) -> Outcome:
        """The outcome for a returned value; a long one is stored as an artifact first."""
        if result is None:
            return self.outcome("done", snippet="null")
        return await self._ended(encode_jsonb(result), None)

    async def _ended(self, ending: str | FollowUp, conn: Connection | None) -> Outcome:
        if isinstance(ending, FollowUp):
            return self.outcome("delegated", follow_ups=(ending,))
        if len(ending) <= SNIPPET_BYTES and len(ending.encode()) <= SNIPPET_BYTES:
            return self.outcome("done", snippet=ending)
        url = await self._bus.keep(self.key.tenant, ending.encode(), conn=conn)
        return self.outcome("done", snippet=ending[:SNIPPET_CUT], url=url)

    def routed(self, to: str) -> RoutingKey:
        """`to` within the message's own tenant. Raises RoutingInvalid for another one."""
        key = RoutingKey.parse(to, tenant=self.key.tenant)
        if key.tenant != self.key.tenant:
            raise RoutingInvalid(f"{to!r} names another tenant than the message's own, {self.key.tenant!r}")
        return key

    def child(self, to: Delegate) -> FollowUp:
        return self.follow_up(to.to, to.payload, priority=to.priority, ttl_ms=to.ttl_ms, delegate=True)

    def assigned(self, payload: Any) -> Any:
        """The payload under this request's assignment: its limits hold over all hops."""
        if self.assignment is None:
            return payload
        fields = msgspec.to_builtins(payload)
        if not isinstance(fields, dict) or "__assignment" in fields:
            return payload
        return {**fields, "__assignment": msgspec.to_builtins(self.assignment)}

    def follow_up(
        self, to: str, payload: Any, *, key: str | None = None, priority: int = 2,
        ttl_ms: int | None = None, delegate: bool = False, ordering_key: str | None = None,
    ) -> FollowUp:  # fmt: skip
        """Checked now, so that the handler's line is what fails, and not the whole finish."""
        lane = self.routed(to)
        check_options(priority, ttl_ms)
        payload = self.assigned(payload)
        return FollowUp(
            service=lane.service, role=lane.role, shard=lane.shard, tenant=lane.tenant,
            payload=msgspec.Raw(encode_jsonb(payload).encode()), key=check_key(key), priority=priority,
            ttl_ms=ttl_ms, delegate=delegate, traceparent=telemetry.new_traceparent(self.traceparent),
            ordering_key=check_key(ordering_key, "ordering"),
        )  # fmt: skip
