"""What operators and careful producers ask of lanes: pause, dead letters, depth; and the indexes lanes want.

Policy is in sql/functions/25_claim_fair.sql and 45_flow.sql.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import anyio
import msgspec
import psycopg
from psycopg.rows import dict_row

from . import telemetry
from .db import Connection, Database, connect, translated
from .errors import Invalid, LaneFull, RoutingInvalid
from .model import Lane, RoutingKey

REDRIVE_BATCH = 1_000
REDRIVE_MAX = 1_000_000
DEPTH_MAX = 100_000
DEPTH_AGE_S = 1.0
"""So long a counted depth is good for; what this process sends meanwhile is added to it."""
DEPTH_FULL_AGE_S = 0.1
"""The same while it says that the lane is full, so that room is noticed soon."""
INDEX_WAIT_S = 30.0
"""How long making an index may wait for old transactions before it gives up for now."""

REDRIVE = """
SELECT redriven, refused FROM cogo.redrive(%(service)s, %(role)s, %(tenants)s::text[], %(code)s,
  %(before)s::timestamptz, %(ids)s::bigint[], %(limit)s, %(actor)s, %(reason)s, %(dry_run)s)
"""
LANES = """
SELECT l.service, l.role, cogo.depth(l.service, l.role, NULL, %s) AS waiting,
  (SELECT coalesce(sum(n), 0)::bigint FROM unnest((cogo.running(l.service, l.role)).counts) AS n) AS running,
  l.paused_at, l.paused_tenants, l.fair, l.limits,
  NOT EXISTS (SELECT FROM cogo.lane_indexes(l.service, l.role) i WHERE i.made IS NOT TRUE) AS indexed
FROM cogo.bus_lanes l ORDER BY 1, 2
"""
KNOWN = """
SELECT EXISTS (SELECT FROM cogo.bus_lanes WHERE service = %(service)s AND role = %(role)s)
  OR cogo.depth(%(service)s, %(role)s, NULL, 1) > 0
"""


class DeadLetters(msgspec.Struct, frozen=True, kw_only=True):
    """Failed messages of one lane with one error code."""

    service: str
    role: str
    code: str
    n: int
    answers: int
    """How many of them answered another message: they come back only with their roots."""
    tenants: int
    first_seen: datetime | None
    last_seen: datetime | None
    sample_id: int
    sample_error: str | None
    capped: bool
    """True: there are more failed messages than were looked at, so the numbers are too low."""


class Redriven(msgspec.Struct, frozen=True):
    """How many messages went back to their lanes, and how many were refused because they were answers."""

    redriven: int
    refused: int


class _Gauge(msgspec.Struct):
    """What is known of a lane's depth: counted at `at` up to `cap`, and what was sent since."""

    depth: int = 0
    cap: int = 0
    at: float = float("-inf")

    def stale(self, at_most: int) -> bool:
        age_s = time.monotonic() - self.at
        return age_s > (DEPTH_FULL_AGE_S if self.depth >= at_most else DEPTH_AGE_S) or self.cap < at_most


def service_and_role(lane: str) -> tuple[str, str]:
    """`service/role`. Raises RoutingInvalid for anything else."""
    key = RoutingKey.parse(lane)
    if lane != f"{key.service}/{key.role}":
        raise RoutingInvalid(f"{lane!r} is not service/role: this concerns a role with all its shards")
    return key.service, key.role


