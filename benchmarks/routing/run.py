"""How well COGO routes: worlds of tasks are driven through the HTTP API of a served process.

    python benchmarks/routing/run.py [--worlds NAMES] [--seeds N,N] [--tasks N] [--graded WHEEL]

Each world and seed is a tenant of its own on one fresh `cogo serve --roles orchestrator --simulation`. Regret is divided
by that of random choice in the same world. `--graded` is the wheel of `paretobandit`, whose graded prompts are the
replay; it is fetched from PyPI when it isn't given.
"""

from __future__ import annotations

import argparse
import bisect
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import worlds
from server import served

if TYPE_CHECKING:
    import httpx

BARS = {
    "stationary": (0.18, 0.14), "drift": (0.27, 0.22), "outage": (0.25, 0.18), "cost shock": (0.25, 0.20),
    "delayed": (0.25, 0.20), "load": (0.22, 0.18), "new version": (0.18, 0.15), "bad new version": (0.18, 0.15),
    "budget": (0.10, 0.06), "replay": (0.15, 0.12),
}  # fmt: skip


@dataclass
class Reading:
    """Of one world and seed."""

    regret: float
    notes: dict[str, float] = field(default_factory=dict)
    times_ms: list[float] = field(default_factory=list)


def drive(client: httpx.Client, world: worlds.World, tenant: str) -> Reading:
    """Every task of the world, one after the other."""
    limit = getattr(world, "limit_usd", None)
    if limit is not None:
        budget = {"limit_usd": limit, "window_s": 30 * 86_400, "expected_tasks": world.tasks}
        client.put(f"/api/orchestrator/budgets/{tenant}", json=budget).raise_for_status()
    late: list[tuple[int, int, worlds.Outcome]] = []
    lost, lost_at_random, got, spent, refused = 0.0, 0.0, 0.0, 0.0, 0
    counts = {"broken": 0, "outage": 0, "missed": 0, "new": 0, "with_new": 0}
    times = []
    for n in range(world.tasks):
        task = world.task(n)
        while late and late[0][0] <= n:
            _, decision, outcome = late.pop(0)
            tell(client, decision, outcome, task.now_ms)
        expected = world.expected(n)
        lost_at_random += float(expected.max() - expected.mean())
        body = {
            "tenant": tenant, "intent": task.intent, "features": task.features, "objective": worlds.OBJECTIVE,
            "now_ms": task.now_ms, "candidates": [vars(arm) for arm in task.arms],
        }  # fmt: skip
        began = time.perf_counter()
        answer = client.post("/api/orchestrator/decide", json=body)
        times.append((time.perf_counter() - began) * 1000)
        if answer.status_code == 402:
            refused += 1
            world.chosen(n, None)
            continue
        answer.raise_for_status()
        found = answer.json()
        choice = [arm.agent_id for arm in task.arms].index(found["arm"]["agent_id"])
        outcome = world.outcome(n, choice)
        lost, got, spent = (
            lost + float(expected.max() - expected[choice]),
            got + float(expected[choice]),
            spent + outcome.cost_usd,
        )
        counts["missed"] += not outcome.ok or outcome.latency_ms > worlds.SLO_MS
        if isinstance(world, worlds.Outage) and world.out(n):
            counts["outage"] += 1
            counts["broken"] += choice == world.broken
        if isinstance(world, worlds.NewArm) and len(task.arms) == world.n_arms:
            counts["with_new"] += 1
            counts["new"] += choice == world.n_arms - 1
        world.chosen(n, choice)
        bisect.insort(
            late, (n + 1 + outcome.heard_after, found["decision_id"], outcome), key=lambda one: one[:2]
        )
    notes = {"SLO misses": counts["missed"] / world.tasks}
    if counts["outage"]:
        notes["to the broken arm"] = counts["broken"] / counts["outage"]
    if counts["with_new"]:
        notes["to the new arm"] = counts["new"] / counts["with_new"]
    regret = lost / lost_at_random
    if isinstance(world, worlds.Budget):
        best = world.best_within()
        regret = (best - got) / (best - at_random(world))
        notes |= {"spent": spent / world.limit_usd, "refused": refused / world.tasks}
    return Reading(regret, notes, times)


def tell(client: httpx.Client, decision: int, outcome: worlds.Outcome, now_ms: int) -> None:
    body = {
        "decision_id": decision, "ok": outcome.ok, "reward": outcome.reward, "cost_usd": outcome.cost_usd,
        "latency_ms": outcome.latency_ms, "now_ms": now_ms,
    }  # fmt: skip
    client.post("/api/orchestrator/feedback", json=body).raise_for_status()


def at_random(world: worlds.Budget) -> float:
    """What random choice gets until the money is spent."""
    draw, spent, got = np.random.default_rng(world.seed), 0.0, 0.0
    for n in range(world.tasks):
        choice = int(draw.integers(world.n_arms))
        cost = world.outcome(n, choice).cost_usd
        if spent + cost <= world.limit_usd:
            spent, got = spent + cost, got + float(world.expected(n)[choice])
    return got


def fetched(into: Path) -> Path:
    """The wheel of paretobandit."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(into),
        "paretobandit==0.1.1",
    ]
    subprocess.run(command, check=True)
    return next(into.glob("paretobandit-*.whl"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", default=",".join(BARS))
    parser.add_argument("--seeds", default="101,102,103,104")
    parser.add_argument("--tasks", type=int, default=2_000)
    parser.add_argument("--graded", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, served(Path(scratch)) as client:
        return table(client, args, Path(scratch))


def table(client: httpx.Client, args: argparse.Namespace, scratch: Path) -> int:
    """Print a row for each world; 1 when a must isn't met."""
    failed, times = 0, []
    print("| world | regret / random's | must | aim | | beside |\n|---|---|---|---|---|---|", flush=True)
    for name in args.worlds.split(","):
        readings = []
        for seed in (int(one) for one in args.seeds.split(",")):
            if name == "replay":
                worlds.Replay.graded = worlds.graded(args.graded or fetched(scratch))
                world: worlds.World = worlds.Replay(seed)
            else:
                world = worlds.WORLDS[name](seed, tasks=args.tasks)
            readings.append(drive(client, world, f"{name.replace(' ', '-')}-{seed}"))
            times += readings[-1].times_ms
        regret = float(np.mean([one.regret for one in readings]))
        must, aim = BARS[name]
        beside = ", ".join(
            f"{key} {np.mean([one.notes[key] for one in readings]):.2%}" for key in readings[0].notes
        )
        met = "aim" if regret <= aim else "must" if regret <= must else "FAIL"
        failed += met == "FAIL"
        spread = np.std([one.regret for one in readings])
        print(f"| {name} | {regret:.3f} ± {spread:.3f} | {must} | {aim} | {met} | {beside} |", flush=True)
    print(f"\ndecide: p50 {np.percentile(times, 50):.1f} ms, p95 {np.percentile(times, 95):.1f} ms")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
