"""Helpers of the bus tests: a holder that claims and finishes by hand, and a process in a task."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
from psycopg.conninfo import make_conninfo

import cogo
from cogo.core.bus import Bus
from cogo.core.db import Database
from cogo.core.model import FollowUp, Lane, Message, Outcome, Role
from cogo.core.runtime import Runtime, run
from cogo.core.settings import Loaded, Secret, Settings, load


class Hand:
    """A holder without a process: registers, claims and finishes when the test says so."""

    def __init__(self, bus: Bus, holder: str = "hand") -> None:
        self.bus = bus
        self.holder = holder
        self.epoch = 0

    async def register(self, *lanes: str, lease_ms: int = 20_000) -> Hand:
        row = await self.bus.db.fetch_one(
            "SELECT epoch FROM cogo.register_holder(%s, '{}', %s::text[], '{}', %s)",
            (self.holder, list(lanes), lease_ms),
        )
        assert row is not None
        self.epoch = row["epoch"]
        return self

    async def claim(self, lane: str, limit: int = 10, *, timeout_ms: int = 60_000) -> list[Message]:
        key = cogo.RoutingKey.parse(lane)
        claimed = await self.bus.claim(
            key.lane, limit, holder=self.holder, epoch=self.epoch, timeout_ms=timeout_ms
        )
        return claimed.messages

    async def finish(self, message: Message, kind: Any = "done", **fields: Any) -> str | None:
        outcome = Outcome(id=message.id, fence=message.fence, kind=kind, **fields)
        return (await self.bus.finish([outcome])).get(message.id)


def child(lane: str, payload: bytes = b"{}", *, delegate: bool = True, **options: Any) -> FollowUp:
    """A follow-up message for a finish by hand."""
    key = cogo.RoutingKey.parse(lane)
    return FollowUp(
        service=key.service, role=key.role, shard=key.shard, tenant=key.tenant,
        payload=msgspec.Raw(payload), delegate=delegate, **options,
    )  # fmt: skip


async def row(bus: Bus, id: int) -> dict[str, Any]:
    return await bus.message(id)


async def kinds(bus: Bus, id: int | None = None) -> list[str]:
    """Kinds of the audit events, of one message or of all, in order."""
    rows = await bus.db.fetch(
        "SELECT kind FROM public.bus_events WHERE %(id)s::bigint IS NULL OR message_id = %(id)s ORDER BY id",
        {"id": id},
    )
    return [found["kind"] for found in rows]


async def counts(bus: Bus) -> dict[str, int]:
    """Ended messages by status, from the counters."""
    rows = await bus.db.fetch("SELECT status, sum(n)::bigint AS n FROM cogo.bus_counts GROUP BY 1")
    return {found["status"]: found["n"] for found in rows if found["n"]}


def fast_settings(**changes: Any) -> Loaded:
    """Settings with short clocks, so that tests of leases end soon."""
    flags: dict[str, Any] = {"beat_ms": 200, "lease_ms": 1_000, "poll_ms": 2_000, "grace_s": 2.0} | changes
    return load(flags={"data_dir": _home()} | flags, environ={})


@functools.cache
def _home() -> Path:
    """A data home for the processes of this test run, so that none writes to the developer's."""
    home = Path(tempfile.mkdtemp(prefix="cogo-test-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


@asynccontextmanager
async def process(
    dsn: str, roles: Sequence[Role | str], *, plugins: dict[str, Any] | None = None, **changes: Any
) -> AsyncIterator[Runtime]:
    """A process without HTTP in a task of this test; stopped and drained at the end.

    `plugins` are the `[plugins.<name>]` tables.
    """
    stop, ready = anyio.Event(), anyio.Event()
    found: list[Runtime] = []

    def note(runtime: Runtime) -> None:
        found.append(runtime)
        ready.set()

    names = tuple(role for role in roles if isinstance(role, str))
    inline = [role for role in roles if isinstance(role, Role)]
    settings = msgspec.structs.replace(
        fast_settings(**changes).settings, database_url=Secret(dsn), roles=names, plugins=plugins or {}
    )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            functools.partial(run, settings, inline=inline, stop=stop, signals=False, ready=note)
        )
        await ready.wait()
        try:
            yield found[0]
        finally:
            stop.set()


@asynccontextmanager
async def shifted(dsn: str, offset: str) -> AsyncIterator[Bus]:
    """A bus whose database clock, cogo.now(), is ahead by `offset` ('90 seconds')."""
    db = Database(make_conninfo(dsn, options=f"-c cogo.clock_offset={offset.replace(' ', '')}"))
    await db.open()
    try:
        yield Bus(db, poll_s=0.02)
    finally:
        await db.close()


async def insert(bus: Bus, lane: str, **columns: Any) -> int:
    """A plain INSERT as any client makes it, with the columns of the contract."""
    key = cogo.RoutingKey.parse(lane)
    values = {"service": key.service, "role": key.role, "shard": key.shard, "tenant": key.tenant,
              "payload": "{}", "status": "queued"} | columns  # fmt: skip
    names = ", ".join(values)
    marks = ", ".join(f"%({name})s" for name in values)
    sql = f"INSERT INTO public.agent_messages ({names}) VALUES ({marks}) RETURNING id"
    return int(await bus.db.fetch_value(sql, values))


async def update(bus: Bus, id: int, **columns: Any) -> None:
    """A plain UPDATE as any client makes it."""
    sets = ", ".join(f"{name} = %({name})s" for name in columns)
    await bus.db.execute(f"UPDATE public.agent_messages SET {sets} WHERE id = %(id)s", columns | {"id": id})


async def policy(bus: Bus, lane: str, **columns: Any) -> None:
    """The lane's row in cogo.bus_lanes."""
    service, role = lane.split("/")
    values = {"service": service, "role": role} | columns
    names, marks = ", ".join(values), ", ".join(f"%({name})s" for name in values)
    await bus.db.execute(f"INSERT INTO cogo.bus_lanes ({names}) VALUES ({marks})", values)


async def reclaim(bus: Bus, *, lease_ms: int = 0, after_ms: int = 900_000) -> list[tuple[int, str, str]]:
    """One round of reclaiming; lease_ms = 0: the lease rule counts even right after Postgres started."""
    rows = await bus.db.fetch("SELECT * FROM cogo.reclaim(1000, %s, %s)", (lease_ms, after_ms))
    return [(found["id"], found["status"], found["why"]) for found in rows]


__all__ = [
    "Hand", "Lane", "Settings", "child", "counts", "fast_settings", "insert", "kinds", "policy", "process",
    "reclaim", "row", "shifted", "update",
]  # fmt: skip
