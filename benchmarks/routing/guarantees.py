"""What COGO promises of its orchestrator, asked of served processes over HTTP: a row for each promise.

    python benchmarks/routing/guarantees.py [--only NAMES] [--short]

`--short` asks less often and takes a few minutes; the bars are the same. How soon work is well routed again after a drift
is read in the world of that name (run.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import canaries
import driving
import lane
import numpy as np
import psycopg
import replicas
import serving
import worlds
from serving import API, Site

if TYPE_CHECKING:
    import httpx


@dataclasses.dataclass
class Row:
    """One promise; without a must it is a limit to read others by."""

    name: str
    what: str
    reading: float
    unit: str = ""
    must: float | None = None
    aim: float | None = None
    least: bool = False
    """The reading must be at least so much; else at most."""

    @property
    def state(self) -> str:
        if self.must is None:
            return ""
        if not self._meets(self.must):
            return "FAIL"
        return "aim" if self.aim is None or self._meets(self.aim) else "pass"

    def _meets(self, bar: float) -> bool:
        return self.reading >= bar if self.least else self.reading <= bar


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How often each thing is asked."""

    decisions: int = 1_000
    keys: int = 400
    both: int = 300
    outcomes: int = 2_000
    timed: int = 500
    equal: int = 100
    bad: int = 40


ENOUGH = 5

SHORT = Sizes(keys=100, both=100, timed=200, equal=6, bad=6)


# -- decisions made again, and propensities ---------------------------------------------------------


class Forgetful(serving.Cogo):
    """Never hears what became of a tenth of the tasks; of the others late."""

    def learn(self, task: worlds.Task, index: int, outcome: worlds.Outcome, now_ms: int) -> None:
        if task.n % 10 != 3:
            super().learn(task, index, outcome, now_ms)


def logged(site: Site, sizes: Sizes) -> Iterator[Row]:
    """`cogo eval replay` of what was decided while feedback came late or not at all, and what was logged of chance."""
    _, url = site.serve()
    world = worlds.Delayed(301, tasks=sizes.decisions)
    with site.client(url) as client:
        router = Forgetful(client, "replay", world)
        router.kept = True
        driving.drive(world, router)
    found = site.run("eval", "replay", "--tenant", "replay", "--limit", str(sizes.decisions))
    made = len(router.answers)
    yield Row(
        "replay",
        f"of {made} logged decisions, made again alike",
        found["equal"] / made,
        "share",
        1.0,
        1.0,
        True,
    )
    yield from propensities(router.answers)


def propensities(answers: list[dict[str, Any]]) -> Iterator[Row]:
    """Sums of p, p of the chosen, and whether arms were chosen as often as p says."""
    p = np.array([[score["p"] for score in answer["scores"]] for answer in answers])
    names = [[score["agent_id"] for score in answer["scores"]] for answer in answers]
    chosen = np.array(
        [row.index(answer["arm"]["agent_id"]) for row, answer in zip(names, answers, strict=True)]
    )
    off = float(np.abs(p.sum(axis=1) - 1).max())
    yield Row("propensities", f"sum of p over candidates off 1, at the most of {len(p)}", off, "", 1e-9, 1e-9)
    at = p[np.arange(len(p)), chosen]
    said = np.array([answer["propensity"] for answer in answers])
    wrong = int((at <= 0).sum() + (np.abs(at - said) > 1e-12).sum())
    yield Row("propensities", "chosen with p = 0, or another p than its score's", wrong, "decisions", 0, 0)
    yield Row(
        "propensities",
        "frequencies against p: p-value of chi-square",
        _agreement(p, chosen),
        "",
        0.001,
        0.01,
        True,
    )


def _agreement(p: np.ndarray, chosen: np.ndarray) -> float:
    """The smallest p-value over arms and sizes of p, times their number, which holds however they depend on another."""
    hit = np.zeros_like(p)
    hit[np.arange(len(p)), chosen] = 1
    found = []
    edges = [0, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 1.01]
    for arm, (low, high) in itertools.product(range(p.shape[1]), itertools.pairwise(edges)):
        said, was = p[:, arm], hit[:, arm]
        within = (said >= low) & (said < high)
        variance = float((said[within] * (1 - said[within])).sum())
        if variance >= ENOUGH:  # else it is far from normal
            chi2 = float((was[within] - said[within]).sum()) ** 2 / variance
            found.append(math.erfc(math.sqrt(chi2 / 2)))
    return min(1.0, min(found) * len(found)) if found else 1.0


# -- two processes --------------------------------------------------------------------------------


def two_replicas(site: Site, sizes: Sizes) -> Iterator[Row]:
    yield from _ledger(replicas.shared(site, "shared", sizes.keys, kill=False), "two replicas")


def killed(site: Site, sizes: Sizes) -> Iterator[Row]:
    site.env |= {"COGO_LEASE_MS": "3000", "COGO_BEAT_MS": "500"}
    yield from _ledger(replicas.shared(site, "killed", sizes.keys, kill=True), "one of two killed -9")


def _ledger(found: dict[str, Any], name: str) -> Iterator[Row]:
    asked = f"{found['keys']} keys, {found['decided']} decided, {found['refused']} refused"
    if found["moved"]:
        asked += f", {found['moved']} calls moved to the other process"
    yield Row(name, f"keys decided twice ({asked})", found["doubled"], "keys", 0, 0)
    yield Row(name, "answers that are neither 202 nor 402", found["other answers"], "answers", 0, 0)
    yield Row(name, f"reserved and spent, of the limit, at the most of {found['looks']} looks",
              found["most of the limit"], "share", 1 + 1e-9, 1 + 1e-9)  # fmt: skip
    yield Row(name, "reservations or decisions without a message", found["orphans"], "rows", 0, 0)
    yield Row(name, "work that did not end", found["unfinished"], "messages", 0, 0)
    left = abs(found["reserved"]) + abs(found["held"])
    yield Row(name, "still reserved when all work has ended", left, "USD", 1e-9, 1e-9)


