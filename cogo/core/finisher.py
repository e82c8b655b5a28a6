"""Writes outcomes in batches: whatever gathered while the last batch was being written is the next.

An outcome is kept until the database has accepted or refused it. After a lost connection the batch
is sent again; what is then missing from the answer may have been written by the first try, so the
row itself is read before the claim is called lost.
"""

from __future__ import annotations

import logging

import anyio
import msgspec

from . import telemetry
from .bus import Bus, printable
from .errors import BusUnavailable, ResultInvalid
from .model import Outcome, RoutingKey

BATCH = 500
BACKLOG = 2_000


class Note(msgspec.Struct, frozen=True):
    """What the log line of an outcome says besides the outcome."""

    key: RoutingKey
    attempt: int
    max_attempts: int
    queued_ms: float
    run_ms: float
    trace_id: str | None


def log_end(outcome: Outcome, note: Note, status: str | None) -> None:
    """Exactly one line per ended attempt. status None: the claim was lost, nothing was written."""
    level = logging.INFO if status in ("done", "waiting") else logging.WARNING
    if telemetry.log.isEnabledFor(level):
        telemetry.log.log(level, telemetry.line(
            f"message.{status or 'claim_lost'}", id=outcome.id, key=note.key,
            attempt=f"{note.attempt}/{note.max_attempts}", error=outcome.error, queue_ms=note.queued_ms,
            run_ms=note.run_ms, trace=note.trace_id))  # fmt: skip


class Finisher:
    """One per process; `submit` waits when BACKLOG outcomes are unwritten."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._send, self._receive = anyio.create_memory_object_stream[tuple[Outcome, Note]](BACKLOG)
        self._scope = anyio.CancelScope()
        self._outage = telemetry.Outage("finish")
        self.unwritten: set[int] = set()
        """Fences of the outcomes that the database has neither accepted nor refused yet."""

    async def submit(self, outcome: Outcome, note: Note) -> None:
        self.unwritten.add(outcome.fence)
        await self._send.send((outcome, note))

    def submit_last(self, outcome: Outcome, note: Note) -> None:
        """Submit without waiting, from a task that is being cancelled; what finds no room is dropped."""
        self.unwritten.add(outcome.fence)
        try:
            self._send.send_nowait((outcome, note))
        except (anyio.WouldBlock, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self.unwritten.discard(outcome.fence)  # the reclaimer puts it back

    def close(self, within_s: float) -> None:
        """No more outcomes come; `run` returns when all are written, or after `within_s` without them.

        What could not be written (the database is away) is reclaimed when the lease has ended.
        """
        self._send.close()
        self._scope.deadline = anyio.current_time() + within_s

    async def run(self) -> None:
        with self._scope:
            await self._run()

    async def _run(self) -> None:
        async with self._receive:
            async for first in self._receive:
                batch, again = {first[0].id: first}, None
                while len(batch) < BATCH and again is None:
                    try:
                        one = self._receive.receive_nowait()
                    except (anyio.WouldBlock, anyio.EndOfStream):
                        break
                    # A late outcome of an earlier claim on the same message: the answer, which is by
                    # id, could not tell the two apart.
                    again = one if one[0].id in batch else None
                    batch.setdefault(one[0].id, one)
                await self._write(list(batch.values()))
                if again is not None:
                    await self._write([again])

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
