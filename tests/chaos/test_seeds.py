"""Proves that nothing is lost, doubled or written late under faults, and that the judge of that sees planted bugs.

Two runs go on at the same time, each in a process of its own with a Postgres of its own; the tests wait for
theirs. `python tests/chaos/run.py --seed N` repeats one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from chaos.plants import PLANTS
from chaos.scenarios import SCENARIOS
from chaos.suite import Report

SEEDS = (1, 2, 3, 4, 5, 6)
RUN = Path(__file__).parent / "run.py"
RUN_S = 120

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

Runs = dict[tuple[str, str], "Future[Report]"]


TRIES = 3
"""Runs in which a planted bug must show once: what a crash of Postgres loses, for one, is a matter of milliseconds."""


def run(kind: str, name: str) -> Report:
    """A run, judged; of a planted bug the first that shows it."""
    reports = (run_once(kind, name) for _ in range(TRIES if kind == "--plant" else 1))
    report = next(reports)
    while not report.caught and (another := next(reports, None)) is not None:
        report = another
    return report


def run_once(kind: str, name: str) -> Report:
    """One run, judged; what it wrote to stderr when it broke down."""
    argv = [sys.executable, str(RUN), kind, name, "--json"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert ran.stdout, ran.stderr
    return msgspec.json.decode(ran.stdout.splitlines()[-1], type=Report)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """What the selected tests ask for, two at a time."""
    wanted = [
        item.callspec.params["about"]
        for item in request.session.items
        if item.path == request.path and "about" in getattr(getattr(item, "callspec", None), "params", ())
    ]
    pool = ThreadPoolExecutor(2)
    try:
        yield {about: pool.submit(run, *about) for about in wanted}
    finally:
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("about", [("--seed", str(seed)) for seed in SEEDS], ids=lambda about: about[1])
def test_a_seed_is_green(about: tuple[str, str], runs: Runs):
    """Under the faults of a seed every rule holds, work goes on, and all of it ends soon after."""
    report = runs[about].result()
    assert report.green, f"kept in {report.folder}:\n" + "\n".join(report.violations)
    assert len(report.faults) > 3, "and faults there were"


@pytest.mark.parametrize("about", [("--plant", name) for name in PLANTS], ids=lambda about: about[1])
def test_a_planted_bug_is_caught(about: tuple[str, str], runs: Runs):
    """With this bug in the bus the run is red, by the rule that the bug breaks."""
    report = runs[about].result()
    assert report.caught, report.violations
    assert PLANTS[about[1]].rules <= set(report.rules)


@pytest.mark.parametrize("about", [("--scenario", name) for name in SCENARIOS], ids=lambda about: about[1])
def test_without_the_bug_the_same_run_is_green(about: tuple[str, str], runs: Runs):
    """What turned those runs red was the bug."""
    report = runs[about].result()
    assert report.green, f"kept in {report.folder}:\n" + "\n".join(report.violations)
    assert report.rules == []


def test_the_faults_bit(runs: Runs):
    """Over the seeds that ran, claims were lost, reclaimed and refused, and connections made anew."""
    reports = [future.result() for (kind, _), future in runs.items() if kind == "--seed"]
    if len(reports) < len(SEEDS):
        pytest.skip("only some of the seeds were selected")
    assert sum(report.refused for report in reports) > 0
    assert sum(report.reclaimed for report in reports) > 0
    assert sum(report.reconnects for report in reports) > 0
