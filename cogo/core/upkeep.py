"""Upkeep that everybody needs: reclaiming, expiry, counters, retention.

The roles `reclaimer` and `retention` name these loops; every process that consumes runs them anyway,
because a bus whose upkeep was not enabled loses work. One process is active at a time, by an
advisory lock inside each transaction, so nothing has to be elected or to recover.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import anyio

from . import telemetry
from .bus import GIVEN_UP
from .errors import BusUnavailable
from .watermark import Watermark

if TYPE_CHECKING:
    from .bus import Bus
    from .db import Connection
    from .runtime import Runtime
    from .settings import Settings

RECLAIM_EVERY_S = 1.0
RECLAIM_BATCH = 1_000
LOOKS = ((float("inf"), 30.0, 30.0), (5.0, 0.0, 0.0))
"""Of the reclaimer: five seconds back each time, and at all claims every half minute."""
ROLL_UP_EVERY = 10
ROLL_UP_BATCH = 20_000
RETAIN_EVERY_S = 3_600.0
RETAIN_BATCH = 5_000
_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"


async def reclaim_once(
    bus: Bus, settings: Settings, *, roll_up: bool = False, mark: Watermark | None = None
) -> int:
    """One round: put back, expire, open doors, cascade, now and then roll up. How many messages moved.

    `mark` remembers up to which fence no claim is left, so that a round need not walk over the index
    entries of all the claims that ended while somebody held a snapshot.
    """
    mark = mark or Watermark(looks=LOOKS)
    moved = 0
    async with bus.db.transaction() as conn:
        row = await (await conn.execute(_LOCK, ("cogo.reclaim",))).fetchone()
        if row is None or not next(iter(row.values())):
            return 0
        after = mark.after()[0]
        args = (RECLAIM_BATCH, settings.lease_ms, settings.reclaim_after_ms, after)
        rows = await (await conn.execute("SELECT * FROM cogo.reclaim(%s, %s, %s, %s)", args)).fetchall()
        oldest = await (await conn.execute("SELECT cogo.oldest_claim(%s) AS fence", (after,))).fetchone()
        mark.claimed([(0, oldest["fence"] if oldest else 0)], full=True)
        for found in rows:
            telemetry.log.warning(
                telemetry.line("message.reclaimed", id=found["id"], now=found["status"], why=found["why"])
            )
        expired = await (await conn.execute("SELECT cogo.expire(%s) AS n", (RECLAIM_BATCH,))).fetchone()
        moved = len(rows) + (expired["n"] if expired else 0)
        if roll_up:
            await _roll_up(conn)
    await bus.db.execute("SELECT cogo.open_doors(%s)", (RECLAIM_BATCH,))
    return moved + int(await bus.db.fetch_value("SELECT cogo.cascade_cancels()"))


async def _roll_up(conn: Connection) -> None:
    moved = ROLL_UP_BATCH
    while moved >= ROLL_UP_BATCH:  # a full batch: there is more, or it would grow for ever
        row = await (await conn.execute("SELECT cogo.roll_up(%s) AS n", (ROLL_UP_BATCH,))).fetchone()
        moved = row["n"] if row else 0


async def reclaim(runtime: Runtime) -> None:
    """The reclaimer's loop: a round each second."""
    outage = telemetry.Outage("reclaimer")
    mark = Watermark(looks=LOOKS)
    turn = 0
    while True:
        try:
            moved = await reclaim_once(
                runtime.bus, runtime.settings, roll_up=turn % ROLL_UP_EVERY == 0, mark=mark
            )
            outage.end()
        except (BusUnavailable, *GIVEN_UP) as error:
            outage.begin(error)
            moved = 0
        turn += 1
        if moved < RECLAIM_BATCH:
            await anyio.sleep(RECLAIM_EVERY_S)


async def retain_once(bus: Bus, days: float) -> int:
    """Delete what is older than `days`; how many messages."""
    after: int | None = 0
    deleted = 0
    while after is not None:
        async with bus.db.transaction() as conn:
            row = await (await conn.execute(_LOCK, ("cogo.retain",))).fetchone()
            if row is None or not next(iter(row.values())):
                return deleted
            found = await (
                await conn.execute("SELECT * FROM cogo.retain(%s, %s, %s)", (days, after, RETAIN_BATCH))
            ).fetchone()
        deleted += found["deleted"] if found else 0
        after = found["next_after"] if found else None
    while await bus.db.fetch_value("SELECT cogo.retain_rest(%s, %s)", (days, RETAIN_BATCH)) >= RETAIN_BATCH:
        pass
    return deleted


async def retain(runtime: Runtime) -> None:
    """The retention's loop: a pass each hour, the first within a minute of the start."""
    outage = telemetry.Outage("retention")
    await anyio.sleep(random.uniform(5, 60))  # spreads the processes of one deployment
    while True:
        try:
            deleted = await retain_once(runtime.bus, runtime.settings.retention_days)
            outage.end()
            if deleted:
                telemetry.log.info(telemetry.line("retention.deleted", messages=deleted))
        except (BusUnavailable, *GIVEN_UP) as error:
            outage.begin(error)
        await anyio.sleep(RETAIN_EVERY_S)
