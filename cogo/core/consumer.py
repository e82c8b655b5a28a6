"""Feeds one role: claim a batch, run the handlers, submit the outcomes.

There is no internal queue: a message in memory is a claimed row with a slot. A claim that came back
short is not repeated at once; the consumer registers as asleep, looks once more, and then waits for
a wakeup, the next retry, or its own short polls (an insert that was uncommitted at the second look
was not notified).
"""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Sequence
from typing import Any, get_type_hints

import anyio
import anyio.to_process
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from . import telemetry
from .bus import Bus
from .context import Context
from .errors import (
    AssignmentInvalid,
    Bug,
    BusUnavailable,
    ClaimLost,
    CogoError,
    HandlerFailed,
    HandlerTimeout,
    TaskInvalid,
    TtlExpired,
)
from .finisher import Finisher, Note
from .lease import Lease
from .listener import DEAF_POLL_S, Listener
from .model import Assignment, Delegate, Lane, Message, Outcome, Reject, Retry, Role

POLL_FIRST_S = 0.005
FULL_BATCHES_TO_WAKE = 2


class Envelope(msgspec.Struct):
    """The part of a payload that core reads by itself."""

    assignment: Assignment | None = msgspec.field(name="__assignment", default=None)


_ENVELOPE = msgspec.json.Decoder(Envelope)


