"""The bars, the tables of a run, and the page of docs that is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import guarantees
import numpy as np
from guarantees import Row

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks-routing.md"
COGO = "COGO"
FULL_TASKS = 2_000
FULL_SEEDS = 4


@dataclass(frozen=True)
class Bar:
    """Of a note beside the regret."""

    note: str
    must: float
    aim: float
    least: bool = False
    unit: str = "share"


BARS: dict[str, tuple[float, float, tuple[Bar, ...]]] = {
    "stationary": (0.18, 0.14, ()),
    "drift": (0.27, 0.22, (Bar("tasks to recover", 150, 100, unit="tasks"),)),
    "outage": (0.25, 0.18, (Bar("to the broken arm", 0.08, 0.03),)),
    "cost shock": (0.25, 0.20, ()),
    "delayed": (0.25, 0.20, ()),
    "load": (0.22, 0.18, (Bar("SLO misses", 0.30, 0.12),)),
    "new version": (0.18, 0.15, (Bar("to the new arm", 0.55, 0.70, True),)),
    "bad new version": (0.18, 0.15, (Bar("to the new arm", 0.02, 0.01),)),
    "budget": (0.10, 0.06, (Bar("spent", 1.0, 1.0), Bar("refused", 0.03, 0.005))),
    "replay": (0.15, 0.12, ()),
}
"""Of each world: must and aim of the regret, and what else must hold."""

HEAD = """# Benchmarks of routing

This page is written by `python benchmarks/routing/run.py --write`; do not edit it. It shows runs on one machine: regret
and shares depend on the seeds alone, times on the machine.

The worlds are of `benchmarks/routing/worlds.py`, and so is the objective: quality, less a quarter of the cost in cents, less
a quarter for a task that failed or took over 4 s. Worlds and COGO are of the same hand, which favours COGO; `replay` is
not: its 1,824 prompts were graded by others. Regret is the expected utility of the best arm less that of the chosen one,
divided by what random choice loses; under a budget it is measured against what could be had within it by who knows
everything. COGO is asked over HTTP. The others are called in their own process with the same tasks and the same random
numbers, in their first settings, and learn from the utility that came of a task. Differences below 0.02 are noise. Two
are limits that nobody can know beforehand: the best single arm, and the best arm of each task.
"""


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def of(document: dict[str, Any], router: str, world: str) -> list[dict[str, Any]]:
    return [row for row in document["readings"] if (row["router"], row["world"]) == (router, world)]


def judged(document: dict[str, Any]) -> Iterator[Row]:
    """COGO's regret in each world, and what else must hold there."""
    for world, (must, aim, others) in BARS.items():
        if not (rows := of(document, COGO, world)):
            continue
        spread = float(np.std([row["regret"] for row in rows]))
        what = f"regret / random's, ± {spread:.3f} over {len(rows)} seeds"
        yield Row(world, what, mean([row["regret"] for row in rows]), "", must, aim)
        for bar in others:
            # What must not happen with any seed is the worst of them; shares and times are means.
            values = [row["notes"][bar.note] for row in rows]
            value = max(values) if bar.note == "spent" else mean(values)
            each = f" ({', '.join(f'{value:g}' for value in values)})" if bar.unit == "tasks" else ""
            yield Row(world, f"{bar.note}{each}", value, bar.unit, bar.must, bar.aim, bar.least)


def promises(document: dict[str, Any]) -> Iterator[Row]:
    for found in document["guarantees"]:
        yield Row(**found)


def failed(document: dict[str, Any]) -> list[Row]:
    return [row for row in (*judged(document), *promises(document)) if row.state == "FAIL"]


def tables(document: dict[str, Any]) -> str:
    parts = [_routers(document)] if document["readings"] else []
    for title, rows in (("COGO's bars", list(judged(document))), ("Guarantees", list(promises(document)))):
        if rows:
            parts.append(
                "\n".join([f"## {title}\n", guarantees.HEAD, *(guarantees.line(row) for row in rows)])
            )
    return "\n\n".join(parts)


def _routers(document: dict[str, Any]) -> str:
    """World by router: the mean regret of the seeds with its deviation."""
    names = list(dict.fromkeys(row["world"] for row in document["readings"]))
    routers = sorted(
        dict.fromkeys(row["router"] for row in document["readings"]), key=lambda name: name != COGO
    )
    lines = [
        "## Regret, divided by random's\n",
        f"| router | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for router in routers:
        cells = []
        for name in names:
            values = [row["regret"] for row in of(document, router, name)]
            cells.append(f"{mean(values):.2f} ± {np.std(values):.2f}" if values else "-")
        lines.append(f"| {f'**{router}**' if router == COGO else router} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _beside(document, names, routers)])


def _beside(document: dict[str, Any], names: list[str], routers: list[str]) -> str:
    """What else counts in some worlds, of every router."""
    columns = [(name, bar) for name in names for bar in BARS[name][2]]
    if not columns:
        return ""
    lines = [
        f"| router | {' | '.join(f'{name}: {bar.note}' for name, bar in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for router in routers:
        cells = []
        for name, bar in columns:
            values = [row["notes"].get(bar.note, math.nan) for row in of(document, router, name)]
            value = mean(values) if values else math.nan
            shown = f"{value:.1%}" if bar.unit == "share" else f"{value:.0f}"
            cells.append("-" if math.isnan(value) else shown)
        lines.append(f"| {router} | {' | '.join(cells)} |")
    return "\n".join(["", *lines])


def page(document: dict[str, Any]) -> str:
    about = document["about"]
    part = ""
    if len(about["seeds"].split(",")) < FULL_SEEDS or about["tasks"] < FULL_TASKS:
        part = " It is a short run: the bars are for four seeds and 2,000 tasks."
    when = (
        f"{about['date']}, `{about['command']}`: COGO {about['cogo']}, {', '.join(about['peers'])}, Python "
        f"{about['python']}, {about['cores']} shared cores, load {about['load_before']} before and "
        f"{about['load_after']} after. Seeds {about['seeds']}, {about['tasks']} tasks.{part}"
    )
    missed = [f"{row.name} ({row.what})" for row in failed(document)]
    verdict = f"Not met: {'; '.join(missed)}." if missed else "Every must is met."
    return f"{HEAD}\n{when}\n\n{verdict}\n\n{tables(document)}\n"
