"""Proves that a canary is judged by the concurrent base, seldom wrongly, soon when it is bad, and never by too little."""

from __future__ import annotations

import random
import statistics
from typing import Any

import msgspec
import pytest

from cogo.plugins.orchestrator import canary
from cogo.plugins.orchestrator.canary import Canary, Counts, Side, due, p_worse
from cogo.plugins.orchestrator.model import Arm, Forecast, Past, Task, Tried

PAST = Past(arm="a", task=Task("do"), n=0, at_ms=0, forecast=Forecast(means=[], spreads=[], shares=[]))
ROW = Canary(
    id=1, agent_id="a", base_version="1", base_model=None, canary_version="2", canary_model=None, steps=[10, 50, 100],
    step=0, state="running", run=0, cause=None, resumes=0, resume_ms=None,
)  # fmt: skip


def note(counts: Counts, decision: int, *, ours: bool, **about: Any) -> None:
    counts.note(decision, msgspec.structs.replace(PAST, **about), Tried(1, 0, ours))


def stopped_at(seed: int, ours: float, base: float = 0.95, tasks: int = 300) -> int | None:
    """At which of its tasks a canary with a tenth of the work is found worse."""
    rng, counts, decision = random.Random(seed), Counts(0), 0
    while counts.canary.n < tasks:
        decision += 1
        is_canary = rng.random() < 0.1
        note(counts, decision, ours=is_canary, ok=rng.random() < (ours if is_canary else base))
        if counts.finding is not None and counts.finding[0] == "worse":
            return counts.canary.n
        counts.finding = None
    return None


def test_one_as_good_as_its_base_is_seldom_stopped() -> None:
    assert sum(stopped_at(seed, 0.95) is not None for seed in range(100)) <= 4


def test_a_bad_one_is_stopped_soon() -> None:
    at = [stopped_at(seed, 0.8) for seed in range(40)]
    assert None not in at
    assert statistics.median(one for one in at if one is not None) <= 40


@pytest.mark.parametrize(
    ("base", "ours", "low", "high"),
    [
        (Side(0, 0), Side(0, 0), 0.45, 0.55),
        (Side(1000, 950), Side(100, 95), 0.4, 0.6),
        (Side(1000, 950), Side(100, 70), 0.9999, 1.0),
        (Side(1000, 500), Side(100, 95), 0.0, 0.0001),
        (Side(10_000, 10_000), Side(10_000, 10_000), 0.0, 1.0),
    ],
)
def test_the_probability_to_be_worse(base: Side, ours: Side, low: float, high: float) -> None:
    assert low <= p_worse(base, ours) <= high
    assert p_worse(base, ours, 0.05) <= p_worse(base, ours)


def test_a_verdict_that_comes_late_turns_a_pass_into_a_failure_once() -> None:
    counts = Counts(0)
    note(counts, 1, ours=True, ok=True, cost_usd=0.5)
    note(counts, 1, ours=True, reward=0.2)
    note(counts, 1, ours=True, reward=0.1)
    note(counts, 1, ours=True, reward=0.9)
    note(counts, 2, ours=False, reward=0.9)
    note(counts, 3, ours=False, ok=False, error_class="caller")
    assert counts.canary == Side(1, 0, 0.5)
    assert counts.base == Side(1, 1)


def test_one_that_was_good_and_then_breaks_is_stopped_all_the_same() -> None:
    counts = Counts(0)
    for decision in range(400):
        note(counts, decision, ours=decision % 4 == 0, ok=True)
    assert counts.finding is not None
    assert counts.finding[0] == "good"
    for decision in range(400, 800):
        note(counts, decision, ours=decision % 4 == 0, ok=decision % 4 != 0)
    assert counts.finding[0] == "worse"


def test_it_resumes_after_longer_and_longer_pauses_and_then_is_rolled_back() -> None:
    one, now, waits = ROW, 0, []
    while True:
        move = due(one, None, "4 failures in a row", now, shared=False)
        assert move is not None
        if move.state == "rolled_back":
            break
        assert move.resume_ms is not None
        waits.append(move.resume_ms - now)
        one = msgspec.structs.replace(one, state="paused", resumes=move.resumes, resume_ms=move.resume_ms)
        assert due(one, None, None, move.resume_ms - 1, shared=False) is None
        assert due(one, None, None, move.resume_ms, shared=True) is None, (
            "its base is broken: nothing to compare"
        )
        now = move.resume_ms
        back = due(one, None, None, now, shared=False)
        assert back is not None
        assert (back.state, back.step) == ("running", 0)
        one = msgspec.structs.replace(one, state="running", resumes=back.resumes)
    assert waits == [canary.RESUME_MS * 2**times for times in range(canary.RESUMES)]


def test_a_trouble_that_its_base_has_as_well_is_not_its_own() -> None:
    assert due(ROW, None, "4 failures in a row", 0, shared=True) is None


def test_the_latest_canary_of_a_version_counts() -> None:
    arms = [Arm(agent_id="a", version=version) for version in ("1", "2", "3")]
    promoted = msgspec.structs.replace(ROW, state="promoted")
    second = msgspec.structs.replace(
        ROW, id=2, base_version="2", canary_version="3", state="rolled_back", cause="x"
    )
    kept, running = canary.applied(arms, [promoted, second], "low")
    assert [arm.excluded_by is None for arm in kept] == [False, True, False]
    assert running == []
    back = msgspec.structs.replace(ROW, id=3, base_version="2", canary_version="1")
    kept, running = canary.applied(arms, [promoted, second, back], "low")
    assert [arm.excluded_by is None for arm in kept] == [True, True, False]
    assert running == [back]