class Operations:
    """The part of `Bus` that operators use."""

    db: Database

    def __init__(self) -> None:
        self._gauges: dict[Lane, _Gauge] = {}

    # -- pause ---------------------------------------------------------------------------------

    async def pause(self, lane: str, *, tenant: str | None = None, actor: str, reason: str = "") -> bool:
        """Claim nothing more of `service/role`, or of one tenant in it; what runs goes on.

        False when it was paused before. Raises RoutingInvalid, and Invalid for a lane that nobody knows.
        """
        service, role = service_and_role(lane)
        if not await self.db.fetch_value(KNOWN, {"service": service, "role": role}):
            raise Invalid(
                f"no process has served {lane} and nothing waits in it",
                hint="`cogo lanes` lists the lanes that are known.",
            )
        return await self._switch("pause", service, role, tenant, actor, reason)

    async def resume(self, lane: str, *, tenant: str | None = None, actor: str, reason: str = "") -> bool:
        """The opposite of `pause`; False when it was not paused. A lane's resume leaves its tenants paused."""
        return await self._switch("resume", *service_and_role(lane), tenant, actor, reason)

    async def _switch(
        self, what: str, service: str, role: str, tenant: str | None, actor: str, reason: str
    ) -> bool:
        if tenant is not None:
            RoutingKey.parse(f"{service}/{role}", tenant=tenant)
        args = (service, role, tenant, actor, reason)
        return bool(await self.db.fetch_value(f"SELECT cogo.{what}(%s, %s, %s, %s, %s)", args))

    async def lanes(self) -> list[dict[str, Any]]:
        """Every lane that a process has published, with its policy and what waits and runs in it."""
        return await self.db.fetch(LANES, (DEPTH_MAX,))

    # -- dead letters --------------------------------------------------------------------------

    async def dead(
        self, lane: str | None = None, *, tenants: Sequence[str] | None = None, limit: int = 100
    ) -> list[DeadLetters]:
        """Failed messages grouped by lane and error code, the most frequent first."""
        service, role = (None, None) if lane is None else service_and_role(lane)
        args = (service, role, None if tenants is None else list(tenants), limit)
        rows = await self.db.fetch("SELECT * FROM cogo.dead_letters(%s, %s, %s::text[], %s)", args)
        return [DeadLetters(**row) for row in rows]

    async def redrive(
        self, lane: str | None = None, *, actor: str, tenants: Sequence[str] | None = None,
        code: str | None = None, before: datetime | None = None, ids: Sequence[int] | None = None,
        limit: int | None = None, reason: str = "", dry_run: bool = False,
    ) -> Redriven:  # fmt: skip
        """Put failed messages back to the ends of their lanes, in batches; each begins a new life.

        Those that match all that is given: of a lane, of tenants, with an error code, failed before a
        time, with these ids. `limit` is the most that are put back; `dry_run` only counts (at most a
        million). Raises Invalid when nothing at all is given, RoutingInvalid.
        """
        if lane is None and tenants is None and code is None and before is None and ids is None:
            raise Invalid("say which: a lane, tenants, a code, a time or ids")
        service, role = (None, None) if lane is None else service_and_role(lane)
        args = {
            "service": service, "role": role, "tenants": None if tenants is None else list(tenants),
            "code": code, "before": before, "ids": None if ids is None else list(ids), "actor": actor,
            "reason": reason, "dry_run": dry_run,
        }  # fmt: skip
        left = REDRIVE_MAX if limit is None else limit
        if dry_run:
            return await self._redrive(args, left)
        done, refused = 0, 0
        while left > 0:
            batch = await self._redrive(args, min(left, REDRIVE_BATCH))
            done, left = done + batch.redriven, left - batch.redriven
            refused = batch.refused
            if batch.redriven == 0:
                break
        return Redriven(done, refused)

    async def _redrive(self, args: dict[str, Any], limit: int) -> Redriven:
        row = await self.db.fetch_one(REDRIVE, args | {"limit": limit})
        return Redriven(**row) if row is not None else Redriven(0, 0)

    # -- depth ---------------------------------------------------------------------------------

    async def depth(self, lane: str | Lane, *, at_most: int = DEPTH_MAX) -> int:
        """How many messages wait in a lane, counted up to `at_most`: ready, in backoff or behind a key.

        It walks index entries, so a bound is what keeps it cheap: 30 ms for 100,000.
        """
        found = lane if isinstance(lane, Lane) else RoutingKey.parse(lane).lane
        args = (found.service, found.role, found.shard, at_most)
        return int(await self.db.fetch_value("SELECT cogo.depth(%s, %s, %s, %s)", args))

    async def refuse_when_full(self, lane: Lane, at_most: int, sending: int = 1) -> None:
        """Raises LaneFull when `at_most` or more messages wait; else counts `sending` more in.

        Looks at the table once a second at most and adds what it lets through itself. What others send
        meanwhile isn't seen, so a lane may get deeper by a second of that: a brake, not a wall.
        """
        gauge = self._gauges.setdefault(lane, _Gauge())
        if gauge.stale(at_most):
            gauge.depth = await self.depth(lane, at_most=at_most)
            gauge.cap, gauge.at = at_most, time.monotonic()
        if gauge.depth >= at_most:
            raise LaneFull(f"{at_most} or more messages wait in {lane}", retry_after_s=1)
        gauge.depth += sending


# -- indexes of single lanes -------------------------------------------------------------------


async def make_lane_indexes(db: Database, service: str, role: str) -> bool:
    """Make the indexes that a lane wants, without blocking anybody. False: another process is at it.

    Raises BusUnavailable, and what Postgres says when it refuses.
    """
    sql = "SELECT name, made, sql FROM cogo.lane_indexes(%s, %s) WHERE made IS NOT TRUE"
    if not await db.fetch(sql, (service, role)):
        return True
    # On a connection of its own: lock and settings end with it, whatever happens.
    with translated():
        async with await connect(db.dsn, db.application) as conn:
            conn.row_factory = dict_row
            # Try, don't wait: the maker waits for every older transaction, so for who waits for it.
            lock = "SELECT pg_try_advisory_lock(hashtextextended('cogo.lane_indexes', 0)) AS mine"
            row = await (await conn.execute(lock)).fetchone()
            if row is None or not row["mine"]:
                return False
            await conn.execute(f"SET lock_timeout = {int(INDEX_WAIT_S * 1000)}")
            await conn.execute("SET statement_timeout = 0")
            for index in await (await conn.execute(sql, (service, role))).fetchall():
                await _make(conn, index)
    return True


async def _make(conn: Connection, index: dict[str, Any]) -> None:
    drop = f"DROP INDEX CONCURRENTLY IF EXISTS public.{index['name']}".encode()
    if index["made"] is None:  # invalid: somebody died while making it
        await conn.execute(drop)
    try:
        await conn.execute(index["sql"].encode())
    except psycopg.errors.LockNotAvailable:
        await conn.execute(drop)  # writers would go on paying for half an index
        raise
    telemetry.log.info(telemetry.line("index.made", name=index["name"]))


async def keep_lane_indexes(db: Database, lanes: Sequence[tuple[str, str]]) -> None:
    """Until every one of these (service, role) has its indexes. Meanwhile the lanes work, only slower."""
    left, pause_s = list(lanes), 0.5
    while left:
        service, role = left[0]
        try:
            if await make_lane_indexes(db, service, role):
                left.pop(0)
                continue
        except psycopg.errors.InsufficientPrivilege as error:
            telemetry.log.warning(telemetry.line(
                "index.refused", lane=f"{service}/{role}", why=str(error).splitlines()[0],
                hint="as the owner of agent_messages run what cogo.lane_indexes() gives as sql"))  # fmt: skip
            left.pop(0)
            continue
        except Exception as error:  # noqa: BLE001 (whatever it is, the lane works without)
            telemetry.log.warning(telemetry.line("index.later", lane=f"{service}/{role}", why=error))
        await anyio.sleep(pause_s)
        pause_s = min(pause_s * 2, 60.0)
