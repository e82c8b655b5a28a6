"""Short runs with a course of their own, so that a certain bug must show within seconds.

Without a planted bug each of them is green: that is the control. Which bug shows in which, plants.py says.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psycopg
from chaos.machines import World, world
from chaos.nemesis import LISTENING
from chaos.recorder import collect
from chaos.roles import CALL_USD, passes
from chaos.suite import Report, end, judge, mark, meta, opened, settle, start

import cogo

IDLE_S = 6.0
"""After this long without work a consumer looks again by itself only four seconds later."""
LATE_S = 2.5
CRASHES = 3


class Scenario(msgspec.Struct, frozen=True):
    """A course, the processes that it needs, and how soon after it everything must have ended."""

    act: Callable[[Stage], Awaitable[None]]
    links: dict[str, str | None]
    bound_s: float
    clocks: Mapping[str, str] = {}
    done_min: int = 1
    """What must be done before the course ends."""


class Stage:
    """What a course works with: a client of the bus, and ways to wait for what it brings about."""

    def __init__(self, found: World, conn: psycopg.AsyncConnection[Any]) -> None:
        self.world = found
        self.conn = conn
        self._n = 0

    async def enqueue(
        self, role: str, count: int = 1, *, on: Any = None, ordering_key: str | None = None, **task: Any
    ) -> list[int]:
        """Enqueue `count` messages to chaos/<role>; recorded, unless it is on a connection of the course's own."""
        ids = []
        for _ in range(count):
            self._n += 1
            payload = {"uid": f"stage:{self._n}", **task}
            op = {
                "f": "enqueue",
                "uid": payload["uid"],
                "lane": f"chaos/{role}",
                "tenant": "acme",
                "payload": payload,
            }
            self.world.log.write("op", stage="invoke", **op)
            ids.append(
                await cogo.enqueue(on or self.conn, f"chaos/{role}@acme", payload, ordering_key=ordering_key)
            )
            self.world.log.write("op", stage="ok", id=ids[-1], **op)
        return ids

    async def reconnect(self) -> None:
        """After a crash of Postgres."""
        self.conn = await self.world.aconnect("chaos:stage")

    async def until(self, sql: str, *params: Any, within_s: float = 15.0) -> None:
        """Wait until a query gives true."""
        with anyio.fail_after(within_s):
            while not (await self.rows(sql, *params))[0][0]:
                await passes(0.02)

    async def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        return await (await self.conn.execute(sql.encode(), params or None)).fetchall()

    async def at_work(self, role: str, holder: str, least: int = 1) -> None:
        """Wait until this process has claimed so many messages of a role."""
        await self.until(
            "SELECT count(*) >= %s FROM public.agent_messages WHERE role = %s AND claimed_by = %s AND status = 'claimed'",
            least, role, holder)  # fmt: skip

    async def done(self, ids: list[int]) -> None:
        await self.until(
            "SELECT count(*) = %s FROM public.agent_messages WHERE id = ANY (%s) AND status = 'done'",
            len(ids),
            ids,
        )


async def paused(stage: Stage) -> None:
    """p1 is stopped at work for longer than its lease, p2 takes its messages up, and p1 comes back as a zombie."""
    await stage.enqueue("slow", 12, wait_s=3.0)
    await stage.enqueue("effect", 12, wait_s=2.0)
    for role in ("slow", "effect"):
        await stage.at_work(role, "p1.1")
    stage.world.members["p1"].signal(signal.SIGSTOP)
    try:
        await stage.until("""SELECT count(DISTINCT m.role) = 2 FROM public.agent_messages m WHERE m.claimed_by = 'p2.1'
            AND m.status = 'claimed' AND EXISTS (SELECT 1 FROM chaos.history h WHERE h.id = m.id AND h.by_was = 'p1.1'
                                                 AND h.was = 'claimed')""")
    finally:
        stage.world.members["p1"].signal(signal.SIGCONT)
    await passes(1.0)


