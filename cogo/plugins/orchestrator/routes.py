"""/api/orchestrator/*: ask for a decision, say what came of it, look at what is believed, set budgets."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get, post, put
from litestar.params import FromPath, JSONBody

from cogo import Assignment, Budget, Json, RoutingKey, enqueue, errors
from cogo.web import (
    Filter,
    Tenant,
    bounded,
    db_of,
    operator,
    principal_of,
    shaped,
    tenants_of,
    trace_id_of,
    traceparent_of,
    viewer,
)

from . import brain, evaluate, observe, plan, queries, routes_canaries, sense
from .brain import OrchestratorSettings
from .model import Inputs, Objective, Scored

EXECUTE = "orchestrator/execute/0"
TTL_MAX_MS = 30 * 24 * 3_600_000
SETTINGS = "orchestrator"
Intent = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$(?!\n)")]
NowMs = Annotated[int, msgspec.Meta(ge=0, le=2**52)]


class DecideRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What is to be decided. Without a budget or a ttl the orchestrator's defaults count.

    `candidates` are arms of the caller's own, in the place of the lanes that answer the intent; `features` are
    numbers that tell tasks apart, always the same ones in the same order.
    """

    tenant: Tenant
    intent: Intent
    payload: dict[str, Any] = {}
    features: Annotated[list[float], msgspec.Meta(max_length=plan.FEATURES_MAX)] = []
    candidates: Annotated[list[plan.Inline], msgspec.Meta(max_length=plan.ARMS_MAX)] = []
    objective: Objective = Objective()
    risk: plan.Risk = "low"
    model: plan.Label | None = None
    budget: Budget | None = None
    ttl_ms: Annotated[int, msgspec.Meta(ge=1, le=TTL_MAX_MS)] | None = None
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None
    now_ms: NowMs | None = None
    """The caller's clock; only in simulations."""


class Arm(msgspec.Struct, kw_only=True):
    """The candidate that was chosen; of one that the caller described, lane and its parts are null."""

    agent_id: str
    version: str | None
    model: str | None
    service: str | None
    role: str | None
    shard: int | None


class Decided(msgspec.Struct, kw_only=True):
    """A decision with its reason; `propensity` is the probability with which the policy chose so.

    `scores` has every candidate: health, quality and cost in 0..1, the chance to miss the objective's time, utility
    with an interval of 90 %, the probability `p`, and `excluded_by` for what could not be chosen.
    """

    decision_id: int
    tenant: str
    intent: str
    lane: str | None
    arm: Arm
    assignment: Assignment
    propensity: float
    explored: bool
    policy_version: str
    state_version: int
    """Outcomes of the tenant that the decision knew."""
    seed: float
    scores: list[Scored]
    reason: str


class Enqueued(Decided, kw_only=True):
    """A decision whose work is on the bus; `replayed`: the same key and body came before."""

    message_id: int
    status_url: str
    replayed: bool = False


class BudgetRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a tenant may spend within a window, and how many tasks are expected in one, if that is known."""

    limit_usd: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    window_s: Annotated[int, msgspec.Meta(ge=1, le=366 * 86_400)]
    expected_tasks: Annotated[int, msgspec.Meta(ge=1, le=10**12)] | None = None


class Reader:
    """The connection of a transaction, as the brain reads it."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    async def fetch(self, sql: str, params: Any = ()) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await (await self.conn.execute(sql, params)).fetchall()
        return rows


def settings_of(request: Request[Any, Any, Any]) -> OrchestratorSettings:
    found: OrchestratorSettings = request.route_handler.opt[SETTINGS]
    return found


def may(request: Request[Any, Any, Any], tenant: str) -> None:
    """Raises Forbidden."""
    if not principal_of(request).may_read(tenant):
        raise errors.Forbidden(f"this token may not decide for the tenant {tenant!r}")


def simulated(request: Request[Any, Any, Any], now_ms: int | None) -> None:
    """Raises Invalid when a caller brings a clock to a process that has one."""
    if now_ms is not None and not settings_of(request).simulation:
        raise errors.Invalid("now_ms needs a process that was started with --simulation - at `$.now_ms`")


def asked(request: Request[Any, Any, Any], data: DecideRequest) -> plan.Request:
    """The brain's request. Raises Forbidden, AssignmentForbidden, Invalid."""
    may(request, data.tenant)
    simulated(request, data.now_ms)
    if "__assignment" in data.payload:
        raise errors.AssignmentForbidden
    budget = data.budget or plan.BUDGET
    if (budget.maxCostUsd or 0) < 0 or (budget.maxTokens or 0) < 0:
        raise errors.Invalid("a budget is not negative - at `$.budget`")
    found = plan.Request(
        tenant=data.tenant, intent=data.intent, payload=data.payload, features=tuple(data.features), model=data.model,
        candidates=tuple(data.candidates), objective=data.objective, risk=data.risk, budget=budget,
        ttl_ms=data.ttl_ms, now_ms=data.now_ms,
    )  # fmt: skip
    if len({arm.key for arm in found.inline()}) < len(found.candidates):
        raise errors.Invalid("two candidates are the same agent, version and model - at `$.candidates`")
    return found


def shown(decision: brain.Decision) -> dict[str, Any]:
    """The fields of Decided for a decision."""
    return {
        "decision_id": decision.id, "tenant": decision.tenant, "intent": decision.intent,
        "arm": arm_of(decision.arm, decision.lane), "lane": decision.lane, "assignment": decision.assignment,
        "scores": decision.scores, "policy_version": decision.policy_version, "reason": decision.reason,
        "propensity": decision.propensity, "explored": decision.explored, "state_version": decision.known,
        "seed": decision.seed,
    }  # fmt: skip


