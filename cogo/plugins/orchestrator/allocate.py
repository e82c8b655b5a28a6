"""Allocate: filter, score, weigh, draw. Pure: the same inputs, beliefs and seed give the same choice."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
import numpy as np

from cogo import errors

from . import policies, scorers
from .model import Arm, Choice, Inputs, Scored, Trial, Tried, Uncertainty
from .registry import Policy, Shadowed
from .update import Beliefs

UPPER_SD: Final = 3.0
"""What a run may cost at most, in standard deviations, is held against the budget that is left."""
BROKEN: Final = "breaker: open"
NINE_TENTHS: Final = 1.645


class Weighable(Protocol):
    """What a policy looks at of a candidate."""

    @property
    def utility(self) -> float: ...
    @property
    def sd(self) -> float: ...
    @property
    def cost_usd(self) -> float: ...
    @property
    def excluded_by(self) -> str | None: ...


def drawn(decision_id: int, policy_version: str) -> float:
    """A number in [0, 1) that only the decision and its policy determine."""
    digest = hashlib.blake2b(f"{decision_id}/{policy_version}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**53


def choose(inputs: Inputs, beliefs: Beliefs, seed: float) -> Choice:
    """The arm, with every candidate's scores. Raises NoFeasibleArm, BudgetRefused."""
    foretold = beliefs.foretell(inputs.task, [(arm.key, arm.depth) for arm in inputs.arms])
    noise = beliefs.noise()
    scored = [
        _scored(inputs, arm, found, noise, beliefs)
        for arm, found in zip(inputs.arms, scorers.expected(foretold, noise, inputs.objective), strict=True)
    ]
    scored = _filtered(inputs, scored)
    feasible = [i for i, score in enumerate(scored) if score.excluded_by is None]
    trials, free = _tried(inputs, feasible)
    p = weighed(inputs, scored, beliefs.clock)
    index = draw(p, seed)
    scored = [msgspec.structs.replace(score, p=float(p[i])) for i, score in enumerate(scored)]
    best = max(free, key=lambda i: scored[i].utility)
    return Choice(
        index=index, scores=scored, propensity=float(p[index]), explored=index != best,
        reason=_reason(inputs, scored, index, best), forecast=foretold.of(index),
        tried=next((Tried(trial.id, trial.run, index == trial.canary) for trial in trials
                    if index in (trial.base, trial.canary)), None),
    )  # fmt: skip


def _scored(
    inputs: Inputs, arm: Arm, found: scorers.Expected, noise: policies.Floats, beliefs: Beliefs
) -> Scored:
    objective, n, modules = inputs.objective, beliefs.evidence(arm.key), inputs.task.modules
    said = {
        "health": scorers.health(found, n), "quality": scorers.quality(found, n),
        "cost": scorers.cost(found, arm, objective, n), "p_slo_miss": scorers.slo_miss(found),
    }  # fmt: skip
    if modules:
        said["kg"] = scorers.kg(found, beliefs.on_code(arm.key, modules))
    health, quality, kg = said["health"], said.get("kg", said["quality"]), said.get("kg")
    usd = found.mean[scorers.COST] * arm.price(objective)
    utility = (
        objective.w_quality * health.value * quality.value
        - inputs.a_dollar * usd
        - objective.w_slo * said["p_slo_miss"].value
    )
    usd_sd = math.sqrt(found.var[scorers.COST]) * arm.price(objective)
    sd = scorers.utility_sd(found, objective, inputs.a_dollar, arm.price(objective))
    over = _over_budget(inputs, arm, usd, usd_sd, float(noise[scorers.COST]))
    return Scored(
        agent_id=arm.agent_id, version=arm.version, model=arm.model, lane=arm.lane, depth=arm.depth,
        holders=arm.holders, health=health.value, quality=said["quality"].value, cost=said["cost"].value,
        kg=kg.value if kg else None, p_slo_miss=said["p_slo_miss"].value,
        uncertainty=Uncertainty(**{name: score.sd for name, score in said.items()}),
        cost_usd=usd, latency_ms=scorers.usual_ms(found), utility=utility, sd=sd,
        ci=(utility - NINE_TENTHS * sd, utility + NINE_TENTHS * sd), evidence=n, p=0.0,
        excluded_by=arm.excluded_by or _too_risky(inputs, health) or _too_slow(inputs, found) or over,
        reason=", ".join(score.reason for score in said.values()),
    )  # fmt: skip


def _over_budget(inputs: Inputs, arm: Arm, usd: float, usd_sd: float, noise: float) -> str | None:
    if inputs.left_usd is None:
        return None
    upper = usd + UPPER_SD * math.hypot(usd_sd, math.sqrt(noise) * arm.price(inputs.objective))
    if upper <= inputs.left_usd:
        return None
    return f"budget: may cost ${upper:.4g}, ${inputs.left_usd:.4g} are left"


def _too_risky(inputs: Inputs, health: scorers.Score) -> str | None:
    return policies.risk_floor(health.value, health.sd) if inputs.risk == "medium" else None


def _too_slow(inputs: Inputs, found: scorers.Expected) -> str | None:
    ms = scorers.usual_ms(found)
    if inputs.deadline_ms is None or ms <= inputs.deadline_ms:
        return None
    return f"deadline: takes {ms:.0f} ms as a rule, {inputs.deadline_ms:.0f} are left"


