"""The faults, and the plan that a seed makes of them. One seed = one plan: what, when, to whom, for how long.

What a plan can't fix, since it depends on the moment (which backend, which rows), is drawn at that moment from a
generator of the plan's own.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
import msgspec
import psycopg
from chaos.machines import LEASE_S, World
from chaos.producers import AWAY
from chaos.roles import passes
from psycopg.rows import tuple_row

OF_COGO = "application_name ~ '^p[0-9]+[.]'"
"""Processes under test name their connections after their holder."""
LISTENING = OF_COGO + " AND (query ILIKE 'LISTEN %' OR query LIKE 'SELECT pg_notify%')"


WINDOW_S = 8.0
INSERT_KEYED = """
INSERT INTO public.agent_messages (service, role, tenant, payload, ordering_key) VALUES (%s, %s, %s, %s, %s)
RETURNING id
"""


class Fault(msgspec.Struct, frozen=True):
    """One fault of a plan."""

    at_s: float
    kind: str
    args: dict[str, Any] = {}

    def __str__(self) -> str:
        args = " ".join(f"{name}={value}" for name, value in self.args.items())
        return f"{self.at_s:5.2f}s {self.kind} {args}".rstrip()


class Plan(msgspec.Struct, frozen=True):
    """What a seed stands for."""

    seed: int
    seconds: float
    links: dict[str, str | None]
    """The processes, and through which proxy each reaches Postgres (None: through none)."""
    faults: list[Fault]

    def __str__(self) -> str:
        return "\n".join(f"  {fault}" for fault in self.faults)


def plan(seed: int, seconds: float) -> Plan:
    """Six to nine faults in each window of eight seconds; the same for the same seed and length."""
    rng = random.Random(seed)
    links: dict[str, str | None] = {"p1": None, "p2": "a", "p3": "b"}
    faults = [Fault(0.2, "poison", {"count": rng.randint(1, 4), "exits": int(rng.random() < 0.3)})]
    windows = max(1, round(seconds / WINDOW_S))
    for window in range(windows):
        faults += _window(rng, window * seconds / windows, seconds / windows)
    faults.sort(key=lambda fault: (fault.at_s, fault.kind))
    return Plan(seed=seed, seconds=seconds, links=links, faults=faults)


def _window(rng: random.Random, from_s: float, long_s: float) -> list[Fault]:
    faults: list[Fault] = []
    kinds, weights = list(DRAWS), [weight for weight, _ in DRAWS.values()]
    most = rng.randint(5, 8)
    while len(faults) < most:
        kind = rng.choices(kinds, weights)[0]
        args = DRAWS[kind][1](rng)
        latest_s = long_s - (args["for_s"] if kind == "late_commit" else 2.5)
        fault = Fault(round(from_s + rng.uniform(0.5, max(0.6, latest_s)), 2), kind, args)
        if not any(_in_the_way(fault, other) for other in faults):
            faults.append(fault)
    return faults


def _in_the_way(fault: Fault, other: Fault) -> bool:
    """Some faults come once in a window, and one process is stopped, killed or paused once."""
    if fault.kind in ONCE and fault.kind == other.kind:
        return True
    same = fault.args.get("who") == other.args.get("who")
    return same and {fault.kind, other.kind} <= {"kill", "pause", "stop"}


LINKS = ("a", "a", "b")


def _for(low: float, high: float, **more: Any) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {"for_s": round(rng.uniform(low, high), 2), **more}


def _member(low: float, high: float) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {"who": rng.choice(["p1", "p2", "p3"]), "for_s": round(rng.uniform(low, high), 2)}


def _link(low: float, high: float) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {"link": rng.choice(LINKS), "for_s": round(rng.uniform(low, high), 2)}


DRAWS: dict[str, tuple[int, Callable[[random.Random], dict[str, Any]]]] = {
    "kill": (5, _member(0.0, 1.5)),
    "pause": (5, _member(LEASE_S + 0.7, LEASE_S + 2.5)),
    "stop": (2, _member(0.0, 0.5)),
    "end_listener": (3, lambda rng: {"times": rng.randint(1, 4)}),
    "end_backends": (4, lambda rng: {"share": round(rng.uniform(0.3, 1.0), 2), "times": rng.randint(1, 3)}),
    "crash_backend": (2, lambda rng: {}),
    "kill_postgres": (3, _for(0.0, 1.5)),
    "black_hole": (3, _link(1.5, 4.5)),
    "half_open": (3, _link(1.5, 4.5)),
    "freeze": (3, _link(1.0, 4.5)),
    "delay": (2, lambda rng: {"link": rng.choice(LINKS), "for_s": 3.0, "up_to_s": round(rng.uniform(0.01, 0.15), 3)}),
    "trickle": (1, _link(1.0, 3.0)),
    "reset": (3, lambda rng: {"link": rng.choice(LINKS), "times": rng.randint(1, 4)}),
    "refuse": (2, _link(0.5, 2.5)),
    "deafen": (2, _link(1.0, 4.0)),
    "lose_answers": (4, lambda rng: {"link": rng.choice(LINKS), "count": rng.randint(4, 25)}),
    "clock_jump": (3, lambda rng: {"who": rng.choice(["p1", "p2", "p3"]), "by_s": rng.choice([3600, -3600])}),
    "exhaust": (2, _for(1.0, 3.5)),
    "lock_table": (3, _for(0.5, 3.0)),
    "lock_rows": (3, lambda rng: {"for_s": round(rng.uniform(1.0, 4.0), 2), "rows": rng.randint(1, 12)}),
    "lock_leases": (2, _for(0.5, 3.5)),
    "snapshot": (2, _for(3.0, 6.0)),
    "pause_lane": (3, lambda rng: {"role": rng.choice(["noop", "slow", "effect", "limited"]),
                               "tenant": rng.choice([None, "acme"]), "for_s": round(rng.uniform(1.0, 3.0), 2)}),
    "late_commit": (4, lambda rng: {"for_s": round(rng.uniform(3.0, 5.0), 2), "count": rng.randint(1, 8),
                                "key": rng.choice([None, "key1"])}),
}  # fmt: skip
"""Kind -> (weight, how its arguments are drawn)."""
ONCE = frozenset({"kill_postgres", "crash_backend", "exhaust", "lock_table", "lock_leases", "pause_lane"})


class Nemesis:
    """Does what a plan says. Each fault ends by itself, or at the heal, whichever comes first."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._rng = random.Random(f"{seed}:nemesis")
        self._inserted = 0

    async def run(self, faults: list[Fault]) -> None:
        """Start each fault at its time; returns when all are over. Cancel it to heal early."""
        async with anyio.create_task_group() as tasks:
            for number, fault in enumerate(faults):
                tasks.start_soon(self._one, number, fault)

    async def _one(self, number: int, fault: Fault) -> None:
        await passes(fault.at_s)
        do: Callable[..., Awaitable[None]] = getattr(self, fault.kind)
        about = {"kind": fault.kind, "number": number, "args": fault.args}
        self._world.log.write("fault", stage="on", **about)
        why = None
        try:
            await do(**fault.args)
        except AWAY as error:  # another fault was in the way: that is chaos too
            why = f"{type(error).__name__}: {error}".strip()
        finally:
            self._world.log.write("fault", stage="off", why=why, **about)

    # -- processes -----------------------------------------------------------------------------

    async def kill(self, who: str, for_s: float) -> None:
        """SIGKILL; another process takes its place after a while."""
        member = self._world.members[who]
        with anyio.CancelScope(shield=True):
            await member.kill()
        try:
            await passes(for_s)
        finally:
            member.begin()

    async def stop(self, who: str, for_s: float) -> None:
        """A deployment: SIGTERM, the drain, and a new process."""
        member = self._world.members[who]
        with anyio.CancelScope(shield=True):
            await member.leave(within_s=8.0, hard=True)
        try:
            await passes(for_s)
        finally:
            member.begin()

    async def pause(self, who: str, for_s: float) -> None:
        """SIGSTOP for longer than the lease, then SIGCONT: it comes back as a zombie."""
        popen = self._world.members[who].popen
        assert popen is not None
        popen.send_signal(signal.SIGSTOP)
        try:
            await passes(for_s)
        finally:
            popen.send_signal(signal.SIGCONT)

    async def clock_jump(self, who: str, by_s: float) -> None:
        self._world.members[who].jump(by_s)

    # -- Postgres ------------------------------------------------------------------------------

    async def _terminate(self, which: str, share: float, times: int) -> None:
        for _ in range(times):
            async with await self._world.aconnect("chaos:nemesis") as conn:
                pids = [
                    row[0] for row in await _rows(conn, f"SELECT pid FROM pg_stat_activity WHERE {which}")
                ]
                for pid in self._rng.sample(sorted(pids), max(1, int(len(pids) * share)) if pids else 0):
                    await conn.execute("SELECT pg_terminate_backend(%s)", (pid,))
            await passes(self._rng.uniform(0.05, 0.8))

    async def end_listener(self, times: int) -> None:
        await self._terminate(LISTENING, 1.0, times)

    async def end_backends(self, share: float, times: int) -> None:
        await self._terminate(OF_COGO, share, times)

    async def crash_backend(self) -> None:
        """SIGKILL one backend: Postgres ends all others, recovers, and empties what is unlogged."""
        async with await self._world.aconnect("chaos:nemesis") as conn:
            pids = [row[0] for row in await _rows(conn, f"SELECT pid FROM pg_stat_activity WHERE {OF_COGO}")]
        if pids:
            os.kill(self._rng.choice(sorted(pids)), signal.SIGKILL)

    async def kill_postgres(self, for_s: float) -> None:
        with anyio.CancelScope(shield=True):
            await self._world.postgres.kill(for_s)

    async def exhaust(self, for_s: float) -> None:
        """Take every connection that is left."""
        async with AsyncExitStack() as stack:
            with suppress(psycopg.OperationalError):
                while True:
                    await stack.enter_async_context(await self._world.aconnect("chaos:idle"))
            await passes(for_s)

    async def _locked(self, sql: str, for_s: float) -> None:
        async with await self._world.aconnect("chaos:nemesis") as conn:
            async with conn.transaction(force_rollback=True):
                await conn.execute("SET LOCAL lock_timeout = '5s'")
                await conn.execute(sql.encode())
                await passes(for_s)

    async def lock_table(self, for_s: float) -> None:
        await self._locked("LOCK TABLE public.agent_messages IN EXCLUSIVE MODE", for_s)

    async def lock_leases(self, for_s: float) -> None:
        """Nobody can beat: leases end though their processes live."""
        await self._locked("LOCK TABLE cogo.bus_holders IN EXCLUSIVE MODE", for_s)

    async def lock_rows(self, for_s: float, rows: int) -> None:
        """A long lock on messages that are being worked on."""
        await self._locked(
            "SELECT id FROM public.agent_messages WHERE status IN ('claimed', 'waiting') "
            f"ORDER BY random() LIMIT {rows} FOR UPDATE", for_s)  # fmt: skip

    async def snapshot(self, for_s: float) -> None:
        """A transaction with an xid that keeps its snapshot."""
        async with await self._world.aconnect("chaos:nemesis") as conn:
            async with conn.transaction(force_rollback=True):
                await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                await conn.execute("SELECT pg_current_xact_id(), count(*) FROM public.agent_messages")
                await passes(for_s)

    async def pause_lane(self, role: str, tenant: str | None, for_s: float) -> None:
        """An operator pauses a lane, or one tenant in it, and resumes it."""
        of = ("chaos", role, tenant, "operator")
        async with await self._world.patient("chaos:nemesis") as conn:
            await conn.execute("SELECT cogo.pause(%s, %s, %s, %s)", of)
            since = await _clock(conn)
        try:
            await passes(for_s)
        finally:
            with anyio.CancelScope(shield=True):
                async with await self._world.patient("chaos:nemesis") as conn:
                    until = await _clock(conn)
                    await conn.execute("SELECT cogo.resume(%s, %s, %s, %s)", of)
            self._world.log.write(
                "pause", lane=f"chaos/{role}", tenant=tenant, **{"from": since, "to": until}
            )

    async def late_commit(self, for_s: float, count: int, key: str | None) -> None:
        """Messages that take their place in the lane now and are seen seconds later; with a key they hold its lock."""
        asks = [("noop", {"late": True})] * count
        with anyio.CancelScope(shield=True):
            async with await self._world.aconnect("chaos:late") as conn:
                await self._insert(conn, "late", asks, for_s, key)

    async def poison(self, count: int, exits: int) -> None:
        """Messages that no attempt survives."""
        asks = [("poison", {"how": self._rng.choice(["raise", "hang"])}) for _ in range(count)]
        async with await self._world.aconnect("chaos:nemesis") as conn:
            await self._insert(conn, "poison", asks + [("exit", {"how": "exit"})] * exits)

    async def _insert(
        self,
        conn: psycopg.AsyncConnection[Any],
        who: str,
        asks: list[tuple[str, dict[str, Any]]],
        for_s: float = 0.0,
        key: str | None = None,
    ) -> None:
        """Insert messages in one transaction that stays open for a while; recorded as any producer's."""
        lines = []
        for role, task in asks:
            self._inserted += 1
            uid = f"{who}:{self._inserted}"
            lines.append({"f": "enqueue", "uid": uid, "lane": f"chaos/{role}", "tenant": "default",
                          "payload": task | {"uid": uid}})  # fmt: skip
        stage, ids = "info", [0] * len(lines)
        for line in lines:
            self._world.log.write("op", stage="invoke", **line)
        try:
            async with conn.transaction():
                for number, line in enumerate(lines):
                    values = (
                        *line["lane"].split("/"),
                        "default",
                        msgspec.json.encode(line["payload"]).decode(),
                    )
                    ids[number] = (await _rows(conn, INSERT_KEYED, (*values, key)))[0][0]
                await passes(for_s)
            stage = "ok"
        finally:
            for line, id in zip(lines, ids, strict=True):
                self._world.log.write("op", stage=stage, **line, **({"id": id} if stage == "ok" else {}))

    # -- links ---------------------------------------------------------------------------------

    async def black_hole(self, link: str, for_s: float) -> None:
        """Connections stay, and what goes in is gone: no keepalive of a client notices that."""
        proxy = self._world.proxies[link]
        await _between(proxy.swallow, proxy.heal, for_s)

    async def half_open(self, link: str, for_s: float) -> None:
        """The server's ends are closed, the clients' ends are not told; new connections work."""
        proxy = self._world.proxies[link]
        await _between(proxy.half_open, proxy.heal, for_s)

    async def freeze(self, link: str, for_s: float) -> None:
        """A partition that heals: what was sent meanwhile arrives afterwards, late."""
        proxy = self._world.proxies[link]
        await _between(proxy.freeze, proxy.thaw, for_s)

    async def delay(self, link: str, for_s: float, up_to_s: float) -> None:
        await self._set(link, for_s, "delay_s", up_to_s)

    async def trickle(self, link: str, for_s: float) -> None:
        await self._set(link, for_s, "trickling", True)

    async def refuse(self, link: str, for_s: float) -> None:
        self._world.proxies[link].cut()
        await self._set(link, for_s, "refusing", True)

    async def deafen(self, link: str, for_s: float) -> None:
        await self._set(link, for_s, "deaf", True)

    async def _set(self, link: str, for_s: float, name: str, value: Any) -> None:
        proxy = self._world.proxies[link]
        before = getattr(proxy, name)
        setattr(proxy, name, value)
        try:
            await passes(for_s)
        finally:
            setattr(proxy, name, type(value)() if before == value else before)

    async def reset(self, link: str, times: int) -> None:
        for _ in range(times):
            self._world.proxies[link].cut()
            await passes(self._rng.uniform(0.1, 0.8))

    async def lose_answers(self, link: str, count: int) -> None:
        self._world.proxies[link].lose_answers = count


async def _between(begin: Callable[[], None], end: Callable[[], None], for_s: float) -> None:
    begin()
    try:
        await passes(for_s)
    finally:
        end()


async def _clock(conn: psycopg.AsyncConnection[Any]) -> float:
    """Seconds of the database's clock."""
    return float((await _rows(conn, "SELECT extract(epoch FROM clock_timestamp())::float8"))[0][0])


async def _rows(conn: psycopg.AsyncConnection[Any], sql: str, params: Any = None) -> list[tuple[Any, ...]]:
    return await (await conn.cursor(row_factory=tuple_row).execute(sql.encode(), params)).fetchall()