def arm_of(arm: dict[str, Any], lane: str | None) -> Arm:
    service, role, shard = lane.split("/") if lane else (None, None, None)
    return Arm(**arm, service=service, role=role, shard=None if shard is None else int(shard))


@post("/api/orchestrator/decide", guards=[operator], status_code=200)
async def decide(request: Request[Any, Any, Any], data: JSONBody[DecideRequest]) -> Decided:
    """Decide and log it, without touching the bus or reserving money."""
    db, wanted = db_of(request), asked(request, data)
    with bounded():
        decision = await brain.decide(db, db, wanted, settings_of(request))
        await brain.record(db, decision, message_id=None, trace_id=trace_id_of(traceparent_of(request)))
    return Decided(**shown(decision))


@post("/api/orchestrator/decide-enqueue", guards=[operator], status_code=202)
async def decide_enqueue(request: Request[Any, Any, Any], data: JSONBody[DecideRequest]) -> Enqueued:
    """Decide, reserve, log and enqueue for the executor in one transaction; the same key and body replays."""
    wanted = asked(request, data)
    with bounded():
        if earlier := await _earlier(request, data):
            return earlier
        try:
            return await _enqueue(request, data, wanted)
        except errors.IdempotencyConflict:
            # Somebody else's transaction with this key won the race: its answer is ours as well.
            if earlier := await _earlier(request, data):
                return earlier
            raise


def digest_of(data: DecideRequest) -> str:
    """What the same request has in common, whatever the order of its keys."""
    return hashlib.sha256(msgspec.json.encode(data, order="sorted")).hexdigest()


async def _earlier(request: Request[Any, Any, Any], data: DecideRequest) -> Enqueued | None:
    if data.idempotency_key is None:
        return None
    row = await db_of(request).fetch_one(queries.EARLIER, (data.tenant, data.idempotency_key))
    if row is None:
        return None
    if row["digest"] != digest_of(data) or row["decision_id"] is None or row["known"] is None:
        raise errors.IdempotencyConflict(f"the key belongs to message {row['id']} with another body")
    return Enqueued(
        decision_id=row["decision_id"], tenant=data.tenant, intent=data.intent, lane=row["lane"],
        arm=arm_of(msgspec.json.decode(row["arm"]), row["lane"]),
        assignment=msgspec.json.decode(row["assignment"], type=Assignment),
        scores=msgspec.json.decode(row["candidates"], type=list[Scored]), reason=row["reason"],
        policy_version=row["policy_version"], propensity=row["propensity"], explored=row["explored"],
        state_version=row["known"], seed=row["seed"], message_id=row["id"], status_url=_status_url(row["id"]),
        replayed=True,
    )  # fmt: skip


async def _enqueue(request: Request[Any, Any, Any], data: DecideRequest, wanted: plan.Request) -> Enqueued:
    trace = traceparent_of(request)
    async with db_of(request).transaction() as conn:
        tx = Reader(conn)
        decision = await brain.decide(db_of(request), tx, wanted, settings_of(request))
        lane = decision.lane or await brain.live_lane(tx, wanted)
        decision = msgspec.structs.replace(decision, lane=lane)
        decision, reserved = await brain.reserve(tx, wanted, decision)
        order = {
            "to": lane, "payload": data.payload, "decision_id": decision.id,
            "assignment": msgspec.to_builtins(decision.assignment), "request_digest": digest_of(data),
        }  # fmt: skip
        to = RoutingKey.parse(EXECUTE, tenant=data.tenant)
        message = await enqueue(conn, to, order, idempotency_key=data.idempotency_key, traceparent=trace)
        await brain.record(tx, decision, message_id=message, trace_id=trace_id_of(trace))
        await brain.hold(tx, decision, message, reserved)
        actor = principal_of(request).subject
        for kind, detail in (
            ("orchestrate_enqueued", {"intent": data.intent}),
            (
                "orchestrate_decision",
                {"decision_id": decision.id, "lane": decision.lane, "reason": decision.reason},
            ),
        ):
            await conn.execute(
                queries.EVENT, (kind, message, trace_id_of(trace), data.tenant, actor, Json(detail))
            )
    return Enqueued(**shown(decision), message_id=message, status_url=_status_url(message))


def _status_url(message: int) -> str:
    return f"/api/messages/{message}"


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
    found = shaped(row, "arm", "assignment", "candidates", "inputs")
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
    arms = [
        arm for arm in believed
        if arm["lane"] is None or (service in (None, arm["service"]) and role in (None, arm["role"]))
    ]  # fmt: skip
    if service or role:
        arms = [arm for arm in arms if arm["lane"] is not None]
    return {
        "policy": {"active": settings.version, "shadow": None}, "intents": known, "tenant": of, "arms": arms,
        "budgets": budgets, "exploration": {"floor": settings.exploration, "policy": settings.explore},
    }  # fmt: skip


def routes(settings: OrchestratorSettings) -> list[Router]:
    """The handlers, which find the settings in their `opt`."""
    handlers = [
        decide,
        decide_enqueue,
        feedback,
        decision,
        explain,
        put_budget,
        state,
        *routes_canaries.HANDLERS,
    ]
    return [Router("/", route_handlers=handlers, opt={SETTINGS: settings})]
