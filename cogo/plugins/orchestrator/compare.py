"""Compare a policy with the logged one: rows of decisions and outcomes become arrays, which `offpolicy` weighs.

The target chooses among what the decision could choose from: `excluded_by` holds for it as well. So a decision that
let a broken arm be tried again had one candidate, with p = 1 for whoever decides; it is used, at a weight of 1. A task
of high risk goes to the best one whatever the policy's exploration. Named policies give canaries their share of their
base's tasks, as decisions do; `uniform`, `greedy` and `arm:` take a canary for a candidate like any other.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import anyio
import msgspec
import numpy as np

from cogo import Database, errors

from . import allocate, offpolicy, queries, registry
from .model import EXCUSED, Inputs
from .offpolicy import Log, Report
from .policies import Floats
from .registry import Policy

ARM = "arm:"
BASELINES = ("uniform", "greedy", "logged")


class Candidate(msgspec.Struct, frozen=True):
    """What is needed of a logged candidate."""

    agent_id: str
    utility: float
    sd: float
    cost_usd: float
    health: float
    p_slo_miss: float
    p: float
    excluded_by: str | None = None


class Used(msgspec.Struct, frozen=True):
    """A decision that can be compared."""

    candidates: list[Candidate]
    target: Floats
    lambda_cost: float
    chosen: int
    realised: float
    policy_version: str
    assumed: tuple[str, ...]


class LeftOutError(Exception):
    """The decision says nothing; the argument is why."""


async def compare(
    db: Database, tenant: str, target: str | Policy, *, since: datetime | None, limit: int
) -> Report:
    """The tenant's last decisions, at most `limit`. Off the loop: a thousand decisions take about 0.1 s."""
    params = {"tenant": tenant, "since": since, "limit": limit}
    rows = await db.fetch(queries.OUTCOMES_TO_COMPARE, params)
    return await anyio.to_thread.run_sync(report, rows, tenant, target)


def report(rows: list[dict[str, Any]], tenant: str, target: str | Policy) -> Report:
    """Of rows as OUTCOMES_TO_COMPARE gives them."""
    used, left_out = [], Counter[str]()
    for row in rows:
        try:
            used.append(_used(row, target))
        except LeftOutError as why:
            left_out[str(why)] += 1
        except msgspec.ValidationError:  # of a version with other bounds
            left_out["unreadable"] += 1
    return Report(
        tenant=tenant, policy=target if isinstance(target, str) else target.version, decisions=len(rows), used=len(used),
        left_out=dict(left_out), assumed=dict(Counter(what for one in used for what in one.assumed)),
        policies=dict(Counter(one.policy_version for one in used)), **offpolicy.estimated(_log(used)),
    )  # fmt: skip


def _log(used: list[Used]) -> Log:
    width = max((len(one.candidates) for one in used), default=0)
    logged, target, forecast, sd = np.zeros((4, len(used), width))
    for i, one in enumerate(used):
        n = len(one.candidates)
        logged[i, :n] = [found.p for found in one.candidates]
        target[i, :n] = one.target
        forecast[i, :n] = [found.utility + one.lambda_cost * found.cost_usd for found in one.candidates]
        sd[i, :n] = [found.sd for found in one.candidates]
    chosen = np.array([one.chosen for one in used], np.int64)
    return Log(logged, target, forecast, sd, chosen, np.array([one.realised for one in used]))


def _used(row: dict[str, Any], target: str | Policy) -> Used:
    """Raises LeftOutError."""
    if row["propensity"] is None or row["chosen"] is None or row["inputs"] is None:
        raise LeftOutError("no_propensity")
    if row["ok"] is None:
        raise LeftOutError("no_outcome")
    if row["error_class"] in EXCUSED:
        raise LeftOutError("not_the_arms_fault")
    inputs = msgspec.json.decode(row["inputs"], type=Inputs)
    if row["ok"] and row["reward"] is None and inputs.objective.w_quality:
        raise LeftOutError("no_verdict")
    candidates = msgspec.json.decode(row["candidates"], type=list[Candidate])
    realised, assumed = _realised(row, inputs, candidates[row["chosen"]])
    return Used(
        candidates, _target(target, row, inputs, candidates), inputs.lambda_cost, row["chosen"], realised,
        row["policy_version"], assumed,
    )  # fmt: skip


def _realised(row: dict[str, Any], inputs: Inputs, chosen: Candidate) -> tuple[float, tuple[str, ...]]:
    """Utility by the decision's own objective; a cost or a time that nobody said is what was forecast, as in learning."""
    objective, assumed = inputs.objective, []
    cost = row["cost_usd"]
    if cost is None:
        cost = chosen.cost_usd
        if objective.w_cost:
            assumed.append("cost")
    missed = 1.0
    if row["ok"] and row["latency_ms"] is not None:
        missed = float(row["latency_ms"] > objective.slo_ms)
    elif row["ok"]:
        missed = float(np.clip(1 - (1 - chosen.p_slo_miss) / max(chosen.health, 1e-9), 0, 1))
        if objective.w_slo:
            assumed.append("latency")
    reward = (row["reward"] or 0.0) if row["ok"] else 0.0
    utility = objective.w_quality * reward - objective.w_cost * cost / objective.c_ref_usd
    return utility - objective.w_slo * missed, tuple(assumed)


def _target(target: str | Policy, row: dict[str, Any], inputs: Inputs, candidates: list[Candidate]) -> Floats:
    """Probabilities of the target for the decision's candidates. Raises LeftOutError."""
    if isinstance(target, Policy):
        decided = registry.named(row["policy_version"])
        share = 1.0 if decided is None else registry.held_back(decided, inputs.exploration)
        theirs = msgspec.structs.replace(
            inputs, policy=target.explore, exploration=target.exploration * share
        )
        return allocate.weighed(theirs, candidates, row["clock"] or 0)
    if target == "logged":
        return np.array([one.p for one in candidates])
    utility = np.array([one.utility for one in candidates])
    feasible = np.array([one.excluded_by is None for one in candidates])
    if target == "uniform":
        return offpolicy.uniform(utility, feasible)
    if target.startswith(ARM):
        feasible &= np.array([one.agent_id == target.removeprefix(ARM) for one in candidates])
        if not feasible.any():
            raise LeftOutError("arm_not_feasible")
    return offpolicy.greedy(utility, feasible)


async def named(db: Database, name: str, default: Policy) -> str | Policy:
    """The target of that name: a baseline, an arm, the policy of the settings, or one of the table. Raises Invalid."""
    if name in BASELINES or (name.startswith(ARM) and name != ARM):
        return name
    if name == default.version:
        return default
    rows = await db.fetch(queries.POLICIES, {"version": name})
    if not rows or (found := registry.named(name)) is None:
        raise errors.Invalid(
            f"there is no policy {name!r}; there are {', '.join(BASELINES)}, arm:AGENT_ID, and what GET"
            " /api/orchestrator/policies lists - at `policy`"
        )
    return found
