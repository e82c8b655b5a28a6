"""Feeds one role: claim a batch, run the handlers, submit the outcomes.

There is no internal queue: a message in memory is a claimed row with a slot. A claim that came back
short is not repeated at once; the consumer registers as asleep, looks once more, and then waits for
a wakeup, the next retry, or its own short polls (an insert that was uncommitted at the second look
was not notified).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio

from . import telemetry
from .attempt import Runner, Running, stopped
from .bus import Bus
from .context import CHUNK_EVERY_S, Context
from .errors import Bug, BusUnavailable, ClaimLost
from .finisher import BATCH, Finisher, Note
from .lease import Lease
from .listener import DEAF_POLL_S, Listener
from .model import Lane, Message, Outcome, Role
from .watermark import LongTransactions, Watermark

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

POLL_FIRST_S = 0.005
FULL_BATCHES_TO_WAKE = 2
BUSY_PER_S = 200.0
"""With so many messages a second polls every POLL_FIRST_S find more than wakeups would, and cost less."""
ASLEEP_AT_LEAST_S = 1.0
SUSPECT_S = 60.0
RECOVER_EVERY_S = 5.0
WATCH_EVERY_S = 5.0
TURN_S = 0.005
"""So long a slot goes on with handlers that never wait before it lets others have the loop."""


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
        self.unstarted: set[int] = set()
        """Fences of messages that were claimed and that no slot has begun yet."""
        self._sweepers: list[Callable[[], None]] = []
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
        known = [*self.running, *self.unstarted, *self.finisher.unwritten]
        # A claim whose answer is still on its way is not lost: only what is older than all of those.
        waited_s = time.monotonic() - min(self._claims, default=time.monotonic())
        older_ms = int((waited_s + RECOVER_EVERY_S) * 1000)
        count = await self.bus.give_back(self.lease.holder, self.lease.epoch, known, older_ms)
        if count:
            telemetry.log.warning(
                telemetry.line("claims.given_back", count=count, why="their answer was lost")
            )

    def on_sweep(self, sweep: Callable[[], None]) -> None:
        """`sweep` is called when messages may have appeared behind a watermark."""
        self._sweepers.append(sweep)

    async def watch_transactions(self) -> None:
        """Have every lane swept when a transaction ends that was open for long (see watermark)."""
        long = LongTransactions()
        sql = (
            "SELECT coalesce(array_agg(x::text::bigint), '{}') FROM pg_snapshot_xip(pg_current_snapshot()) x"
        )
        while True:
            await anyio.sleep(WATCH_EVERY_S)
            with suppress(BusUnavailable):
                if long.ended(await self.bus.db.fetch_value(sql)):
                    for sweep in self._sweepers:
                        sweep()


class Pace:
    """How many messages a second came, over the last second or longer."""

    def __init__(self) -> None:
        self.per_s = 0.0
        self._count = 0
        self._since = time.monotonic()

    def note(self, count: int) -> None:
        self._count += count
        elapsed_s = time.monotonic() - self._since
        if elapsed_s >= 1.0:
            self.per_s = self._count / elapsed_s
            self._count, self._since = 0, time.monotonic()


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
        self._watermarks = {lane: Watermark() for lane in self.lanes}
        self._slots: TaskGroup
        self._ready: deque[Message] = deque()
        """Claimed, and begun by nobody yet: for the moment until a slot runs."""
        self._slot_starts = False
        self._full = False
        """Every slot is taken, and the feed waits for one."""
        self._abandoned: set[Running] = set()
        self._unflushed: set[Context] = set()
        self._chunk = anyio.Event()
        self._wakeup = anyio.Event()
        self._asleep: tuple[int, int] | None = None
        self._asleep_since = 0.0
        self._poll_s = POLL_FIRST_S
        self._pace = Pace()
        self._full_claims = 0
        self._stopping = False
        self._outage = telemetry.Outage(f"consumer.{name}")
        for lane in self.lanes:
            desk.listener.on_lane(lane, self._wake)
        desk.listener.on_connect(self._reconnected)
        desk.on_sweep(self._swept)

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
                async with anyio.create_task_group() as slots:
                    self._slots = slots
                    await self._feed()
                side.cancel_scope.cancel()
        finally:
            self._desk.suspect()  # a claim may have been cut off
            self._give_back_unstarted()

    async def _feed(self) -> None:
        while not self._stopping:
            self._wakeup = anyio.Event()  # before the claim: a wakeup during it must not be lost
            await self._desk.finisher.room()
            try:
                wait_s = await self._round()
                self._outage.end()
            except BusUnavailable as error:
                self._outage.begin(error)
                self._desk.suspect()
                self._sweep()
                wait_s = 0.5
            if wait_s and await self._wait(wait_s):
                self._poll_s = POLL_FIRST_S

    async def _round(self) -> float:
        """One claim; for how many seconds at most to wait for a wakeup before the next."""
        asked = min(self.free, BATCH)
        self._full = asked == 0
        if self._full:
            await self._stay_awake()
            return self._desk.poll_s
        got, due_s = await self._claim(asked)
        self._pace.note(got)
        self._full_claims = self._full_claims + 1 if got == asked else 0
        if got == asked:
            if self._full_claims >= FULL_BATCHES_TO_WAKE:
                await self._stay_awake()
            return 0.0
        await self._desk.recover()
        if self._pace.per_s >= BUSY_PER_S:
            await self._stay_awake()
            return POLL_FIRST_S
        if await self._fall_asleep():
            return 0.0  # look once more: what came before the registration was not notified
        wait_s = min(self._poll_s, self._longest_poll_s(), due_s or self._poll_s)
        self._poll_s = POLL_FIRST_S if got else min(self._poll_s * 2, self._desk.poll_s)
        return wait_s

    # -- claiming ------------------------------------------------------------------------------

    async def _claim(self, asked: int) -> tuple[int, float | None]:
        """One claim per lane until the slots are full; how many came, and when a retry is due."""
        got, soonest = 0, None
        lease = self._desk.lease
        if not lease.stands:
            raise BusUnavailable("the lease of this process has run out; waiting for a beat")
        self.lanes.append(self.lanes.pop(0))  # take turns: a busy shard must not starve the others
        for lane in self.lanes:
            if got == asked:
                break
            watermark = self._watermarks[lane]
            with self._desk.claiming():
                claimed = await self._desk.bus.claim(
                    lane, asked - got, holder=lease.holder, epoch=lease.epoch,
                    timeout_ms=self._desk.timeout_ms, after=watermark.after(),
                )  # fmt: skip
                self._start(claimed.messages)
            watermark.claimed(claimed.marks, full=len(claimed.messages) == asked - got)
            got += len(claimed.messages)
            if claimed.due_s is not None:
                soonest = claimed.due_s if soonest is None else min(soonest, claimed.due_s)
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

    async def _stay_awake(self) -> None:
        """From now on nobody need notify: this consumer looks by itself, soon enough.

        A NOTIFY makes the commits of all producers wait for each other. Not within a second of falling
        asleep: registering and leaving at every batch would make bus_idle the next table that bloats.
        """
        if self._asleep is not None and time.monotonic() - self._asleep_since >= ASLEEP_AT_LEAST_S:
            self._asleep = None
            await self._desk.bus.awake_on(self.lanes, self._desk.lease.epoch)

    def _reconnected(self) -> None:
        self._asleep = None  # bus_idle is UNLOGGED: after a crash of Postgres it is empty
        self._sweep()

    def _swept(self) -> None:
        self._sweep()
        self._wake()

    def _sweep(self) -> None:
        for watermark in self._watermarks.values():
            watermark.sweep()

    # -- one message ---------------------------------------------------------------------------

    def _start(self, messages: Sequence[Message]) -> None:
        self.free -= len(messages)
        self._desk.unstarted.update([message.fence for message in messages])
        self._ready.extend(messages)
        self._runner.traced = telemetry.traced()
        self._start_slot()

    def _start_slot(self) -> None:
        if self._ready and not self._slot_starts:
            self._slot_starts = True
            self._slots.start_soon(self._slot)

    async def _slot(self) -> None:
        """Handles one message after the other, as long as there are any that nobody has begun.

        Before it begins one it has the next slot started, which the loop runs as soon as this handler
        waits for something. So handlers run side by side, but a task and a cancel scope are made for each
        handler that waits, not for each message: they cost more than all the rest of the way.
        """
        self._slot_starts = False
        while self._ready:
            with anyio.CancelScope() as scope:
                await self._handle_ready(scope)

    async def _handle_ready(self, scope: anyio.CancelScope) -> None:
        turn_ends = time.monotonic() + TURN_S
        while self._ready and not scope.cancel_called:
            message = self._ready.popleft()
            self._start_slot()
            running = self._begin(message, scope)
            outcome: Outcome | None = None
            try:
                outcome = await self._run(running)
            except anyio.get_cancelled_exc_class():
                outcome = self._cut_off(running, by_us=scope.cancel_called)
                raise
            finally:
                self._end(running, outcome)
            if time.monotonic() > turn_ends:  # the network must not wait for 500 handlers
                await anyio.lowlevel.checkpoint()
                turn_ends = time.monotonic() + TURN_S

    async def _run(self, running: Running) -> Outcome | None:
        if not self._desk.lease.stands:
            return running.ctx.outcome("released")
        return await self._runner.run(running)

    def _cut_off(self, running: Running, *, by_us: bool) -> Outcome | None:
        if by_us:
            return stopped(running)
        # The whole consumer is being stopped: give the message back now, not at the end of the lease.
        running.ctx.cancel()
        return running.ctx.outcome("released")

    def _begin(self, message: Message, scope: anyio.CancelScope) -> Running:
        ctx = Context(message, None, self._desk.bus, self._settings)
        running = self._desk.running[message.fence] = Running(ctx, scope)
        ctx.on_chunk = self._flush_soon
        self._desk.unstarted.discard(message.fence)
        return running

    def _end(self, running: Running, outcome: Outcome | None) -> None:
        message = running.ctx.message
        running.ctx.within(None)
        if outcome is not None:
            self._desk.finisher.submit(outcome, Note(message, time.monotonic() - running.began))
        del self._desk.running[message.fence]
        self._give_slot_back(running)

    def _give_back_unstarted(self) -> None:
        for message in self._ready:
            released = Outcome(id=message.id, fence=message.fence, kind="released")
            self._desk.finisher.submit(released, Note(message, 0.0))
            self._desk.unstarted.discard(message.fence)
        self._ready.clear()

    def _give_slot_back(self, running: Running) -> None:
        """At once, or when the abandoned thread has ended."""
        running.over = True
        if running.in_thread:
            self._abandoned.add(running)
            telemetry.log.warning(telemetry.line("handler.abandoned", role=self.name,
                id=running.ctx.message_id, threads=len(self._abandoned)))  # fmt: skip
        else:
            self._free_slot()

    def _thread_ended(self, running: Running) -> None:
        if running in self._abandoned:
            self._abandoned.remove(running)
            self._free_slot()

    def _free_slot(self) -> None:
        self.free += 1
        if self._full:  # only then is anybody waiting for a slot
            self._wake()

    # -- streamed answers ----------------------------------------------------------------------

    def _flush_soon(self, ctx: Context) -> None:
        self._unflushed.add(ctx)
        self._chunk.set()

    async def _flush_late(self) -> None:
        """Write the progress that no later call of progress() took along."""
        while True:
            await self._chunk.wait()
            await anyio.sleep(CHUNK_EVERY_S)
            self._chunk = anyio.Event()
            await self._flush_all()

    async def _flush_all(self) -> None:
        late, self._unflushed = self._unflushed, set()
        for ctx in late:
            try:
                await ctx.flush()
            except ClaimLost:
                if (running := self._desk.running.get(ctx.message.fence)) is not None:
                    running.stop("claim_lost")
            except Exception as error:  # noqa: BLE001 (one stream must not end the role)
                telemetry.log.error(telemetry.line("chunk.refused", id=ctx.message_id, error=error))