def _filtered(inputs: Inputs, scored: list[Scored]) -> list[Scored]:
    """Without what is broken, unless all is; with the one that is to be tried, without the others."""
    live = [i for i, score in enumerate(scored) if score.excluded_by is None]
    if not live:
        why = "; ".join(f"{score.agent_id}: {score.excluded_by}" for score in scored)
        if any((score.excluded_by or "").startswith("budget") for score in scored):
            raise errors.BudgetRefused(
                f"nothing that can take {inputs.task.intent!r} fits the budget ({why})"
            )
        raise errors.NoFeasibleArm(f"nothing can take {inputs.task.intent!r} now ({why})")
    for trial in inputs.trials:
        if trial.base not in live and trial.canary in live and len(live) > 1:
            live.remove(trial.canary)
            scored[trial.canary] = _without(
                scored[trial.canary], f"canary {trial.id}: its base can't take it"
            )
    state = {i: inputs.breakers.get(inputs.arms[i].key) for i in live}
    probe = next((i for i in live if state[i] == "probe"), None)
    whole = [i for i in live if state[i] is None]
    if probe is not None:
        return [
            score if i == probe else _without(score, "another arm is tried") for i, score in enumerate(scored)
        ]
    if not whole:  # every arm is broken: whichever is the likeliest, since nobody else can do it
        return scored
    return [_without(score, BROKEN) if state.get(i) else score for i, score in enumerate(scored)]


def _without(score: Scored, why: str) -> Scored:
    return msgspec.structs.replace(score, excluded_by=score.excluded_by or why)


def weighed(inputs: Inputs, scored: Sequence[Weighable], clock: float) -> policies.Floats:
    """The probability of each candidate by the inputs' policy; `clock`: tasks whose outcomes were known."""
    p = np.zeros(len(scored))
    trials, free = _tried(inputs, [i for i, score in enumerate(scored) if score.excluded_by is None])
    p[free] = _probabilities(inputs, clock, [scored[i] for i in free])
    for trial in trials:
        p[trial.canary] = p[trial.base] * trial.weight
        p[trial.base] *= 1 - trial.weight
    return p


def shadowed(
    inputs: Inputs,
    scored: list[Scored],
    clock: float,
    shadow: Policy | None,
    decision_id: int,
    held_back: float,
) -> Shadowed | None:
    """What another policy would have done with the same scores; `held_back`: of its exploration."""
    if shadow is None:
        return None
    theirs = msgspec.structs.replace(
        inputs, policy=shadow.explore, exploration=shadow.exploration * held_back
    )
    p = weighed(theirs, scored, clock)
    return Shadowed(shadow.version, p.tolist(), draw(p, drawn(decision_id, shadow.version)))


def _tried(inputs: Inputs, feasible: list[int]) -> tuple[list[Trial], list[int]]:
    """The canaries that run among those that can be chosen, and who isn't one."""
    trials = [trial for trial in inputs.trials if {trial.base, trial.canary} <= set(feasible)]
    on_trial = {trial.canary for trial in trials}
    return trials, [i for i in feasible if i not in on_trial]


def _probabilities(inputs: Inputs, clock: float, feasible: list[Weighable]) -> policies.Floats:
    if len(feasible) == 1:
        return np.ones(1)
    means = np.array([score.utility for score in feasible])
    p = policies.EXPLORE[inputs.policy](means, np.array([score.sd for score in feasible]))
    if inputs.risk == "high":
        return policies.epsilon_greedy(means, means)
    exploration = inputs.exploration
    if inputs.policy == "epsilon-greedy":
        exploration = policies.annealed(exploration, 0.2, clock)
    costs = np.array([score.cost_usd for score in feasible])
    return policies.floored(p, exploration, policies.affordable(costs, inputs.usd_a_task))


def draw(p: policies.Floats, seed: float) -> int:
    """Where the seed falls among the summed probabilities; never on one that is zero."""
    at = int(np.searchsorted(np.cumsum(p) / p.sum(), seed, side="right"))
    return at if at < len(p) and p[at] > 0 else int(p.argmax())


def _reason(inputs: Inputs, scored: list[Scored], index: int, best: int) -> str:
    """A sentence or two that a person understands."""
    chosen, feasible = scored[index], sum(score.excluded_by is None for score in scored)
    name = chosen.lane or chosen.agent_id
    if inputs.breakers.get(inputs.arms[index].key) == "probe":
        return f"{name} is tried again for {inputs.task.intent!r} after its breaker opened"
    if len(scored) == 1:
        what = "the only candidate"
    elif any(index == trial.canary for trial in inputs.trials):
        what = f"a canary, which gets a share of its base's tasks (p {chosen.p:.2g})"
    elif index == best:
        what = f"the best of {feasible} that can take it ({len(scored)} known)"
    else:
        what = f"explored (p {chosen.p:.2g}); {scored[best].lane or scored[best].agent_id} is ahead by "
        what += f"{scored[best].utility - chosen.utility:.2g}"
    known = f"{chosen.evidence:.0f} runs" if chosen.evidence >= 0.5 else "nothing but its prior yet"
    return f"{name} for {inputs.task.intent!r}: {what}; utility {chosen.utility:.2f} by {known} ({chosen.reason})"
