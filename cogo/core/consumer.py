"""Feeds one role: claim a batch, run the handlers, submit the outcomes.

There is no internal queue: a message in memory is a claimed row with a slot. A claim that came back
short is not repeated at once; the consumer registers as asleep, looks once more, and then waits for
a wakeup, the next retry, or its own short polls (an insert that was uncommitted at the second look
was not notified).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio

from . import telemetry
from .attempt import Runner, Running
from .bus import Bus
from .context import CHUNK_EVERY_S, Context
from .errors import Bug, BusUnavailable, ClaimLost
from .finisher import Finisher, Note
from .lease import Lease
from .listener import DEAF_POLL_S, Listener
from .model import Lane, Message, Outcome, Role

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

POLL_FIRST_S = 0.005
FULL_BATCHES_TO_WAKE = 2
ASLEEP_AT_LEAST_S = 1.0
SUSPECT_S = 60.0
RECOVER_EVERY_S = 5.0


class Desk:
    """What all consumers of a process share."""

    def __init__(
        self,
        bus: Bus,
        listener: Listener,
        lease: Lease,
        finisher: Finisher,
        *,
        poll_s: float,
        timeout_ms: int,
    ) -> None:
        self.bus = bus
        self.listener = listener
        self.lease = lease
        self.finisher = finisher
        self.poll_s = poll_s
        self.timeout_ms = timeout_ms
        self.running: dict[int, Running] = {}
        """By fence: a message that was reclaimed may be back here while its old handler still ends."""
        self._claims: list[float] = []
        """When each claim that is under way was sent (monotonic seconds)."""
        self._suspect_until = 0.0
        self._recover_at = 0.0
        listener.on_cancel(self.cancel)
        lease.on_lost = self.lease_lost

    def cancel(self, message_id: int) -> None:
        """The message was cancelled: stop its handler if it runs here."""
        for running in list(self.running.values()):
            if running.ctx.message_id == message_id:
                running.stop("cancelled")

    def lease_lost(self) -> None:
        """Nobody may act on a claim whose lease may have ended."""
        self.stop_all("lease")

    def stop_all(self, why: str) -> None:
        if self.running:
            telemetry.log.warning(telemetry.line("handlers.stopped", why=why, count=len(self.running)))
        for running in list(self.running.values()):
            running.stop(why)

    @property
    def suspects(self) -> bool:
        """True for a while after a claim broke off: it may have committed, and nobody here knows of it."""
        return time.monotonic() < self._suspect_until

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Around each claim, until its messages are known here."""
        sent = time.monotonic()
        self._claims.append(sent)
        try:
            yield
        finally:
            self._claims.remove(sent)

    def suspect(self) -> None:
        self._suspect_until = time.monotonic() + SUSPECT_S

    async def recover(self) -> None:
        """Put back the claims whose answer was lost with a connection. Raises BusUnavailable."""
        if not self.suspects or time.monotonic() < self._recover_at:
            return
        self._recover_at = time.monotonic() + RECOVER_EVERY_S
        known = [*self.running, *self.finisher.unwritten]
        # A claim whose answer is still on its way is not lost: only what is older than all of those.
        waited_s = time.monotonic() - min(self._claims, default=time.monotonic())
        older_ms = int((waited_s + RECOVER_EVERY_S) * 1000)
        count = await self.bus.give_back(self.lease.holder, self.lease.epoch, known, older_ms)
        if count:
            telemetry.log.warning(
                telemetry.line("claims.given_back", count=count, why="their answer was lost")
            )


