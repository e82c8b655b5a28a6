"""The way of a decision: sense, diagnose, plan, allocate, then write it down with all that it was made by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec

from cogo import Assignment, Database, errors

from . import allocate, canary, code, plan, policies, queries, registry, sense, shards, slo
from .canary import Canary
from .model import Arm, Choice, Inputs, Modules, Past, Reader, Scored, Task, Trial
from .plan import Request
from .registry import Explore, Policy, Shadowed, Share
from .sense import Mind, Sensed

EXPLORATION: Final = 0.02
PACED_TASKS: Final = 2
"""Before so many tasks were seen, the budget's last price counts: that is a process's first look at a tenant."""
PAGED: Final = 0.25
"""Of exploration, while the error budget burns too fast."""


class OrchestratorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[plugins.orchestrator]`."""

    explore: Explore = "thompson"
    """How the best guess is weighed against what isn't known yet."""
    exploration: Share = EXPLORATION
    """Share of tasks that is spread over all that can take them: evenly, but under a budget as far as each can be afforded."""
    slo_target: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    """Share of runs that succeed in their objective's time. While its error budget burns at the rate of a page, a quarter is
    explored and canaries are paused; None: it is only shown."""
    simulation: bool = False
    """Take the time of decisions and feedback from the caller (`now_ms`), so that days pass in seconds."""

    @property
    def policy(self) -> Policy:
        """That decides while none is activated."""
        return Policy(self.explore, self.exploration)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Where the work goes, and why."""

    id: int
    tenant: str
    intent: str
    lane: str | None
    arm: dict[str, Any]
    assignment: Assignment
    scores: list[Scored]
    propensity: float
    explored: bool
    reason: str
    policy_version: str
    seed: float
    known: int
    chosen: int
    inputs: Inputs
    past: Past
    seen: str
    now_ms: int
    has_budget: bool
    least_usd: float
    shadow: Shadowed | None

    @property
    def arm_chosen(self) -> Arm:
        return self.inputs.arms[self.chosen]


async def decide(db: Database, reader: Reader, request: Request, settings: OrchestratorSettings) -> Decision:
    """Choose who does it. Raises UnknownIntent, NoFeasibleArm, BudgetRefused."""
    mind = sense.minds_of(db).of(request.tenant)
    candidates = await _candidates(reader, request)
    async with mind.lock:
        sensed, inputs = await _diagnosed(reader, request, settings, mind, *candidates)
        policy = sensed.policies.active or settings.policy
        seed = allocate.drawn(sensed.decision_id, policy.version)
        choice = allocate.choose(inputs, mind.beliefs, seed)
        _remember(mind, inputs, choice)
        return _decision(request, policy, mind, sensed, inputs, choice, seed)


async def foresee(db: Database, request: Request, settings: OrchestratorSettings) -> Scored:
    """The candidate that is best as things stand, without deciding. Raises as `decide` does."""
    mind = sense.minds_of(db).of(request.tenant)
    candidates = await _candidates(db, request)
    async with mind.lock:
        _, inputs = await _diagnosed(db, request, settings, mind, *candidates)
        choice = allocate.choose(inputs, mind.beliefs, 0.0)
    return max(
        (score for score in choice.scores if score.excluded_by is None), key=lambda score: score.utility
    )


async def _candidates(reader: Reader, request: Request) -> tuple[list[Arm], Modules]:
    """Who may do it, of each lane one shard, and the code that the task touches."""
    arms = request.inline() or await _lanes(reader, request.intent, request.model)
    arms = request.constraints.applied(arms)
    modules = await code.touched(reader, request.tenant, request.payload)
    return shards.placed(arms, modules[0][0] if modules else request.tenant), modules


async def _diagnosed(
    reader: Reader,
    request: Request,
    settings: OrchestratorSettings,
    mind: Mind,
    arms: list[Arm],
    modules: Modules,
) -> tuple[Sensed, Inputs]:
    """What is new, and what the choice is made by."""
    sensed = await mind.sense(reader, request.tenant, request.now_ms)
    page = mind.runs.burn(sensed.now_ms, settings.slo_target).page if settings.slo_target else None
    canaries = await _moved(reader, mind, sensed, arms, page)
    arms, running = canary.applied(arms, canaries, request.risk)
    policy = sensed.policies.active or settings.policy
    inputs = _inputs(request, policy, arms, mind, sensed, running, modules)
    if page is not None:
        inputs = msgspec.structs.replace(inputs, exploration=inputs.exploration * PAGED)
    return sensed, inputs


async def _lanes(reader: Reader, intent: str, model: str | None) -> list[Arm]:
    arms = await sense.lanes(reader, intent)
    if not arms:
        known = await intents(reader)
        raise errors.UnknownIntent(
            f"no role answers the intent {intent!r}; known: {', '.join(known) or 'none'}"
        )
    return arms if model is None else [_with_model(arm, model) for arm in arms]


def _with_model(arm: Arm, model: str) -> Arm:
    if arm.model in (None, model):
        return msgspec.structs.replace(arm, model=model)
    return msgspec.structs.replace(arm, excluded_by=arm.excluded_by or f"model: {model} is asked for")


async def _moved(
    reader: Reader, mind: Mind, sensed: Sensed, arms: list[Arm], page: str | None
) -> list[Canary]:
    """The canaries after what their outcomes, breakers and the time ask for."""
    found, now = [], sensed.now_ms

    def broken(matches: Callable[[Arm], bool]) -> str | None:
        return next((why for arm in arms if matches(arm) and (why := mind.broken(arm, now))), None)

    for one in sensed.canaries:
        base_broken = broken(one.is_base) is not None
        move = canary.due(one, mind.counts.get(one.id), broken(one.is_canary), now, base_broken, page)
        if move is not None:
            # Who was faster, if somebody was, read the same outcomes and found the same.
            await canary.make(reader, one, move, "orchestrator")
        found.append(one if move is None else canary.after(one, move))
    return found


def _inputs(
    request: Request, policy: Policy, arms: list[Arm], mind: Mind, sensed: Sensed,
    running: list[Canary], modules: Modules,
) -> Inputs:  # fmt: skip
    states = {arm.key: mind.state_of(arm, sensed.now_ms) for arm in arms}
    budget = sensed.budget
    price, usd_a_task = 0.0, None
    if budget is not None:
        price = budget.lambda_cost
        if budget.tasks_left:
            usd_a_task = max(budget.left_usd, 0.0) / budget.tasks_left
            if len(mind.recent) >= PACED_TASKS:
                price = policies.paced(list(mind.recent), usd_a_task)
    return Inputs(
        task=Task(request.intent, request.features, modules), objective=request.objective, arms=arms, lambda_cost=price,
        left_usd=None if budget is None else budget.left_usd, usd_a_task=usd_a_task,
        breakers={key: "probe" if state == "half_open" else state for key, state in states.items() if state != "closed"},
        policy=policy.explore, exploration=policy.exploration, risk=request.risk,
        trials=[_trial(one, arms) for one in running], deadline_ms=request.deadline_ms,
    )  # fmt: skip


def _trial(one: Canary, arms: list[Arm]) -> Trial:
    base = next(i for i, arm in enumerate(arms) if one.is_base(arm))
    return Trial(
        one.id, one.run, base, next(i for i, arm in enumerate(arms) if one.is_canary(arm)), one.weight
    )


def _remember(mind: Mind, inputs: Inputs, choice: Choice) -> None:
    chosen = inputs.arms[choice.index].key
    if inputs.breakers.get(chosen) == "probe":
        mind.breakers[chosen].probing(mind.beliefs.clock)
    live = [s for arm, s in zip(inputs.arms, choice.scores, strict=True)
            if arm.excluded_by is None and arm.key not in inputs.breakers]  # fmt: skip
    if live:
        mind.recent.append(
            sense.remembered([s.utility for s in live], [s.cost_usd for s in live], inputs.lambda_cost)
        )


def _decision(
    request: Request, policy: Policy, mind: Mind, sensed: Sensed, inputs: Inputs, choice: Choice,
    seed: float,
) -> Decision:  # fmt: skip
    arm, score = inputs.arms[choice.index], choice.scores[choice.index]
    past = Past(
        arm=arm.key, task=inputs.task, n=mind.beliefs.clock, at_ms=sensed.now_ms, price=arm.price(inputs.objective),
        depth=arm.depth, forecast=choice.forecast, probe=inputs.breakers.get(arm.key) == "probe",
        tried=choice.tried, slo_ms=inputs.objective.slo_ms,
    )  # fmt: skip
    return Decision(
        id=sensed.decision_id, tenant=request.tenant, intent=request.intent, lane=arm.lane,
        arm={"agent_id": arm.agent_id, "version": arm.version, "model": arm.model},
        assignment=plan.assignment(request, arm, max_cost_usd=request.budget.maxCostUsd),
        scores=choice.scores, propensity=choice.propensity, explored=choice.explored, reason=choice.reason,
        policy_version=policy.version, seed=seed, known=mind.beliefs.n, chosen=choice.index, inputs=inputs,
        past=past, seen=mind.seen or "", now_ms=sensed.now_ms, has_budget=sensed.budget is not None,
        least_usd=plan.MARGIN * score.cost_usd,
        shadow=allocate.shadowed(
            inputs, choice.scores, mind.beliefs.clock, sensed.policies.shadow, sensed.decision_id,
            registry.held_back(policy, inputs.exploration),
        ),
    )  # fmt: skip


async def record(
    tx: Reader, decision: Decision, *, message_id: int | None, trace_id: str | None, key: str | None = None,
    digest: str | None = None,
) -> bool:  # fmt: skip
    """Log the decision with all that making it again takes; false: another one has the key."""
    params = {name: getattr(decision, name) for name in (
        "id", "tenant", "intent", "lane", "reason", "policy_version", "chosen", "propensity", "explored", "seed",
        "known", "seen")}  # fmt: skip
    for name in ("arm", "assignment", "inputs", "past"):
        params[name] = msgspec.json.encode(getattr(decision, name)).decode()
    params["candidates"] = msgspec.json.encode(decision.scores).decode()
    params["shadow"] = None if decision.shadow is None else msgspec.json.encode(decision.shadow).decode()
    about = {"message_id": message_id, "trace_id": trace_id, "key": key, "digest": digest}
    if not await tx.fetch(queries.RECORD, params | about):
        return False
    if decision.has_budget:
        price = {
            "tenant": decision.tenant,
            "now_ms": decision.now_ms,
            "lambda_cost": decision.inputs.lambda_cost,
        }
        await tx.fetch(queries.COUNT_TASK, price)
    return True


async def intents(db: Reader) -> list[str]:
    """Every intent that some known lane answers."""
    return [row["intent"] for row in await db.fetch(queries.INTENTS)]


async def live_lane(db: Reader, intent: str) -> str:
    """Where the work of a caller's own arm goes: the live lane that answers the intent and has the least to do.

    Raises UnknownIntent, NoFeasibleArm.
    """
    live = [arm for arm in await _lanes(db, intent, None) if arm.excluded_by is None]
    if not live:
        raise errors.NoFeasibleArm(f"no live lane answers {intent!r}")
    return min(live, key=lambda arm: (arm.depth or 0, arm.lane or "")).lane or ""


async def believed(db: Database, tenant: str, arms: list[Arm]) -> list[dict[str, Any]]:
    """Lanes, and what else the tenant's outcomes tell of, with the state of their breakers and how runs went."""
    mind = sense.minds_of(db).of(tenant)
    async with mind.lock:
        sensed = await mind.sense(db, tenant, None)
        listed = {arm.key for arm in arms}
        others = [sense.arm_of(key) for key in mind.beliefs.arms() if key not in listed]
        return [lane_state(arm) | mind.about(arm, sensed.now_ms) for arm in [*arms, *others]]


def lane_state(arm: Arm) -> dict[str, Any]:
    """What can be said of an arm without a tenant."""
    service, role, shard = arm.lane.split("/") if arm.lane else (None, None, None)
    return {
        "agent_id": arm.agent_id, "version": arm.version, "model": arm.model, "lane": arm.lane, "service": service,
        "role": role, "shard": None if shard is None else int(shard), "holders": arm.holders, "depth": arm.depth,
        "excluded_by": arm.excluded_by,
    }  # fmt: skip


def burning(db: Database, tenant: str, settings: OrchestratorSettings) -> slo.Burn:
    """How fast the tenant's error budget burns, as far as this process has read; by the newest run's clock if that is ahead."""
    mind = sense.minds_of(db).of(tenant)
    return mind.runs.burn(
        max(time.time_ns() // 1_000_000, mind.runs.newest_ms), settings.slo_target or slo.TARGET
    )
