"""Proves the estimators where every outcome can be enumerated: no bias, intervals that hold, and what is left out and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from cogo.plugins.orchestrator import compare, offpolicy, registry
from cogo.plugins.orchestrator.model import Arm, Inputs, Objective, Task, Trial
from cogo.plugins.orchestrator.offpolicy import Estimate, Log
from cogo.plugins.orchestrator.registry import Policy

TRUTH = np.array([[0.9, 0.5, 0.2], [0.1, 0.6, 0.4], [0.5, 0.5, 0.7], [0.3, 0.8, 0.1]])
"""Chance of success of each arm in each of four contexts, which are equally likely."""
LOGGED = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.4, 0.3, 0.3], [0.05, 0.9, 0.05]])
TARGET = np.array([[0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.0, 0.2, 0.8], [0.5, 0.4, 0.1]])
WRONG = np.array([[0.7, 0.6, 0.3], [0.3, 0.4, 0.4], [0.6, 0.3, 0.6], [0.4, 0.6, 0.3]])
"""Forecasts, some far off."""
VALUE = float((TRUTH * TARGET).sum(1).mean())
LOGGED_VALUE = float((TRUTH * LOGGED).sum(1).mean())
SEEDS = 600


def world(seed: int, n: int = 800, target: Any = TARGET, logged: Any = LOGGED) -> Log:
    rng = np.random.default_rng(seed)
    context = rng.integers(0, len(TRUTH), n)
    p = logged[context]
    chosen = (rng.random((n, 1)) > p.cumsum(1)).sum(1)
    ok = rng.random(n) < TRUTH[context, chosen]
    sd = np.full(p.shape, 0.2)
    return Log(p, target[context], WRONG[context], sd, chosen, ok.astype(float))


ESTIMATORS: list[tuple[Callable[[Log], Any], float]] = [
    (offpolicy.ips, VALUE), (offpolicy.snips, VALUE), (offpolicy.dr, VALUE), (offpolicy.gain, VALUE - LOGGED_VALUE),
]  # fmt: skip


@pytest.mark.parametrize(("estimator", "truth"), ESTIMATORS)
def test_estimates_have_no_bias_and_intervals_hold(estimator: Callable[[Log], Any], truth: float) -> None:
    found: list[Estimate] = [estimator(world(seed)) for seed in range(SEEDS)]
    values = np.array([one.value for one in found])
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / np.sqrt(SEEDS))
    assert np.mean([one.se for one in found]) == pytest.approx(values.std(), rel=0.1), "the error it states"
    covered = np.mean([one.ci[0] <= truth <= one.ci[1] for one in found])
    assert 0.925 <= covered <= 0.975


def test_dr_is_the_steadiest_and_forecasts_without_error_leave_only_noise() -> None:
    worlds = [world(seed) for seed in range(100)]
    spread = {name: np.std([getattr(offpolicy, name)(one).value for one in worlds]) for name in ("ips", "dr")}
    assert spread["dr"] < 0.85 * spread["ips"]


def test_weights_are_clipped_and_the_interval_says_what_that_costs() -> None:
    """An arm that is chosen once in 2,000 tasks: its forecast counts, and how unsure it was."""
    rare = np.tile([0.9985, 0.001, 0.0005], (4, 1))
    log = world(7, 500, target=np.tile([0.0, 0.0, 1.0], (4, 1)), logged=rare)
    assert log.clip == pytest.approx(2 * 500**0.5)
    left = 1 - log.clip * 0.0005
    assert log.unweighed.sum(1) == pytest.approx(np.full(500, left))
    found = [
        offpolicy.dr(world(s, 500, target=np.tile([0.0, 0.0, 1.0], (4, 1)), logged=rare)) for s in range(100)
    ]
    assert all(one.se >= left * 0.2 for one in found), "at the least the forecasts' own uncertainty"
    truth = TRUTH[:, 2].mean()
    assert np.mean([one.ci[0] <= truth <= one.ci[1] for one in found]) >= 0.95
    raw = [offpolicy.ips(world(s, 500, target=np.tile([0.0, 0.0, 1.0], (4, 1)), logged=rare)) for s in range(100)]  # fmt: skip
    assert np.mean([one.ci[0] <= truth <= one.ci[1] for one in raw]) < 0.5, "where IPS' own interval fails"


def test_what_nobody_chose_is_not_weighed() -> None:
    """The logged policy never takes the third arm: outcomes say nothing about it."""
    log = world(1, target=np.tile([0.0, 0.0, 1.0], (4, 1)), logged=np.tile([0.5, 0.5, 0.0], (4, 1)))
    assert offpolicy.snips(log) is None
    assert offpolicy.dr(log).value == pytest.approx(log.forecast[:, 2].mean())
    assert offpolicy.dr(log).se >= 0.2
    assert offpolicy.estimated(log)["unweighed"] == 1.0


def test_the_sample_that_is_as_good_as_one_of_its_own() -> None:
    same = offpolicy.estimated(world(3, target=LOGGED))
    assert (same["effective_sample_size"], same["largest_weight"]) == (pytest.approx(800), pytest.approx(1))
    assert (same["gain"].value, same["gain"].se, same["verdict"]) == (0, 0, "undecided")
    assert same["ips"] == same["snips"] or same["ips"].value == pytest.approx(same["snips"].value)
    other = offpolicy.estimated(world(3))
    assert 0 < other["effective_sample_size"] < 500
    assert other["largest_weight"] == pytest.approx(10)
    assert offpolicy.estimated(world(3, n=1)) == {"verdict": "undecided"}


def test_the_verdict() -> None:
    best = np.eye(3)[TRUTH.argmax(1)]
    worst = np.eye(3)[TRUTH.argmin(1)]
    assert offpolicy.estimated(world(1, 3_000, target=best))["verdict"] == "better"
    assert offpolicy.estimated(world(1, 3_000, target=worst))["verdict"] == "worse"
    values = [(TRUTH * p).sum(1).mean() for p in (best, worst)]
    share = (LOGGED_VALUE - values[1]) / (values[0] - values[1])
    level = share * best + (1 - share) * worst
    verdicts = [offpolicy.estimated(world(seed, target=level))["verdict"] for seed in range(200)]
    assert verdicts.count("undecided") >= 180, (
        "one that is worth as much is called another at most once in twenty"
    )


# -- rows -----------------------------------------------------------------------------------------

OBJECTIVE = Objective(w_quality=1.0, w_cost=0.25, w_slo=0.5, c_ref_usd=0.01, slo_ms=1_000)


def row(n: int = 3, **changes: Any) -> dict[str, Any]:
    arms = [Arm(agent_id=f"arm-{i}") for i in range(n)]
    candidates = [
        {"agent_id": arm.agent_id, "utility": 0.5 - i / 10, "sd": 0.1, "cost_usd": 0.004, "health": 0.8,
         "p_slo_miss": 0.4, "p": 1 / n, "excluded_by": None}
        for i, arm in enumerate(arms)
    ]  # fmt: skip
    about = {"inputs": {}, "candidates": candidates, "chosen": 0, "propensity": 1 / n, "policy_version": "thompson-1:0.02",
             "clock": 10, "ok": True, "error_class": None, "cost_usd": 0.002, "latency_ms": 10.0, "reward": 0.7} | changes  # fmt: skip
    inputs = Inputs(task=Task("do"), objective=OBJECTIVE, arms=arms)
    inputs = msgspec.structs.replace(inputs, **about["inputs"])
    return about | {
        "inputs": msgspec.json.encode(inputs).decode(), "candidates": msgspec.json.encode(about["candidates"]).decode(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "worth"),
    [
        ({}, 0.7 - 0.25 * 0.2),
        ({"latency_ms": 1_001.0}, 0.7 - 0.25 * 0.2 - 0.5),
        ({"ok": False, "reward": None}, -0.25 * 0.2 - 0.5),
        ({"ok": False, "reward": 0.9}, -0.25 * 0.2 - 0.5),
        ({"cost_usd": None}, 0.7 - 0.25 * 0.4),
        ({"latency_ms": None}, 0.7 - 0.25 * 0.2 - 0.5 * (1 - 0.6 / 0.8)),
    ],
)
def test_what_an_outcome_was_worth(changes: dict[str, Any], worth: float) -> None:
    found = compare.report([row(**changes)] * 2, "acme", "logged")
    assert found.used == 2
    assert found.logged is not None
    assert found.logged.value == pytest.approx(worth)
    missing = {"cost_usd": "cost", "latency_ms": "latency"}
    assert found.assumed == {missing[name]: 2 for name, value in changes.items() if name in missing and value is None}  # fmt: skip


def test_what_is_left_out_and_why() -> None:
    no_quality = {"objective": msgspec.structs.replace(OBJECTIVE, w_quality=0.0)}
    rows = [
        row(ok=None), row(ok=None, reward=None), row(reward=None), row(propensity=None), row(chosen=None),
        row(ok=False, error_class="caller"), row(ok=False, error_class="callee"), row(reward=None, inputs=no_quality),
        row(2),
    ]  # fmt: skip
    found = compare.report(rows, "acme", "arm:arm-2")
    assert (found.decisions, found.used) == (9, 2)
    assert found.left_out == {
        "no_outcome": 2, "no_verdict": 1, "no_propensity": 2, "not_the_arms_fault": 1, "arm_not_feasible": 1,
    }  # fmt: skip


def test_a_decision_that_this_code_would_refuse_is_left_out() -> None:
    tiny = row()
    tiny["inputs"] = tiny["inputs"].replace('"c_ref_usd":0.01', '"c_ref_usd":1e-300')
    assert compare.report([tiny, row(), row()], "acme", "uniform").left_out == {"unreadable": 1}


def test_every_target_sums_to_one_over_what_could_be_chosen() -> None:
    """Probes, risk, budgets and canaries included; what was excluded has no chance under any target."""
    probe = msgspec.json.decode(row()["candidates"])
    for i, candidate in enumerate(probe):
        candidate |= {"excluded_by": None if i == 1 else "another arm is tried", "p": float(i == 1)}
    cases = [
        row(), row(1, chosen=0), row(candidates=probe, chosen=1, propensity=1.0), row(inputs={"risk": "high"}),
        row(inputs={"usd_a_task": 0.001}), row(inputs={"trials": [Trial(1, 0, 0, 1, 0.25)]}),
    ]  # fmt: skip
    targets: list[str | Policy] = ["uniform", "greedy", "logged"]
    targets += [Policy("thompson", 0.05), Policy("inverse-gap", 0.0), Policy("epsilon-greedy", 0.1)]
    for case in cases:
        inputs = msgspec.json.decode(case["inputs"], type=Inputs)
        candidates = msgspec.json.decode(case["candidates"], type=list[compare.Candidate])
        for target in targets:
            p = compare._target(target, case, inputs, candidates)
            assert p.sum() == pytest.approx(1), target
            assert all(p[i] == 0 for i, one in enumerate(candidates) if one.excluded_by), target
            assert (p >= 0).all()
    tried = compare.report([cases[2]] * 5, "acme", Policy("inverse-gap", 0.0))
    assert (tried.used, tried.largest_weight) == (5, 1.0), "a probe is the same under every policy"


def test_a_canary_keeps_its_share_under_a_named_policy() -> None:
    case = row(inputs={"trials": [Trial(1, 0, 0, 1, 0.25)]})
    inputs = msgspec.json.decode(case["inputs"], type=Inputs)
    candidates = msgspec.json.decode(case["candidates"], type=list[compare.Candidate])
    p = compare._target(Policy("epsilon-greedy", 0.0), case | {"clock": 10**9}, inputs, candidates)
    assert p == pytest.approx([0.75, 0.25, 0.0], abs=1e-3)


def test_versions_name_policies() -> None:
    for policy in (Policy("thompson", 0.02), Policy("inverse-gap", 0.0), Policy("epsilon-greedy", 1e-05)):
        assert registry.named(policy.version) == policy
    for version in ("", "thompson", "thompson-1:", "thompson-1:2", "thompson-2:0.1", "best-1:0.1", "thompson-1:nan",
                    "thompson-1:0.020", "thompson-1:-0.1"):  # fmt: skip
        assert registry.named(version) is None, version


def test_a_policy_of_a_newer_version_leaves_the_settings_in_charge() -> None:
    text = '{"active": {"explore": "oracle", "exploration": 1}, "shadow": {"explore": "thompson", "exploration": 0.1}}'
    assert registry.in_force(text) == registry.InForce(None, Policy("thompson", 0.1))
    assert registry.in_force(None) == registry.InForce()
