"""Writes outcomes in batches: whatever gathered while the last batch was being written is the next.

An outcome is kept until the database has accepted or refused it. After a lost connection the batch
is sent again; what is then missing from the answer may have been written by the first try, so the
row itself is read before the claim is called lost.
"""

from __future__ import annotations

import logging
from typing import Any

import anyio
import msgspec
import psycopg

from . import telemetry
from .bus import Bus
from .errors import BusUnavailable, CogoError, ResultInvalid
from .model import TERMINAL, Outcome, RoutingKey

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
        self._outage = telemetry.Outage("finish")

    async def submit(self, outcome: Outcome, note: Note) -> None:
        await self._send.send((outcome, note))

    def close(self) -> None:
        """No more outcomes come; `run` returns when all are written."""
        self._send.close()

    async def run(self) -> None:
        async with self._receive:
            async for first in self._receive:
                batch = [first]
                while len(batch) < BATCH:
                    try:
                        batch.append(self._receive.receive_nowait())
                    except (anyio.WouldBlock, anyio.EndOfStream):
                        break
                await self._write(batch)

    async def _write(self, batch: list[tuple[Outcome, Note]]) -> None:
        resent = False
        pause_s = 0.05
        while True:
            try:
                accepted = await self._bus.finish([outcome for outcome, _ in batch])
            except (BusUnavailable, psycopg.errors.DeadlockDetected) as error:
                self._outage.begin(error)
                resent = True
                await anyio.sleep(pause_s)
                pause_s = min(pause_s * 2, 1.0)
            except (psycopg.Error, CogoError) as error:
                await self._write_singly(batch, error)
                return
            else:
                self._outage.end()
                for outcome, note in batch:
                    status: str | None = accepted.get(outcome.id)
                    if status is None and resent:
                        status = await self._read_back(outcome)
                    log_end(outcome, note, status)
                return

    async def _write_singly(self, batch: list[tuple[Outcome, Note]], error: Exception) -> None:
        """One bad outcome must not hold up the others: find it, and fail its message."""
        if len(batch) > 1:
            for one in batch:
                await self._write([one])
            return
        outcome, note = batch[0]
        reason = ResultInvalid(f"the outcome could not be stored: {str(error).splitlines()[0]}")
        telemetry.log.error(telemetry.line("finish.refused", id=outcome.id, error=reason.line()))
        if outcome.kind == "failed" and outcome.error == reason.line():
            log_end(outcome, note, None)  # even the bare failure is refused: the reclaimer ends it
            return
        bare = Outcome(id=outcome.id, fence=outcome.fence, kind="failed", error=reason.line())
        await self._write([(bare, note)])

    async def _read_back(self, outcome: Outcome) -> str | None:
        sql = "SELECT status, fence FROM public.agent_messages WHERE id = %s"
        try:
            row = await self._bus.db.fetch_one(sql, (outcome.id,))
        except BusUnavailable:
            return None
        expected: dict[str, Any] = {"done": "done", "failed": "failed", "delegated": "waiting"}
        settled = row is not None and (row["status"] in TERMINAL or row["status"] == "waiting")
        return expected.get(outcome.kind, "queued") if settled else None
