"""One attempt at one message: decode the task, run the handler, and say how it ended."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any

import anyio
import anyio.to_process
import anyio.to_thread
import msgspec

from . import telemetry
from .context import Context
from .errors import (
    AssignmentInvalid,
    Bug,
    BusUnavailable,
    ClaimLost,
    CogoError,
    HandlerFailed,
    HandlerTimeout,
    PluginFailed,
    TaskInvalid,
    TtlExpired,
)
from .model import Assignment, Delegate, Outcome, Reject, Retry, Role
from .text import printable

ERROR_MAX = 2_000
RETRY_MAX_MS = 366 * 86_400_000
AWAY_RETRY_MS = 1_000
"""A handler that met an unreachable database is not repeated at once: it would spin."""


class Envelope(msgspec.Struct):
    """The part of a payload that core reads by itself."""

    assignment: Assignment | None = msgspec.field(name="__assignment", default=None)


_ENVELOPE = msgspec.json.Decoder(Envelope)


class Running:
    """A handler at work: how to stop it, why it was stopped, and whether its thread goes on without us."""

    __slots__ = ("began", "ctx", "in_thread", "over", "scope", "why")

    def __init__(self, ctx: Context, scope: anyio.CancelScope) -> None:
        """`scope` is around the handler; it may be older than this attempt."""
        self.ctx = ctx
        self.scope = scope
        self.began = time.monotonic()
        self.why: str | None = None
        self.in_thread = False
        self.over = False
        """The loop has done with this attempt; its thread may still run."""
        ctx.within(scope)
        deadline = inf if ctx.deadline is None else ctx.deadline
        if scope.deadline != deadline:  # moving a timer costs more than most no-op handlers
            scope.deadline = deadline

    def stop(self, why: str) -> None:
        self.why = self.why or why
        self.ctx.cancel()
        self.scope.cancel()


class Runner:
    """Runs the handler of one role."""

    def __init__(self, name: str, role: Role, thread_ended: Callable[[Running], None]) -> None:
        """`thread_ended` is called in the loop, for each thread that was abandoned, when it has ended.

        Raises PluginFailed when messages can't be decoded for this handler.
        """
        if role.handle is None:
            raise Bug(f"role {name} has no handler")
        self._handle = role.handle
        self._process = role.process
        self._is_async = _is_async(role.handle)
        self._limiter = anyio.CapacityLimiter(role.concurrency)
        self._thread_ended = thread_ended
        self.traced = False
        try:
            self._decoder = msgspec.json.Decoder(task_type(role.handle))
        except (NameError, TypeError) as error:
            raise PluginFailed(
                f"{name}: the task type of its handler can't be decoded: {error}",
                hint="Annotate the first parameter with a type that is imported at run time.",
            ) from error

    async def run(self, running: Running) -> Outcome | None:
        """Run the handler once; None when there is nothing to write any more.

        Call it within running.scope, and leave that when it was cancelled; `stopped` says what then
        becomes of the message.
        """
        ctx = running.ctx
        try:
            return await self._call(running)
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() == -inf:
                raise  # we are being stopped, not only something in the handler
            ctx.cancel()
            return failure(HandlerFailed("the handler was cancelled by something that it awaited"), ctx)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a handler raises ends its attempt)
            # While it is being stopped, what its cleanup raised says nothing about the message.
            return stopped(running) if running.scope.cancel_called else failure(_leaf(error), ctx)

    async def _call(self, running: Running) -> Outcome | None:
        ctx = running.ctx
        task, ctx.assignment = decode(ctx.message.payload, self._decoder)
        if self.traced:
            with telemetry.process_span(ctx.message):
                result = await self._handled(task, running)
        elif self._is_async:
            result = await self._handle(task, ctx)
        else:
            result = await self._handled(task, running)
        await ctx.flush()
        if ctx.finished is not None:
            telemetry.log.info(telemetry.line(f"message.{ctx.finished}", id=ctx.message_id, key=ctx.key))
            return None
        if isinstance(result, Delegate):
            return ctx.delegated(result)
        return await ctx.done(result)

    async def _handled(self, task: Any, running: Running) -> Any:
        if self._is_async:
            return await self._handle(task, running.ctx)
        if self._process:
            return await anyio.to_process.run_sync(
                self._handle, task, cancellable=True, limiter=self._limiter
            )
        return await self._in_thread(task, running)

    async def _in_thread(self, task: Any, running: Running) -> Any:
        """A thread can't be interrupted: it is abandoned, and its late result is refused."""
        loop = asyncio.get_running_loop()

        def work() -> Any:
            # Each side writes its own flag before it reads the other's, so that at least one of them
            # sees that the thread was abandoned, and the slot comes back exactly once.
            running.in_thread = True
            try:
                return None if running.over else self._handle(task, running.ctx)
            finally:
                running.in_thread = False
                if running.over:
                    with suppress(RuntimeError):  # the loop has ended: nobody counts slots any more
                        loop.call_soon_threadsafe(self._thread_ended, running)

        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)