class Consumer:
    """One role's loop: claims for its lanes as long as it has free slots."""

    def __init__(self, name: str, role: Role, lanes: Sequence[Lane], desk: Desk, settings: Any) -> None:
        """Raises PluginFailed when messages can't be decoded for the role's handler."""
        if not lanes:
            raise Bug(f"role {name} has no lanes")
        self.name = name
        self.role = role
        self.lanes = list(lanes)
        self.free = role.concurrency
        self._desk = desk
        self._settings = settings
        self._runner = Runner(name, role, self._thread_ended)
        self._abandoned: set[Running] = set()
        self._unflushed: set[Running] = set()
        self._chunk = anyio.Event()
        self._wakeup = anyio.Event()
        self._asleep: tuple[int, int] | None = None
        self._asleep_since = 0.0
        self._stopping = False
        self._outage = telemetry.Outage(f"consumer.{name}")
        for lane in self.lanes:
            desk.listener.on_lane(lane, self._wake)
        desk.listener.on_connect(self._forget_sleep)

    @property
    def abandoned(self) -> int:
        """Threads that still run though their attempt is over: they can't be interrupted."""
        return len(self._abandoned)

    def stop_claiming(self) -> None:
        """Let `run` return when the handlers that are at work have ended."""
        self._stopping = True
        self._wake()

    async def run(self) -> None:
        """Claim and handle until stop_claiming()."""
        try:
            async with anyio.create_task_group() as side:
                side.start_soon(self._flush_late)
                async with anyio.create_task_group() as handlers:
                    await self._feed(handlers)
                side.cancel_scope.cancel()
        finally:
            self._desk.suspect()  # a claim may have been cut off

    async def _feed(self, handlers: TaskGroup) -> None:
        poll_s, full = POLL_FIRST_S, 0
        while not self._stopping:
            self._wakeup = anyio.Event()  # before the claim: a wakeup during it must not be lost
            asked = self.free
            if asked == 0:
                await self._wait(self._desk.poll_s)
                continue
            try:
                got, due_s = await self._claim(asked, handlers)
                self._outage.end()
                full = full + 1 if got == asked else 0
                if got == asked:
                    await self._wake_up_for_good(full)
                    continue
                await self._desk.recover()
                if await self._fall_asleep():
                    continue  # look once more: what came before the registration was not notified
            except BusUnavailable as error:
                self._outage.begin(error)
                self._desk.suspect()
                await self._wait(0.5)
                continue
            woken = await self._wait(min(poll_s, self._longest_poll_s(), due_s or poll_s))
            poll_s = POLL_FIRST_S if woken or got else min(poll_s * 2, self._desk.poll_s)

    # -- claiming ------------------------------------------------------------------------------

    async def _claim(self, asked: int, handlers: TaskGroup) -> tuple[int, float | None]:
        """One claim per lane until the slots are full; how many came, and when a retry is due."""
        got, soonest = 0, None
        lease = self._desk.lease
        if not lease.stands:
            raise BusUnavailable("the lease of this process has run out; waiting for a beat")
        self.lanes.append(self.lanes.pop(0))  # take turns: a busy shard must not starve the others
        for lane in self.lanes:
            if got == asked:
                break
            with self._desk.claiming():
                messages, due_s = await self._desk.bus.claim(
                    lane,
                    asked - got,
                    holder=lease.holder,
                    epoch=lease.epoch,
                    timeout_ms=self._desk.timeout_ms,
                )
            for message in messages:
                self.free -= 1
                handlers.start_soon(self._process, message)
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
        own = RECOVER_EVERY_S if self._desk.suspects else self._desk.poll_s
        return min(own, self._desk.poll_s if self._desk.listener.pushing else DEAF_POLL_S)

    async def _fall_asleep(self) -> bool:
        """True when this call registered the lanes as asleep."""
        lease = self._desk.lease
        if self._asleep == lease.term or not self._desk.listener.pushing:
            return False
        term = lease.term
        await self._desk.bus.sleep_on(self.lanes, lease.epoch)
        self._asleep, self._asleep_since = term, time.monotonic()
        return True

    async def _wake_up_for_good(self, full: int) -> None:
        # Only after two full batches in a row, and not within a second of falling asleep: registering
        # and leaving at every batch would make bus_idle the next table that bloats.
        awake = self._asleep is None or time.monotonic() - self._asleep_since < ASLEEP_AT_LEAST_S
        if not awake and full >= FULL_BATCHES_TO_WAKE:
            self._asleep = None
            await self._desk.bus.awake_on(self.lanes, self._desk.lease.epoch)

    def _forget_sleep(self) -> None:
        self._asleep = None  # bus_idle is UNLOGGED: after a crash of Postgres it is empty

    # -- one message ---------------------------------------------------------------------------

    async def _process(self, message: Message) -> None:
        started = time.monotonic()
        desk = self._desk
        ctx = Context(message, None, desk.bus, self._settings)
        running = desk.running[message.fence] = Running(ctx)
        ctx.on_chunk = lambda: self._flush_soon(running)
        if not desk.lease.stands:
            running.stop("lease")
        outcome = None
        try:
            outcome = await self._runner.run(running)
            if outcome is not None:
                await desk.finisher.submit(outcome, self._note(ctx, outcome, started))
        except anyio.get_cancelled_exc_class():
            # This consumer is being stopped: give the message back now, not at the end of the lease.
            ctx.cancel()
            outcome = outcome or ctx.outcome("released")
            desk.finisher.submit_last(outcome, self._note(ctx, outcome, started))
            raise
        finally:
            del desk.running[message.fence]
            self._give_slot_back(running)

    def _note(self, ctx: Context, outcome: Outcome, started: float) -> Note:
        message = ctx.message
        return Note(
            key=message.key, attempt=message.attempts, max_attempts=message.max_attempts,
            queued_ms=message.queued_ms, run_ms=(time.monotonic() - started) * 1000,
            trace_id=telemetry.trace_id(message.traceparent or outcome.traceparent),
        )  # fmt: skip

    def _give_slot_back(self, running: Running) -> None:
        """At once, or when the abandoned thread has ended."""
        running.over = True
        if running.in_thread:
            self._abandoned.add(running)
            telemetry.log.warning(telemetry.line("handler.abandoned", role=self.name,
                id=running.ctx.message_id, threads=len(self._abandoned)))  # fmt: skip
        else:
            self.free += 1
            self._wake()

    def _thread_ended(self, running: Running) -> None:
        if running in self._abandoned:
            self._abandoned.remove(running)
            self.free += 1
            self._wake()

    # -- streamed answers ----------------------------------------------------------------------

    def _flush_soon(self, running: Running) -> None:
        self._unflushed.add(running)
        self._chunk.set()

    async def _flush_late(self) -> None:
        """Write the progress that no later call of progress() took along."""
        while True:
            await self._chunk.wait()
            await anyio.sleep(CHUNK_EVERY_S)
            self._chunk = anyio.Event()
            late, self._unflushed = self._unflushed, set()
            for running in late:
                try:
                    await running.ctx.flush()
                except ClaimLost:
                    running.stop("claim_lost")
                except Exception as error:  # noqa: BLE001 (one stream must not end the role)
                    telemetry.log.error(
                        telemetry.line("chunk.refused", id=running.ctx.message_id, error=error)
                    )
