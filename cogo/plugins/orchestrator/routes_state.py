"""/api/orchestrator: say what came of decisions, look at them and at what is believed, set budgets."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post, put
from litestar.params import FromPath, JSONBody

from cogo import errors
from cogo.web import Filter, Tenant, bounded, db_of, operator, shaped, tenants_of, viewer

from . import brain, evaluate, observe, queries, routes_canaries, sense
from .model import Inputs, Scored
from .registry import in_force
from .shapes import may, settings_of, simulated


class BudgetRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a tenant may spend within a window, and how many tasks are expected in one, if that is known."""

    limit_usd: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    window_s: Annotated[int, msgspec.Meta(ge=1, le=366 * 86_400)]
    expected_tasks: Annotated[int, msgspec.Meta(ge=1, le=10**12)] | None = None


@post("/api/orchestrator/feedback", guards=[operator], status_code=202)
async def feedback(request: Request[Any, Any, Any], data: JSONBody[observe.Feedback]) -> observe.Taken:
    """Say what came of a decision; what had come before is taken once."""
    simulated(request, data.now_ms)
    with bounded():
        return await observe.observe(db_of(request), data, tenants_of(request))


@get("/api/orchestrator/decisions/{decision_id:str}", guards=[viewer])
async def decision(request: Request[Any, Any, Any], decision_id: FromPath[str]) -> dict[str, Any]:
    """A decision as it was logged, with what came of it."""
    row = await _decision(request, decision_id)
    outcomes = await db_of(request).fetch(queries.OUTCOMES_OF, (row["id"],))
    found = shaped(row, "arm", "assignment", "candidates", "inputs", "shadow")
    found["scores"] = found.pop("candidates")
    return found | {"outcomes": [shaped(outcome) for outcome in outcomes]}


@get("/api/orchestrator/decisions/{decision_id:str}/explain", guards=[viewer])
async def explain(request: Request[Any, Any, Any], decision_id: FromPath[str]) -> dict[str, Any]:
    """Every candidate with every term of its utility, what excluded it, and the smallest change that would have made it the best."""
    row = await _decision(request, decision_id)
    if row["inputs"] is None:
        raise errors.NotFound(f"decision {decision_id} is from before decisions kept what they were made by")
    inputs = msgspec.json.decode(row["inputs"], type=Inputs)
    scores = msgspec.json.decode(row["candidates"], type=list[Scored])
    about = {
        name: row[name]
        for name in ("id", "tenant", "intent", "propensity", "explored", "policy_version", "seed")
    }
    return about | evaluate.explained(inputs, scores, row["chosen"], row["reason"])


async def _decision(request: Request[Any, Any, Any], id: str) -> dict[str, Any]:
    """Raises NotFound."""
    row = None
    if id.isascii() and id.isdigit() and len(id) < 16:
        with bounded():
            row = await db_of(request).fetch_one(
                queries.DECISION, {"id": int(id), "tenants": tenants_of(request)}
            )
    if row is None:
        raise errors.NotFound("there is no such decision")
    return row


@put("/api/orchestrator/budgets/{tenant:str}", guards=[operator])
async def put_budget(
    request: Request[Any, Any, Any], tenant: FromPath[Tenant], data: JSONBody[BudgetRequest]
) -> dict[str, Any]:
    """Set what a tenant may spend within a window. What it has spent in the one that runs stays."""
    may(request, tenant)
    with bounded():
        rows = await db_of(request).fetch(queries.PUT_BUDGET, msgspec.to_builtins(data) | {"tenant": tenant})
    return shaped(rows[0])


@get("/api/orchestrator/state", guards=[viewer])
async def state(
    request: Request[Any, Any, Any], service: Filter = None, role: Filter = None, tenant: Filter = None
) -> dict[str, Any]:
    """The lanes that answer intents and what is believed about them for a tenant, budgets, and the policy."""
    db, settings = db_of(request), settings_of(request)
    tenants = tenants_of(request) if tenant is None else [tenant]
    if tenant is not None:
        may(request, tenant)
    with bounded():
        lanes = await sense.lanes(db, None)
        known = await brain.intents(db)
        budgets = [shaped(row) for row in await db.fetch(queries.BUDGETS, {"tenants": tenants})]
        of = tenants[0] if tenants and len(tenants) == 1 else None
        believed = await brain.believed(db, of, lanes) if of else [brain.lane_state(arm) for arm in lanes]
        policies = in_force(await db.fetch_value(f"SELECT ({queries.IN_FORCE})::text"))
        canaries = [
            one for one in await routes_canaries.listed(db, tenants) if one["state"] in ("running", "paused")
        ]
    arms = [
        arm for arm in believed
        if arm["lane"] is None or (service in (None, arm["service"]) and role in (None, arm["role"]))
    ]  # fmt: skip
    policy = policies.active or settings.policy
    if service or role:
        arms = [arm for arm in arms if arm["lane"] is not None]
    return {
        "policy": {"active": policy.version, "shadow": policies.shadow and policies.shadow.version}, "intents": known, "tenant": of, "arms": arms,
        "canaries": canaries, "slo": None if of is None else brain.burning(db, of, settings),
        "budgets": budgets, "exploration": {"floor": policy.exploration, "policy": policy.explore},
    }  # fmt: skip


HANDLERS = [feedback, decision, explain, put_budget, state]
