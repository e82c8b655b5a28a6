"""/api/orchestrator/plan: what the steps of a workflow may cost and how long they may take."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, post
from litestar.params import JSONBody

from cogo import Budget, errors
from cogo.web import Tenant, bounded, db_of, operator

from . import brain, plan, workflow
from .model import Objective, Scored
from .shapes import TTL_MAX_MS, NowMs, may, settings_of, simulated


class PlanRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Steps that are to be done within a budget and a time. Nothing is decided, logged or reserved."""

    tenant: Tenant
    steps: Annotated[list[workflow.Step], msgspec.Meta(min_length=1, max_length=workflow.STEPS_MAX)]
    budget: Budget = plan.BUDGET
    ttl_ms: Annotated[int, msgspec.Meta(ge=1, le=TTL_MAX_MS)] = 600_000
    hold_back: Annotated[float, msgspec.Meta(ge=0, lt=1)] = workflow.HOLD_BACK
    """Share of the money that no step gets: for repairs."""
    objective: Objective = Objective()
    now_ms: NowMs | None = None


@post("/api/orchestrator/plan", guards=[operator], status_code=200)
async def plan_steps(request: Request[Any, Any, Any], data: JSONBody[PlanRequest]) -> workflow.Plan:
    """Share budget and time among steps by what is expected of whoever would get each as things stand."""
    may(request, data.tenant)
    simulated(request, data.now_ms)
    if (data.budget.maxCostUsd or 0) < 0 or (data.budget.maxTokens or 0) < 0:
        raise errors.Invalid("a budget is not negative - at `$.budget`")
    steps = workflow.ordered(data.steps)
    db, settings = db_of(request), settings_of(request)
    expected = {}
    with bounded():
        for step in steps:
            wanted = plan.Request(
                tenant=data.tenant, intent=step.intent, features=step.features, candidates=step.candidates,
                objective=data.objective, risk=step.risk, now_ms=data.now_ms,
            )  # fmt: skip
            expected[step.name] = _of(await brain.foresee(db, wanted, settings))
    return workflow.shared(steps, expected, data.budget, data.ttl_ms, data.hold_back)


def _of(score: Scored) -> workflow.Expected:
    return workflow.Expected(
        agent_id=score.agent_id, version=score.version, model=score.model, lane=score.lane, cost_usd=score.cost_usd,
        latency_ms=score.latency_ms,
    )  # fmt: skip


HANDLERS = [plan_steps]
