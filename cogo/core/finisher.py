"""Writes outcomes in batches: whatever gathered while the last batch was being written is the next.

An outcome is kept until the database has accepted or refused it. After a lost connection the batch
is sent again; what is then missing from the answer may have been written by the first try, so the
row itself is read before the claim is called lost.
"""

from __future__ import annotations

import logging
from collections import deque

import anyio
import msgspec

from . import telemetry
from .bus import Bus
from .errors import BusUnavailable, ResultInvalid
from .model import Message, Outcome
from .text import printable

BATCH = 500
BACKLOG = 2_000
WRITERS = 2
"""While one batch waits for its commit, the next is sent on another connection."""


class Note(msgspec.Struct, frozen=True):
    """What the log line of an outcome says besides the outcome."""

    message: Message
    run_s: float


def log_end(outcome: Outcome, note: Note, status: str | None) -> None:
    """Exactly one line per ended attempt. status None: the claim was lost, nothing was written."""
    level = logging.INFO if status in {"done", "waiting"} else logging.WARNING
    if not telemetry.log.isEnabledFor(level):
        return
    message = note.message
    telemetry.log.log(level, telemetry.line(
        f"message.{status or 'claim_lost'}", id=outcome.id, key=message.key,
        attempt=f"{message.attempts}/{message.max_attempts}", error=outcome.error, queue_ms=message.queued_ms,
        run_ms=note.run_s * 1000, trace=telemetry.trace_id(message.traceparent or outcome.traceparent)))  # fmt: skip


class Finisher:
    """One per process. Who claims waits for `room` first, so at most BACKLOG outcomes wait to be written."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: deque[tuple[Outcome, Note]] = deque()
        self._more = anyio.Event()
        self._room = anyio.Event()
        self._closed = False
        self._writing = 0
        self._scope = anyio.CancelScope()
        self._outage = telemetry.Outage("finish")
        self.unwritten: set[int] = set()
        """Fences of the outcomes that the database has neither accepted nor refused yet."""

    async def room(self) -> None:
        """Wait while BACKLOG outcomes are unwritten."""
        while len(self._waiting) >= BACKLOG:
            await self._room.wait()

    def submit(self, outcome: Outcome, note: Note) -> None:
        """Never waits: also for a task that is being cancelled."""
        self.unwritten.add(outcome.fence)
        self._waiting.append((outcome, note))
        if self._worth_writing():
            self._more.set()

    def _worth_writing(self) -> bool:
        # A second batch is worth its commit only when it is large; else it would split the first one's successor.
        return bool(self._waiting) and (
            self._writing == 0 or (self._writing < WRITERS and len(self._waiting) >= BATCH // 2)
        )

    def close(self, within_s: float) -> None:
        """No more outcomes come; `run` returns when all are written, or after `within_s` without them.

        What could not be written (the database is away) is reclaimed when the lease has ended.
        """
        self._closed = True
        self._more.set()
        self._scope.deadline = anyio.current_time() + within_s

    async def run(self) -> None:
        """Write what is submitted, until close()."""
        with self._scope:
            async with anyio.create_task_group() as writers:
                while self._waiting or not self._closed:
                    if self._worth_writing():
                        self._writing += 1
                        writers.start_soon(self._write_one, self._next_batch())
                    else:
                        self._more = anyio.Event()
                        await self._more.wait()

    async def _write_one(self, batch: list[tuple[Outcome, Note]]) -> None:
        try:
            await self._write(batch)
        finally:
            self._writing -= 1
            self._more.set()

    def _next_batch(self) -> list[tuple[Outcome, Note]]:
        batch: dict[int, tuple[Outcome, Note]] = {}
        # One outcome of each message: the late one of an earlier claim waits for the next batch, since
        # the answer, which is by id, could not tell the two apart.
        while self._waiting and len(batch) < BATCH and self._waiting[0][0].id not in batch:
            one = self._waiting.popleft()
            batch[one[0].id] = one
        if len(self._waiting) < BACKLOG:
            self._room.set()
            self._room = anyio.Event()
        return list(batch.values())

    async def _write(self, batch: list[tuple[Outcome, Note]]) -> None:
        resent = False
        pause_s = 0.05
        while True:
            try:
                accepted = await self._bus.finish([outcome for outcome, _ in batch])
            except BusUnavailable as error:
                self._outage.begin(error)
                resent = True
                await anyio.sleep(pause_s)
                pause_s = min(pause_s * 2, 1.0)
            except Exception as error:  # noqa: BLE001 (whatever it is, the other outcomes must be written)
                await self._write_singly(batch, error)
                return
            else:
                self._outage.end()
                for outcome, note in batch:
                    status: str | None = accepted.get(outcome.id)
                    if status is None and resent:
                        status = await self._read_back(outcome)
                    log_end(outcome, note, status)
                    self.unwritten.discard(outcome.fence)
                return

    async def _write_singly(self, batch: list[tuple[Outcome, Note]], error: Exception) -> None:
        """One bad outcome must not hold up the others: find it, and fail its message."""
        if len(batch) > 1:
            for one in batch:
                await self._write([one])
            return
        outcome, note = batch[0]
        why = (str(error).splitlines() or [type(error).__name__])[0]
        reason = ResultInvalid(printable(f"the outcome could not be stored: {why}"))
        telemetry.log.error(telemetry.line("finish.refused", id=outcome.id, error=reason.line()))
        if outcome.kind == "failed" and outcome.error == reason.line():
            self.unwritten.discard(outcome.fence)
            log_end(outcome, note, None)  # even the bare failure is refused: the reclaimer ends it
            return
        bare = Outcome(id=outcome.id, fence=outcome.fence, kind="failed", error=reason.line())
        await self._write([(bare, note)])

    async def _read_back(self, outcome: Outcome) -> str | None:
        """The status that the first try has written, if it was that; None: the claim was stale."""
        row = None
        try:
            sql = "SELECT status, fence FROM public.agent_messages WHERE id = %s"
            row = await self._bus.db.fetch_one(sql, (outcome.id,))
        except BusUnavailable:
            return None
        possible = {"done": {"done"}, "failed": {"failed"}, "delegated": {"waiting", "done", "failed"}}
        written = row is not None and row["status"] in possible.get(outcome.kind, {"queued", "failed"})
        return str(row["status"]) if row is not None and written else None
