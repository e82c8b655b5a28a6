"""Proves that the routing benchmark runs: worlds and promises against served processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

HERE = Path(__file__).parents[2] / "benchmarks" / "routing"
ROUTERS = {
    "COGO",
    "random",
    "round robin",
    "least loaded",
    "cheapest",
    "best single arm",
    "the best arm of each task",
}
SMALL = """
import sys, json, dataclasses, tempfile
from pathlib import Path
import guarantees
with tempfile.TemporaryDirectory() as scratch:
    sizes = guarantees.Sizes(decisions=25, keys=10, both=80)
    rows = list(guarantees.rows(sys.argv[1:], sizes, Path(scratch)))
    print(json.dumps([dataclasses.asdict(row) | {"state": row.state} for row in rows]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=HERE, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.timeout(60)
def test_two_worlds_through_http() -> None:
    """Every router has a reading of each, and money is never overspent. So few tasks say nothing of regret."""
    ran = run(
        "run.py", "--worlds", "stationary,budget", "--seeds", "1", "--tasks", "40", "--routers", "cogo,simple,limits",
        "--guarantees", "none", "--json",
    )  # fmt: skip
    assert ran.returncode in (0, 1), ran.stderr
    readings = msgspec.json.decode(ran.stdout)["readings"]
    assert {(row["router"], row["world"]) for row in readings} == {
        (router, world) for router in ROUTERS for world in ("stationary", "budget")
    }
    assert all(row["notes"]["spent"] <= 1 for row in readings if row["world"] == "budget")
    (ours,) = (row for row in readings if (row["router"], row["world"]) == ("COGO", "stationary"))
    assert 0 < ours["regret"] < 1.5
    assert ours["p50_ms"] > 0.5, "it was asked over HTTP"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["replay", "replicas", "beliefs"])
def test_promises_are_asked_of_processes(name: str) -> None:
    ran = run("-c", SMALL, name)
    assert ran.returncode == 0, ran.stderr
    rows: list[dict[str, Any]] = msgspec.json.decode(ran.stdout)
    assert {row["name"] for row in rows} <= {"replay", "propensities", "two replicas"}
    assert [row for row in rows if row["state"] not in ("pass", "aim")] == []
