"""Proves that the routing benchmark judges: its bars can fail, its baselines run, and they need numpy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parents[2] / "benchmarks" / "routing"
MODULES = (
    "baselines",
    "canaries",
    "driving",
    "guarantees",
    "lane",
    "peers",
    "replicas",
    "report",
    "serving",
    "worlds",
)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Its modules, which import one another by name."""
    monkeypatch.syspath_prepend(HERE)
    found = {name: __import__(name) for name in MODULES}
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name)
    return found


def answers(n: int, first: int) -> list[dict[str, Any]]:
    """Decisions between two arms at even odds, of which the first got so many."""
    scores = [{"agent_id": name, "p": 0.5} for name in "ab"]
    return [
        {"scores": scores, "propensity": 0.5, "arm": {"agent_id": "a" if i < first else "b"}}
        for i in range(n)
    ]


@pytest.mark.parametrize(("first", "state"), [(205, "aim"), (300, "FAIL")])
def test_chosen_as_often_as_was_said(bench: dict[str, Any], first: int, state: str) -> None:
    rows = list(bench["guarantees"].propensities(answers(400, first)))
    assert [row.state for row in rows] == ["aim", "aim", state]


def test_propensities_that_are_wrong_are_seen(bench: dict[str, Any]) -> None:
    found = answers(400, 200)
    found[7] = found[7] | {"propensity": 0.9}
    found[9] = found[9] | {"scores": [{"agent_id": "a", "p": 0.5}, {"agent_id": "b", "p": 0.4}]}
    rows = list(bench["guarantees"].propensities(found))
    assert [row.state for row in rows][:2] == ["FAIL", "FAIL"]


def test_recovery_counts_only_what_comes_after_the_swap(bench: dict[str, Any]) -> None:
    recovery = bench["driving"].recovery
    assert recovery([0.1] * 200, 100) == 50, "the first window that lies after it"
    assert recovery([0.1] * 100 + [0.5] * 60 + [0.1] * 100, 100) == pytest.approx(60 + 50, abs=6)
    assert recovery([0.1] * 100 + [0.5] * 100, 100) == 100, "never"


def test_a_side_condition_fails_with_its_worst_seed(bench: dict[str, Any]) -> None:
    def reading(spent: float) -> dict[str, Any]:
        notes = {"spent": spent, "refused": 0.0}
        return {"router": "COGO", "world": "budget", "seed": 1, "regret": 0.01, "notes": notes}

    document = {"readings": [reading(0.5), reading(0.9)], "guarantees": []}
    assert bench["report"].failed(document) == []
    document["readings"][1] = reading(1.001)
    assert [row.what for row in bench["report"].failed(document)] == ["spent"]


def test_simple_baselines_in_two_worlds(bench: dict[str, Any]) -> None:
    baselines, worlds = bench["baselines"], bench["worlds"]
    for name in ("stationary", "budget"):
        found = {
            router: baselines.read(router, lambda name=name: worlds.made(name, 5, 150))
            for router in (*baselines.SIMPLE, baselines.HINDSIGHT)
        }
        assert found["random"].regret == pytest.approx(1, abs=0.25)
        assert found[baselines.HINDSIGHT].regret < found["random"].regret
        if name == "stationary":
            assert found["the best arm of each task"].regret == 0
        if name == "budget":
            assert all(reading.notes["spent"] <= 1 for reading in found.values())
            assert found["random"].notes["refused"] > 0


def test_what_the_peers_run_needs_numpy_alone() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); sys.modules.update(dict.fromkeys(('httpx', 'cogo', 'msgspec', 'psycopg')));"
        "import baselines; print(len(baselines.PEERS))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "8", ran.stderr