def _is_async(handler: Any) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 (an object whose __call__ is async)
    )


def task_type(handler: Any) -> Any:
    """The type of a handler's first parameter; dict when it has no annotation.

    Only this one annotation is resolved: others may name what is imported for type checkers alone.
    Raises NameError.
    """
    first = next(iter(inspect.signature(handler).parameters.values()), None)
    if first is None or first.annotation is inspect.Parameter.empty:
        return dict[str, Any]
    if not isinstance(first.annotation, str):
        return first.annotation
    function = handler
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        function = function.func if isinstance(function, functools.partial) else function.__wrapped__
    if not hasattr(function, "__globals__"):
        function = getattr(function, "__func__", None) or type(function).__call__
    return eval(first.annotation, function.__globals__)  # noqa: S307 (the plugin's own annotation)


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
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise TaskInvalid(str(error)) from error
    return task, assignment


def stopped(running: Running) -> Outcome | None:
    """The scope was cancelled: by an operator, by the loss of the claim, by the drain, or by time."""
    ctx = running.ctx
    ctx.cancel()
    if ctx.finished is not None:
        return None
    if running.why in {"cancelled", "claim_lost"}:
        telemetry.log.info(telemetry.line(f"message.{running.why}", id=ctx.message_id, key=ctx.key))
        return None
    if running.why == "lease":
        # Counted, as the reclaimer would: a handler that blocks the loop loses the lease each time.
        return ctx.outcome("retry", error=ClaimLost("the lease of this process ran out").line(), retry_ms=0)
    if running.why is not None:
        return ctx.outcome("released")
    if ctx.expires is not None and ctx.deadline is not None and ctx.expires <= ctx.deadline:
        return ctx.outcome("failed", error=TtlExpired("the time to live ran out during the work").line())
    return ctx.outcome("retry", error=HandlerTimeout().line())


def failure(error: BaseException, ctx: Context) -> Outcome | None:
    """The outcome for an exception; the error class decides what becomes of the message."""
    if isinstance(error, ClaimLost) or ctx.finished is not None:
        telemetry.log.warning(telemetry.line(
            "handler.late_error" if ctx.finished else "message.claim_lost", id=ctx.message_id, key=ctx.key,
            error=printable(f"{type(error).__name__}: {error}")[:ERROR_MAX] if ctx.finished else None))  # fmt: skip
        return None
    if isinstance(error, Retry) and not error.counted:
        after_ms = _milliseconds(error.after) or AWAY_RETRY_MS
        return ctx.outcome("released", error=_text(f"retry: {error.why}"), retry_ms=after_ms)
    if isinstance(error, Retry):
        return ctx.outcome("retry", error=_text(f"retry: {error.why}"), retry_ms=_milliseconds(error.after))
    if isinstance(error, Reject):
        return ctx.outcome("failed", error=_text(f"{error.code}: {error.why}"))
    if isinstance(error, BusUnavailable):  # not the message's fault: uncounted
        return ctx.outcome("released", error=_text(error.line()), retry_ms=AWAY_RETRY_MS)
    if not isinstance(error, CogoError):
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        telemetry.log.error("".join(traceback.format_exception(error)).rstrip())
        error = HandlerFailed(detail)
    return ctx.outcome("retry" if error.fate == "retry" else "failed", error=_text(error.line()))


def _text(line: str) -> str:
    return printable(line)[:ERROR_MAX]


def _milliseconds(after_s: float | None) -> int | None:
    """Retry(after=...) as the database takes it; what makes no sense becomes the lane's backoff."""
    if after_s is None or math.isnan(after_s):
        return None
    return int(min(max(after_s, 0.0) * 1000, RETRY_MAX_MS))


def _leaf(error: BaseException) -> BaseException:
    """A handler's task group wraps what it raised; with one exception inside, that one counts."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