def same_beliefs(site: Site, sizes: Sizes) -> Iterator[Row]:
    arms, differ = replicas.beliefs(site, sizes.both)
    yield Row("two replicas", "arms that both know", arms, "arms", 2, 2, True)
    yield Row("two replicas", "success, reward, n_eff: difference at the most", differ, "", 1e-6, 1e-6)
    found = site.run("eval", "replay", "--tenant", "both", "--limit", str(sizes.both))
    yield Row("two replicas", f"of {found['decisions']} decisions of both, made again alike",
              found["equal"] / sizes.both, "share", 1.0, 1.0, True)  # fmt: skip


# -- speed ----------------------------------------------------------------------------------------


def speed(site: Site, sizes: Sizes) -> Iterator[Row]:
    """One caller at a time, the limits in between, so all meet the same machine."""
    _, url = site.serve()
    replicas.open_lane(site)
    world = worlds.World(303, tasks=sizes.outcomes, n_arms=12)
    times: dict[str, list[float]] = {name: [] for name in ("decide", "decide-enqueue", "SELECT 1", "/livez")}
    with site.client(url) as client, psycopg.connect(replicas.dsn_of(site), autocommit=True) as conn:
        driving.drive(world, serving.Cogo(client, "speed", world))
        for n in range(sizes.timed):
            task = world.task(n)
            body = {
                "tenant": "speed", "intent": lane.INTENT, "features": task.features,
                "objective": worlds.OBJECTIVE, "candidates": [vars(arm) for arm in task.arms],
            }  # fmt: skip
            _timed(times["decide"], lambda body=body | {"intent": task.intent}: _ok(client, "decide", body))
            _timed(times["decide-enqueue"], lambda body=body: _ok(client, "decide-enqueue", body))
            _timed(times["SELECT 1"], lambda: conn.execute("SELECT 1").fetchone())
            _timed(times["/livez"], lambda: client.get("/livez"))
    bars = {"decide": ((5, 2.5), (20, 10)), "decide-enqueue": (None, (30, 15))}
    for name, took in times.items():
        for percent, bar in zip((50, 95), bars.get(name, (None, None)), strict=True):
            value = float(np.percentile(took, percent))
            yield Row("speed", f"{name}, p{percent} of {len(took)}", value, "ms", *(bar or (None, None)))


def _timed(took: list[float], call: Callable[[], Any]) -> None:
    began = time.perf_counter()
    call()
    took.append((time.perf_counter() - began) * 1000)


def _ok(client: httpx.Client, name: str, body: dict[str, Any]) -> None:
    client.post(f"{API}/{name}", json=body).raise_for_status()


# -- canaries -------------------------------------------------------------------------------------


def canary(site: Site, sizes: Sizes) -> Iterator[Row]:
    _, url = site.serve()
    with site.client(url) as client:
        paused = [canaries.run(client, seed, 0.95, canaries.EQUAL_TASKS) for seed in range(sizes.equal)]
        share = sum(one.state != "running" for one in paused) / len(paused)
        what = f"equal versions (95 %), 10 % share, {canaries.EQUAL_TASKS} tasks: paused, of {len(paused)}"
        yield Row("canary", what, share, "share", 0.03, 0.01)
        bad = [canaries.run(client, 1_000 + seed, 0.80, canaries.BAD_TASKS_MAX) for seed in range(sizes.bad)]
        took = [one.canary_tasks if one.state == "paused" else math.inf for one in bad]
        what = f"80 % against 95 %: its tasks until it is paused, median of {len(took)}"
        yield Row("canary", what, float(np.median(took)), "tasks", 60, 40)
        never = sum(math.isinf(one) for one in took)
        yield Row("canary", f"of those, not paused within {canaries.BAD_TASKS_MAX} tasks", never, "canaries")


# -- all of them ----------------------------------------------------------------------------------

ALL: dict[str, Callable[[Site, Sizes], Iterator[Row]]] = {
    "replay": logged, "replicas": two_replicas, "killed": killed, "beliefs": same_beliefs, "speed": speed,
    "canary": canary,
}  # fmt: skip
HEAD = "| promise | what | reading | must | aim | |\n|---|---|---|---|---|---|"


def rows(names: list[str], sizes: Sizes, scratch: Path) -> Iterator[Row]:
    """Each on a fresh database. What can't be asked at all fails."""
    for name in names:
        with serving.site(scratch / name) as site:
            yield from ALL[name](site, sizes)


def line(row: Row) -> str:
    sign = "≥" if row.least else "≤"
    bars = ["" if bar is None else f"{sign} {_figure(bar, row.unit)}" for bar in (row.must, row.aim)]
    cells = [row.name, row.what, _figure(row.reading, row.unit), *bars, row.state]
    return f"| {' | '.join(cells)} |"


def _figure(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.1%}"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.4g}" + (f" {unit}" if unit else "")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(ALL))
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    failed = 0
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows(args.only.split(","), SHORT if args.short else Sizes(), Path(scratch)):
            print(line(row), flush=True)
            failed += row.state == "FAIL"
    return 1 if failed else 0


if __name__ == "__main__":
    serving.ends_in_order()
    sys.exit(main())