async def silent(stage: Stage) -> None:
    """The one process sleeps; what comes is not told to it, and then its listener has to connect anew."""
    await stage.until("SELECT count(*) > 0 FROM cogo.bus_idle WHERE role = 'noop'")
    await passes(IDLE_S)
    proxy = stage.world.proxies["a"]
    proxy.deaf = True
    await stage.enqueue("noop", 3)
    await passes(0.3)
    proxy.deaf = False
    pids = await stage.rows(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {LISTENING}")
    assert len(pids) == 1, pids


async def calm(stage: Stage) -> None:
    """A bit of everything, and nothing goes wrong."""
    # After its start Postgres gives every holder the time of a lease before one counts as dead.
    await stage.until("SELECT pg_postmaster_start_time() + interval '3 s' < now()")
    for role, count, task in (
        ("slow", 6, {"wait_s": 2.5}), ("flaky", 6, {"fails": 2}), ("delegate", 4, {"hops": 2}),
        ("follow", 4, {"follow": 2}), ("poison", 2, {"how": "raise"}), ("evented", 4, {}), ("effect", 4, {}),
        ("limited", 8, {"wait_s": 0.3}),
        ("spend", 4, {"calls": 6, "__assignment": {"budget": {"maxCostUsd": 3 * CALL_USD}}}),
    ):  # fmt: skip
        await stage.enqueue(role, count, **task)
    await stage.enqueue("slow", 5, ordering_key="one", wait_s=0.2)
    await passes(3.0)


async def unheard(stage: Stage) -> None:
    """A message is cancelled while its handler runs, which nobody tells the process: it finishes in vain."""
    ids = await stage.enqueue("follow", 3, wait_s=1.0, follow=2)
    await stage.at_work("follow", "p1.1", 3)
    stage.world.proxies["a"].deaf = True
    async with await stage.world.aconnect("chaos:operator") as conn:
        for id in ids:
            await conn.execute("SELECT cogo.cancel(%s, 'operator', 'chaos')", (id,))
    await passes(1.5)
    await stage.done(await stage.enqueue("noop"))


async def late(stage: Stage) -> None:
    """A message takes its place in the lane, others behind it are done, and only then it shows."""
    async with await stage.world.aconnect("chaos:late") as conn, conn.transaction():
        await stage.enqueue("noop", 2, on=conn)
        begun = time.monotonic()
        while time.monotonic() - begun < LATE_S:
            await stage.done(await stage.enqueue("noop", 4))


async def crashed(stage: Stage) -> None:
    """Postgres is killed in the moment in which messages were claimed, twice in a row, and again.

    What of it was not on disk yet is lost: handlers go on under claims that nobody knows of any more, while
    others claim the same messages. Between the two kills nothing is enqueued that would bring a claim to disk.
    """
    await stage.conn.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")  # the disk is as slow as can be
    await stage.conn.execute("SELECT pg_reload_conf()")
    for crash in range(CRASHES):
        if crash % 2 == 0:
            await stage.reconnect()
            async with stage.conn.transaction():  # one commit: the claims come together
                for role in ("slow", "effect", "follow", "child"):
                    await stage.enqueue(role, 16, wait_s=2.0)
        before = stage.world.handlers_begun()
        with anyio.move_on_after(5.0):
            while stage.world.handlers_begun() < before + 40:
                await passes(0.002)
        await stage.world.postgres.kill(0.0)


async def behind(stage: Stage) -> None:
    """A message comes back before one of its key that is at work, whose process stops: neither of them ends."""
    first, second = await stage.enqueue("slow", 2, ordering_key="one", wait_s=3.0)
    state = "SELECT status = %s FROM public.agent_messages WHERE id = %s"
    await stage.until(state, "claimed", first)
    async with await stage.world.aconnect("chaos:operator") as conn:
        await conn.execute("SELECT cogo.cancel(%s, 'operator', 'chaos')", (first,))
        await stage.until(state, "claimed", second)
        await conn.execute("SELECT cogo.requeue(%s, 'operator', 'chaos')", (first,))
    ((holder,),) = await stage.rows("SELECT claimed_by FROM public.agent_messages WHERE id = %s", second)
    process = stage.world.members[holder.split(".")[0]]
    process.signal(signal.SIGSTOP)
    try:
        await stage.until(state, "queued", second)
    finally:
        process.signal(signal.SIGCONT)


SCENARIOS: dict[str, Scenario] = {
    "paused": Scenario(paused, {"p1": None, "p2": None}, bound_s=8.0),
    "silent": Scenario(silent, {"p1": "a"}, bound_s=2.5, clocks={"BUS_POLL_MS": "60000"}, done_min=0),
    "calm": Scenario(calm, {"p1": None, "p2": None}, bound_s=4.0),
    "unheard": Scenario(unheard, {"p1": "a"}, bound_s=3.0),
    "late": Scenario(late, {"p1": None}, bound_s=3.0),
    "crashed": Scenario(crashed, {"p1": None, "p2": None}, bound_s=15.0, done_min=0),
    "behind": Scenario(behind, {"p1": None, "p2": None}, bound_s=10.0, done_min=0),
}


async def run_scenario(
    name: str, folder: Path, *, prepare: Any = None, options: tuple[str, ...] = (), planted: str = "nothing"
) -> Report:
    """Run a course in this folder, with what was planted, and judge it."""
    scenario, begun = SCENARIOS[name], time.monotonic()
    log = opened(folder, f"scenario {name}, planted: {planted}\n")
    meta(log, done_min=scenario.done_min, bound_s=scenario.bound_s, planted=planted)
    clocks = dict(scenario.clocks)
    async with (
        world(folder, log, links=scenario.links, options=options, clocks=clocks, prepare=prepare) as found,
        anyio.create_task_group() as background,
    ):
        await start(found, background)
        await mark(found, "begin")
        async with await found.aconnect("chaos:stage") as conn:
            await scenario.act(Stage(found, conn))
        for proxy in found.proxies.values():
            proxy.heal()
        await mark(found, "heal")
        await settle(found, scenario.bound_s)
        await end(found)
        background.cancel_scope.cancel()
        collect(folder, found.direct)
    return judge(f"{name}, {planted}", folder, time.monotonic() - begun)
