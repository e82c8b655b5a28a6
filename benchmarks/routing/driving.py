"""One router through one world, and what it lost. Needs numpy only: the peers' environments import it as well.

Every router meets the same tasks with the same random numbers. Regret is the judge's expected utility of the best arm
less that of the chosen one; it is divided by what random choice loses at the same tasks.
"""

from __future__ import annotations

import bisect
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import worlds

WINDOW = 50
LEVEL_TASKS = 250
"""Before the swap: how much is lost once everything is learnt."""


class Refused(Exception):  # noqa: N818 (an answer, as the orchestrator's errors are)
    """The router won't do the task: its budget doesn't allow it."""


class Router(Protocol):
    """What a world drives. A router keeps by `task.n` whatever it needs to learn from what comes late."""

    ledger: bool
    """It refuses by itself when the money is spent; for the others the drive does."""

    def choose(self, task: worlds.Task) -> int:
        """The place of the chosen arm among the task's. Raises Refused."""

    def learn(self, task: worlds.Task, index: int, outcome: worlds.Outcome, now_ms: int) -> None:
        """What came of a task. With reward None there is no verdict, and there never will be one."""


@dataclass
class Reading:
    """Of one router, world and seed."""

    regret: float
    notes: dict[str, float] = field(default_factory=dict)
    times_ms: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    """Of each task that was not refused."""


@dataclass
class Tally:
    """Sums while a world goes on."""

    at_random: float = 0.0
    got: float = 0.0
    spent: float = 0.0
    refused: int = 0
    missed: int = 0
    worth: float = 0.0
    outage: list[bool] = field(default_factory=list)
    new: list[bool] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    times_ms: list[float] = field(default_factory=list)


def drive(world: worlds.World, router: Router) -> Reading:
    """Every task of the world, one after the other; outcomes are told as soon as they are known."""
    tally = Tally()
    late: list[tuple[int, int, worlds.Task, int, worlds.Outcome]] = []
    for n in range(world.tasks):
        task = world.task(n)
        while late and late[0][0] <= n:
            _, _, of, index, outcome = late.pop(0)
            router.learn(of, index, outcome, task.now_ms)
        found = _one(world, router, task, tally)
        world.chosen(n, None if found is None else found[0])
        if found is not None:
            index, outcome = found
            bisect.insort(late, (n + 1 + outcome.heard_after, n, task, index, outcome), key=lambda x: x[:2])
    return _reading(world, tally)


def _one(
    world: worlds.World, router: Router, task: worlds.Task, tally: Tally
) -> tuple[int, worlds.Outcome] | None:
    """What was chosen and what came of it; None when it was refused."""
    n, expected = task.n, world.expected(task.n)
    tally.at_random += float(expected.max() - expected.mean())
    began = time.perf_counter()
    try:
        index = router.choose(task)
    except Refused:
        tally.refused += 1
        return None
    finally:
        tally.times_ms.append((time.perf_counter() - began) * 1000)
    outcome = world.outcome(n, index)
    if not router.ledger and tally.spent + outcome.cost_usd > limit_of(world):
        tally.refused += 1
        return None
    tally.lost.append(float(expected.max() - expected[index]))
    tally.got += float(expected[index])
    tally.spent += outcome.cost_usd
    tally.missed += not outcome.ok or outcome.latency_ms > worlds.SLO_MS
    tally.worth += worlds.utility(outcome.ok, world.verdict(n, index), outcome.cost_usd, outcome.latency_ms)
    if isinstance(world, worlds.Outage) and world.out(n):
        tally.outage.append(index == world.broken)
    if isinstance(world, worlds.NewArm) and len(task.arms) == world.n_arms:
        tally.new.append(index == world.n_arms - 1)
    return index, outcome


def limit_of(world: worlds.World) -> float:
    return float(getattr(world, "limit_usd", np.inf))


def _reading(world: worlds.World, tally: Tally) -> Reading:
    notes = {
        "SLO misses": tally.missed / world.tasks, "utility": tally.worth / world.tasks,
    }  # fmt: skip
    if tally.outage:
        notes["to the broken arm"] = float(np.mean(tally.outage))
    if tally.new:
        notes["to the new arm"] = float(np.mean(tally.new))
    regret = sum(tally.lost) / tally.at_random
    if isinstance(world, worlds.Drift):
        notes["tasks to recover"] = recovery(tally.lost, world.tasks // 2)
    if isinstance(world, worlds.Budget):
        best, random = world.best_within(), at_random(world)
        regret = (best - tally.got) / (best - random)
        notes |= {"spent": tally.spent / world.limit_usd, "refused": tally.refused / world.tasks}
    return Reading(regret, notes, tally.times_ms, tally.lost)


def recovery(lost: list[float], swap: int) -> float:
    """Tasks after the swap until the mean of the last WINDOW, all of them after it, is near the level before.

    Near: 1.25 times and 0.01 more. Who never comes back has all tasks that were left.
    """
    bar = 1.25 * float(np.mean(lost[max(swap - LEVEL_TASKS, 0) : swap])) + 0.01
    for end in range(swap + WINDOW, len(lost) + 1):
        if np.mean(lost[end - WINDOW : end]) <= bar:
            return float(end - swap)
    return float(len(lost) - swap)


def at_random(world: worlds.Budget) -> float:
    """What random choice gets until the money is spent."""
    draw, spent, got = np.random.default_rng(world.seed), 0.0, 0.0
    for n in range(world.tasks):
        choice = int(draw.integers(world.n_arms))
        cost = world.outcome(n, choice).cost_usd
        if spent + cost <= world.limit_usd:
            spent, got = spent + cost, got + float(world.expected(n)[choice])
    return got


def as_json(reading: Reading) -> dict[str, Any]:
    """What a report keeps of a reading."""
    times = reading.times_ms or [0.0]
    return {
        "regret": reading.regret, "notes": reading.notes,
        "p50_ms": float(np.percentile(times, 50)), "p95_ms": float(np.percentile(times, 95)),
    }  # fmt: skip
