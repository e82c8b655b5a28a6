"""One run: a world, those who use it, the faults of a plan; then heal, let everything end, and judge."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
from chaos.checker import check
from chaos.history import History
from chaos.machines import LEASE_S, RECLAIM_AFTER_S, World, world
from chaos.nemesis import Nemesis, Plan
from chaos.producers import (
    TENANTS,
    Producer,
    by_batches,
    by_bus,
    by_sql,
    in_transactions,
    operator,
    outsider,
    waiter,
)
from chaos.recorder import Lines, collect
from chaos.roles import lanes, passes
from chaos.verdict import Violation

BOUND_S = 15.0
"""From the heal to the end of the last message: a lease, a run time, a reclaim and a few retries."""
DONE_PER_S = 3.0
"""The least that is to be done under faults."""
EVERY_S = 0.2
TOLD_S = 8.0
"""How long producers may take to end after the heal."""
OPEN = "SELECT count(*) FROM public.agent_messages WHERE status IN ('queued', 'claimed', 'waiting')"
CLAIM_LOST = re.compile(r"\bmessage\.claim_lost\b")
BACK = re.compile(r"\blistener\.back\b")
GIVEN_BACK = re.compile(r"\bclaims\.given_back count=(\d+)")


class Report(msgspec.Struct):
    """What a run was, in numbers; a run is green when `violations` is empty."""

    name: str
    folder: str
    seconds: float
    faults: dict[str, int]
    messages: dict[str, int]
    """By how they ended."""
    refused: int
    """Outcomes that were written too late and had no effect."""
    reclaimed: int
    given_back: int
    reconnects: int
    recovery_s: float | None
    violations: list[str]
    rules: list[int]
    caught: bool = False
    """Red as it was to be: a bug had been planted."""

    @property
    def green(self) -> bool:
        return not self.violations

    def line(self) -> str:
        recovery = "never" if self.recovery_s is None else f"{self.recovery_s:4.1f} s"
        ends = " ".join(
            f"{status} {self.messages.get(status, 0)}" for status in ("done", "failed", "cancelled")
        )
        verdict = "RED" if not self.green else f"red by rules {self.rules}" if self.caught else "green"
        return (f"{self.name:<10} {verdict:<6} {sum(self.messages.values()):4d} messages: {ends};"
                f" refused {self.refused}, reclaimed {self.reclaimed}, given back {self.given_back},"
                f" reconnects {self.reconnects}; recovery {recovery}; {self.seconds:.0f} s in all;"
                f" faults: {', '.join(sorted(self.faults))}")  # fmt: skip


async def run_plan(plan: Plan, folder: Path) -> Report:
    """Run a seed's plan in this folder and judge it."""
    log = opened(folder, f"seed {plan.seed}, {plan.seconds:g} s\n{plan}\n")
    begun = time.monotonic()
    meta(log, done_min=DONE_PER_S * plan.seconds, bound_s=BOUND_S, seed=plan.seed)
    async with world(folder, log, links=plan.links, seed=plan.seed) as found:
        async with anyio.create_task_group() as background:
            await start(found, background)
            await _under_faults(found, plan)
            await settle(found, BOUND_S)
            await end(found)
            background.cancel_scope.cancel()
        collect(folder, found.direct)
    return judge(f"seed {plan.seed}", folder, time.monotonic() - begun)


def opened(folder: Path, about: str) -> Lines:
    """A run's folder with its plan, and the run's own part of the history."""
    (folder / "events").mkdir(parents=True)
    (folder / "plan.txt").write_text(about)
    return Lines(folder / "events" / "run.jsonl", "run")


def meta(log: Lines, *, done_min: float, bound_s: float, **more: Any) -> None:
    """The first line of a history: what the checker must know of the run."""
    log.write("meta", lanes=lanes(), effect_lanes=["chaos/effect"], lease_s=LEASE_S,
              reclaim_after_s=RECLAIM_AFTER_S, done_min=done_min, bound_s=bound_s, **more)  # fmt: skip


async def start(found: World, background: Any) -> None:
    """Start the processes, and what looks after them."""
    for member in found.members.values():
        member.begin()
    await found.all_ready()
    for member in found.members.values():
        background.start_soon(member.watch)
    background.start_soon(_sample, found)
    background.start_soon(outsider, Producer(found, "outsider", found.folder.name))


async def _sample(found: World) -> None:
    """The memory of each process, once a second."""
    while True:
        for member in found.members.values():
            if (kb := member.memory_kb()) is not None and member.popen is not None:
                found.log.write("rss", pid=member.popen.pid, holder=member.holder, kb=kb)
        await passes(1.0)