class Running:
    """A handler at work: how to stop it, and why it was stopped."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.scope = anyio.CancelScope(deadline=_loop_deadline(ctx.deadline))
        self.why: str | None = None
        ctx.on_extend = self._extend

    def stop(self, why: str) -> None:
        self.why = self.why or why
        self.ctx.cancel()
        self.scope.cancel()

    def _extend(self, deadline: float) -> None:
        self.scope.deadline = _loop_deadline(deadline)


def _loop_deadline(monotonic: float | None) -> float:
    return float("inf") if monotonic is None else anyio.current_time() + monotonic - time.monotonic()


class Desk:
    """What all consumers of a process share."""

    def __init__(
        self, bus: Bus, listener: Listener, lease: Lease, finisher: Finisher, *, poll_s: float, timeout_ms: int
    ) -> None:
        self.bus = bus
        self.listener = listener
        self.lease = lease
        self.finisher = finisher
        self.poll_s = poll_s
        self.timeout_ms = timeout_ms
        self.running: dict[int, Running] = {}
        listener.on_cancel(self.cancel)
        lease.on_lost = self.lease_lost

    def cancel(self, message_id: int) -> None:
        """The message was cancelled: stop its handler if it runs here."""
        if running := self.running.get(message_id):
            running.stop("cancelled")

    def lease_lost(self) -> None:
        """Nobody may act on a claim whose lease may have ended."""
        self.stop_all("lease")

    def stop_all(self, why: str) -> None:
        if self.running:
            telemetry.log.warning(telemetry.line("handlers.stopped", why=why, count=len(self.running)))
        for running in list(self.running.values()):
            running.stop(why)


class Consumer:
    """One role's loop: claims for its lanes as long as it has free slots."""

    def __init__(self, name: str, role: Role, lanes: Sequence[Lane], desk: Desk, settings: Any) -> None:
        if role.handle is None:
            raise Bug(f"role {name} has no handler")
        self.name = name
        self.role = role
        self.lanes = list(lanes)
        self.free = role.concurrency
        self._desk = desk
        self._settings = settings
        self._handle = role.handle
        self._decoder = msgspec.json.Decoder(task_type(role.handle))
        self._is_async = inspect.iscoroutinefunction(role.handle)
        self._limiter = anyio.CapacityLimiter(role.concurrency)
        self._wakeup = anyio.Event()
        self._asleep_epoch = 0
        self._stopping = False
        self._outage = telemetry.Outage(f"consumer.{name}")
        for lane in self.lanes:
            desk.listener.on_lane(lane, self._wake)
        desk.listener.on_connect(self._forget_sleep)

    @property
    def busy(self) -> bool:
        """True while a handler of this role is at work."""
        return self.free < self.role.concurrency

    def stop_claiming(self) -> None:
        """Let `run` return when the handlers that are at work have ended."""
        self._stopping = True
        self._wake()

    async def run(self) -> None:
        """Claim and handle until stop_claiming()."""
        poll_s, full = POLL_FIRST_S, 0
        async with anyio.create_task_group() as tg:
            while not self._stopping:
                asked = self.free
                if asked == 0:
                    await self._wait(self._desk.poll_s)
                    continue
                self._wakeup = anyio.Event()  # before the claim: a wakeup during it must not be lost
                try:
                    got, due_s = await self._claim(asked, tg)
                    full = full + 1 if got == asked else 0
                    if got == asked:
                        await self._wake_up_for_good(full)
                        continue
                    if await self._fall_asleep():
                        continue  # look once more: what came before the registration was not notified
                except BusUnavailable as error:
                    self._outage.begin(error)
                    await self._wait(0.5)
                    continue
                self._outage.end()
                woken = await self._wait(min(poll_s, self._longest_poll_s(), due_s or poll_s))
                poll_s = POLL_FIRST_S if woken or got else min(poll_s * 2, self._desk.poll_s)

    # -- claiming ------------------------------------------------------------------------------

    async def _claim(self, asked: int, tg: TaskGroup) -> tuple[int, float | None]:
        """One claim per lane until the slots are full; how many came, and when a retry is due."""
        got, soonest = 0, None
        lease = self._desk.lease
        if not lease.stands:
            raise BusUnavailable("the lease of this process has run out; waiting for a beat")
        for lane in self.lanes:
            if got == asked:
                break
            messages, due_s = await self._desk.bus.claim(
                lane, asked - got, holder=lease.holder, epoch=lease.epoch, timeout_ms=self._desk.timeout_ms
            )
            for message in messages:
                self.free -= 1
                tg.start_soon(self._process, message)
            got += len(messages)
            if due_s is not None:
                soonest = due_s if soonest is None else min(soonest, due_s)
        return got, soonest

    def _wake(self) -> None:
        self._wakeup.set()

    async def _wait(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self._wakeup.wait()
            return True
        return False

    def _longest_poll_s(self) -> float:
        return self._desk.poll_s if self._desk.listener.pushing else min(DEAF_POLL_S, self._desk.poll_s)

    async def _fall_asleep(self) -> bool:
        """True when this call registered the lanes as asleep."""
        epoch = self._desk.lease.epoch
        if self._asleep_epoch == epoch or not self._desk.listener.pushing:
            return False
        await self._desk.bus.sleep_on(self.lanes, epoch)
        self._asleep_epoch = epoch
        return True

    async def _wake_up_for_good(self, full: int) -> None:
        # Only after two full batches in a row: registering and leaving at every batch would make
        # bus_idle the next table that bloats.
        if self._asleep_epoch and full >= FULL_BATCHES_TO_WAKE:
            epoch, self._asleep_epoch = self._asleep_epoch, 0
            await self._desk.bus.awake_on(self.lanes, epoch)

    def _forget_sleep(self) -> None:
        self._asleep_epoch = 0  # bus_idle is UNLOGGED: after a crash of Postgres it is empty

    # -- one message ---------------------------------------------------------------------------

    async def _process(self, message: Message) -> None:
        started = time.monotonic()
        try:
            outcome = await self._attempt(message)
            if outcome is not None:
                run_ms = (time.monotonic() - started) * 1000
                note = Note(message.key, message.attempts, message.max_attempts, message.queued_ms, run_ms,
                            telemetry.trace_id(message.traceparent or outcome.traceparent))  # fmt: skip
                await self._desk.finisher.submit(outcome, note)
        finally:
            self.free += 1
            self._wake()

    async def _attempt(self, message: Message) -> Outcome | None:
        """Run the handler once; None when there is nothing to write any more."""
        ctx = Context(message, None, self._desk.bus, self._settings)
        running = Running(ctx)
        self._desk.running[message.id] = running
        try:
            if not self._desk.lease.stands:
                running.stop("lease")
            with running.scope:
                return await self._call(message, ctx)
            return self._stopped(running, ctx)
        except Exception as error:  # noqa: BLE001 (whatever a handler raises ends its attempt)
            return failure(_leaf(error), ctx)
        finally:
            del self._desk.running[message.id]

    async def _call(self, message: Message, ctx: Context) -> Outcome | None:
        task, ctx.assignment = decode(message.payload, self._decoder)
        with telemetry.process_span(f"{message.key.service}/{message.key.role}", message.id, message.traceparent):
            if self._is_async:
                result = await self._handle(task, ctx)
            elif self.role.process:
                result = await anyio.to_process.run_sync(self._handle, task, cancellable=True, limiter=self._limiter)
            else:
                # A thread cannot be interrupted: it is abandoned, and its late result is refused.
                result = await anyio.to_thread.run_sync(
                    self._handle, task, ctx, abandon_on_cancel=True, limiter=self._limiter
                )
        await ctx.flush()
        if ctx.finished is not None:
            telemetry.log.info(telemetry.line(f"message.{ctx.finished}", id=message.id, key=message.key))
            return None
        if isinstance(result, Delegate):
            return ctx.delegated(result)
        return await ctx.done(result)

    def _stopped(self, running: Running, ctx: Context) -> Outcome | None:
        """The scope was cancelled: by an operator, by the loss of the lease, by the drain, or by time."""
        if running.why == "cancelled":
            telemetry.log.info(telemetry.line("message.cancelled", id=ctx.message_id, key=ctx.key))
            return None
        if running.why is not None:
            return ctx.outcome("released")
        expires = ctx.message.expires_in_s
        if expires is not None and ctx.message.runtime_s is not None and expires <= ctx.message.runtime_s:
            return ctx.outcome("failed", error=TtlExpired("the time to live ran out during the work").line())
        return ctx.outcome("retry", error=HandlerTimeout().line())


def task_type(handler: Any) -> Any:
    """The type of a handler's first parameter; dict when it has no annotation."""
    target = handler if inspect.isfunction(handler) or inspect.ismethod(handler) else handler.__call__
    names = list(inspect.signature(target).parameters)
    return get_type_hints(target).get(names[0], dict[str, Any]) if names else dict[str, Any]


def decode(payload: bytes, decoder: msgspec.json.Decoder[Any]) -> tuple[Any, Assignment | None]:
    """The task and the assignment of a payload. Raises TaskInvalid with the JSON path."""
    assignment = None
    try:
        task = decoder.decode(payload)
        if b'"__assignment"' in payload:
            try:
                assignment = _ENVELOPE.decode(payload).assignment
            except msgspec.ValidationError as error:
                raise AssignmentInvalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TaskInvalid(str(error)) from error
    return task, assignment


def failure(error: BaseException, ctx: Context) -> Outcome | None:
    """The outcome for an exception; the error class decides what becomes of the message."""
    if isinstance(error, Retry):
        after_ms = None if error.after is None else int(error.after * 1000)
        return ctx.outcome("retry", error=f"retry: {error.why}", retry_ms=after_ms)
    if isinstance(error, Reject):
        return ctx.outcome("failed", error=f"{error.code}: {error.why}")
    if isinstance(error, BusUnavailable):
        return ctx.outcome("released", error=error.line())  # not the message's fault: uncounted
    if isinstance(error, ClaimLost):
        telemetry.log.warning(telemetry.line("message.claim_lost", id=ctx.message_id, key=ctx.key))
        return None
    if not isinstance(error, CogoError):
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        known = Bug if isinstance(error, AssertionError) else HandlerFailed
        telemetry.log.error("".join(traceback.format_exception(error)).rstrip())
        error = known(_printable(detail)[:2_000])
    return ctx.outcome("retry" if error.fate == "retry" else "failed", error=_printable(error.line()))


def _printable(text: str) -> str:
    """Text that a text column takes: no NUL, no lone surrogates."""
    return text.replace("\x00", "\\0").encode("utf-8", "backslashreplace").decode()


def _leaf(error: BaseException) -> BaseException:
    """A handler's task group wraps what it raised; with one exception inside, that one counts."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
