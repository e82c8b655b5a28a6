"""Chaos by seed: `run.py --seeds 200`, or `run.py --seed 42` to repeat one. Exit code 1 when one is red.

One seed is one plan of faults, printed before it runs. A red run keeps its folder: plan, history, logs, verdict.
`run.py --plants` tests the judge: each run with a planted bug must be red, and the same without it green.
"""

from __future__ import annotations

import argparse
import functools
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import anyio
import msgspec
from chaos.machines import faketime
from chaos.nemesis import plan
from chaos.plants import PLANTS
from chaos.scenarios import SCENARIOS, run_scenario
from chaos.suite import Report, run_plan

SECONDS = 8.0
BITES = ("refused", "reclaimed", "reconnects")
"""What must have happened somewhere in a suite of seeds: else its green means nothing."""
SUITE_MIN = 5


def arguments() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seeds", type=int, help="how many seeds to run")
    which.add_argument("--seed", type=int, help="run this one and say all about it")
    which.add_argument(
        "--plants", action="store_true", help="run every planted bug and every scenario without one"
    )
    which.add_argument("--plant", choices=sorted(PLANTS), help="run this planted bug")
    which.add_argument("--scenario", choices=sorted(SCENARIOS), help="run this scenario with nothing planted")
    parser.add_argument("--from", dest="first", type=int, default=1, help="the first of --seeds")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of a seed's fault phase")
    parser.add_argument("--jobs", type=int, default=1, choices=(1, 2), help="runs at the same time")
    parser.add_argument("--keep", action="store_true", help="keep the folders of green runs too")
    parser.add_argument("--json", action="store_true", help="print reports as JSON lines")
    return parser.parse_args()


# -- one run, in this process --------------------------------------------------------------------


def one(given: Any) -> Report:
    """The run that --seed, --plant or --scenario names. A planted bug that shows is what was wanted: green."""
    folder = Path(tempfile.mkdtemp(prefix="cogo-chaos-"))
    if given.seed is not None:
        made = plan(given.seed, given.seconds)
        if not given.json:
            clock = "faketime" if faketime() else "time.time() patched in the process"
            print(
                f"seed {given.seed}, {given.seconds:g} s, clocks jump by {clock}, in {folder}:\n{made}",
                flush=True,
            )
        report = anyio.run(functools.partial(run_plan, made, folder))
    elif given.plant is not None:
        report = _planted(given.plant, folder)
    else:
        report = anyio.run(functools.partial(run_scenario, given.scenario, folder))
    if report.green and not given.keep:
        shutil.rmtree(folder)
    else:  # all that the cluster knew is in history.jsonl and tables.jsonl; its log stays
        shutil.rmtree(folder / "pg" / "pg", ignore_errors=True)
    return report


def _planted(name: str, folder: Path) -> Report:
    bug = PLANTS[name]
    report = anyio.run(
        functools.partial(
            run_scenario, bug.scenario, folder, prepare=bug.prepare, options=bug.options, planted=name
        )
    )
    missed = sorted(bug.rules - set(report.rules))
    seen = [] if not missed else [f"the bug was not seen by rules {missed}, only by {report.rules}"]
    return msgspec.structs.replace(report, violations=seen, caught=not missed)


# -- many runs, each in a process of its own -----------------------------------------------------


def elsewhere(what: tuple[str, str], given: Any) -> Report:
    """One run in a process of its own; one that breaks down is red."""
    argv = [sys.executable, __file__, *what, "--seconds", f"{given.seconds:g}", "--json"]
    ran = subprocess.run(
        [*argv, *(["--keep"] if given.keep else [])], capture_output=True, text=True, check=False
    )
    try:
        return msgspec.json.decode(ran.stdout.splitlines()[-1], type=Report)
    except (IndexError, msgspec.DecodeError):
        why = f"the run broke down: {ran.stderr.strip()[-3000:]}"
        return Report(name=" ".join(what), folder="", seconds=0.0, faults={}, messages={}, refused=0, reclaimed=0,
                      given_back=0, reconnects=0, recovery_s=None, violations=[why], rules=[])  # fmt: skip


def many(runs: Iterable[tuple[str, str]], given: Any) -> Iterator[tuple[tuple[str, str], Report]]:
    """The runs and their reports, in order, --jobs at a time."""
    runs = list(runs)
    with ThreadPoolExecutor(given.jobs) as pool:
        yield from zip(runs, pool.map(functools.partial(elsewhere, given=given), runs), strict=True)


def tell(report: Report, given: Any, what: tuple[str, str]) -> None:
    if given.json:
        print(msgspec.json.encode(report).decode(), flush=True)
        return
    print(report.line(), flush=True)
    if not report.green:
        for violation in report.violations[:10]:
            print(f"    {violation}")
        again = f"python {sys.argv[0]} {' '.join(what)} --seconds {given.seconds:g}"
        print(f"    kept in {report.folder or 'no folder'}; again: {again}", flush=True)


def summary(reports: list[Report]) -> str:
    red = [report.name for report in reports if not report.green]
    counts = ", ".join(
        f"{name} {sum(getattr(one, name) for one in reports)}" for name in (*BITES, "given_back")
    )
    slowest = max((report.recovery_s or 0.0 for report in reports), default=0.0)
    messages = sum(sum(report.messages.values()) for report in reports)
    end = f"RED: {', '.join(red)}" if red else "all as it should be"
    return f"{len(reports)} runs, {messages} messages, {counts}, slowest recovery {slowest:.1f} s: {end}"


def suite(given: Any) -> int:
    """Seeds, or all plants and their controls; the exit code."""
    if given.plants:
        runs = [("--plant", name) for name in PLANTS] + [("--scenario", name) for name in SCENARIOS]
    else:
        runs = [("--seed", str(seed)) for seed in range(given.first, given.first + given.seeds)]
    reports = []
    for what, report in many(runs, given):
        tell(report, given, what)
        reports.append(report)
    if not given.json:
        print(summary(reports))
    idle = [name for name in BITES if not any(getattr(report, name) for report in reports)]
    if idle and not given.plants and len(reports) >= SUITE_MIN:
        print(f"nothing was {', '.join(idle)}: the faults did not bite", file=sys.stderr)
        return 1
    return 0 if all(report.green for report in reports) else 1


def main() -> int:
    # The driver tells of each connection that a fault took from it; that is what faults are for.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    given = arguments()
    if given.seeds is not None or given.plants:
        return suite(given)
    what = next((f"--{name}", str(value)) for name, value in
                (("seed", given.seed), ("plant", given.plant), ("scenario", given.scenario)) if value is not None)  # fmt: skip
    report = one(given)
    tell(report, given, what)
    return 0 if report.green else 1


if __name__ == "__main__":
    sys.exit(main())