def _users(found: World, seed: int) -> list[Callable[[], Awaitable[None]]]:
    """Everybody who uses the bus in a seeded run."""
    made: list[Producer] = []

    def producer(who: str) -> Producer:
        made.append(Producer(found, who, str(seed)))
        return made[-1]

    def known() -> list[int]:
        return [id for one in made for id in one.ids[-20:]]

    far = found.proxies["a"].dsn
    near, distant, batches, sql, own = map(producer, ("bus-near", "bus-far", "batches", "sql", "orders"))
    boss, client = producer("operator"), producer("waiter")
    return [
        lambda: by_bus(near, found.direct), lambda: by_bus(distant, far), lambda: by_batches(batches, found.direct),
        lambda: by_sql(sql), lambda: in_transactions(own), lambda: operator(boss, known),
        lambda: waiter(client, found.direct, known),
    ]  # fmt: skip


async def _under_faults(found: World, plan: Plan) -> None:
    await mark(found, "begin")
    async with anyio.create_task_group() as users:
        for use in _users(found, plan.seed):
            users.start_soon(use)
        with anyio.move_on_after(plan.seconds):
            await Nemesis(found, plan.seed).run(plan.faults)
            await anyio.Event().wait()
        users.cancel_scope.cancel()
    found.healed = True
    for proxy in found.proxies.values():
        proxy.heal()
    for member in found.members.values():
        member.begin()
    await found.postgres.ready()
    await mark(found, "heal")


async def mark(found: World, name: str, **more: Any) -> None:
    """A line with both clocks."""
    async with await found.patient("chaos:run") as conn:
        row = await (await conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8")).fetchone()
    assert row is not None
    found.log.write("mark", name=name, db=row[0], **more)


async def settle(found: World, bound_s: float) -> None:
    """Wait until nothing is open, twice in a row, and mark that; or until the bound has passed."""
    with anyio.move_on_after(bound_s + 1.0):
        async with await found.patient("chaos:run") as conn:
            closed = 0
            while closed < 2:
                row = await (await conn.execute(OPEN)).fetchone()
                assert row is not None
                closed = closed + 1 if row[0] == 0 else 0
                await passes(EVERY_S)
        await mark(found, "settled")


async def end(found: World) -> None:
    """What tenants see, and the end of the processes."""
    look(found, final=True)
    async with anyio.create_task_group() as tasks:
        for member in found.members.values():
            tasks.start_soon(member.leave)


def look(found: World, *, final: bool) -> None:
    """Record what the session of each tenant sees."""
    with found.connect("chaos:tenant") as conn:
        for tenants in (list(TENANTS[:1]), list(TENANTS[1:]), []):
            claims = msgspec.json.encode({"sub": "u", "app_metadata": {"tenants": tenants}}).decode()
            for table in ("agent_messages", "bus_events"):
                with conn.transaction():
                    conn.execute("SELECT set_config('request.jwt.claims', %s, true)", (claims,))
                    conn.execute("SET LOCAL ROLE authenticated")
                    rows = conn.execute(f"SELECT id, tenant FROM public.{table}".encode()).fetchall()
                found.log.write("seen", tenants=tenants, table=table, rows=rows, final=final)


def judge(name: str, folder: Path, seconds: float) -> Report:
    """Check the history in a folder, write verdict.txt, and count what happened."""
    history = History.read(folder)
    found = check(history)
    (folder / "verdict.txt").write_text(
        "\n".join(violation.report() for violation in found) or "no violation"
    )
    heal, settled = history.mark("heal"), history.mark("settled")
    logs = "\n".join(path.read_text(errors="replace") for path in folder.glob("p*.log"))
    steps = [step for line in history.steps.values() for step in line]
    return Report(
        name=name, folder=str(folder), seconds=seconds,
        faults=dict(Counter(line["kind"] for line in history.by_type["fault"] if line["stage"] == "on")),
        messages=dict(Counter(row["status"] for row in history.rows.values())),
        refused=len(CLAIM_LOST.findall(logs)),
        reclaimed=sum("reclaim" in step.doors and step.was == "claimed" for step in steps),
        given_back=sum(map(int, GIVEN_BACK.findall(logs))),
        reconnects=len(BACK.findall(logs)),
        recovery_s=settled["t"] - heal["t"] if heal and settled else None,
        violations=[_short(violation) for violation in found], rules=sorted({violation.rule for violation in found}),
    )  # fmt: skip


def _short(violation: Violation) -> str:
    return str(violation)[:400]
