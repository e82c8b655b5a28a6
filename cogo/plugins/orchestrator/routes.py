"""/api/orchestrator/*: ask for a decision, look at the lanes, or decide and enqueue in one commit."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import JSONBody

from cogo import Assignment, Budget, Json, RoutingKey, enqueue, errors
from cogo.web import (
    Filter,
    Tenant,
    bounded,
    db_of,
    operator,
    principal_of,
    trace_id_of,
    traceparent_of,
    viewer,
)

from . import brain

EXECUTE = "orchestrator/execute/0"
TTL_MAX_MS = 30 * 24 * 3_600_000

EVENT = """
INSERT INTO public.bus_events (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
VALUES (%s, %s, %s, %s, 'orchestrator', 'execute', 0, %s, %s)
"""
ATTACH = "UPDATE cogo.decisions SET message_id = %s WHERE id = %s"
EARLIER = """
SELECT m.id, m.payload ->> 'request_digest' AS digest, d.id AS decision_id, d.lane, d.reason, d.policy_version,
  d.arm::text AS arm, d.assignment::text AS assignment, d.candidates::text AS candidates
FROM public.agent_messages m
LEFT JOIN cogo.decisions d ON d.message_id = m.id
WHERE m.tenant = %s AND m.idempotency_key = %s
"""


class DecideRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What is to be decided. Without a budget or a ttl the orchestrator's defaults count."""

    tenant: Tenant
    intent: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$(?!\n)")]
    payload: dict[str, Any] = {}
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    budget: Budget | None = None
    ttl_ms: Annotated[int, msgspec.Meta(ge=1, le=TTL_MAX_MS)] | None = None
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None


class Arm(msgspec.Struct, kw_only=True):
    """The candidate that was chosen."""

    agent_id: str | None
    version: str | None
    model: str | None
    service: str
    role: str
    shard: int


class Decided(msgspec.Struct, kw_only=True):
    """A decision with its reason; `propensity` is the probability with which the policy chose so."""

    decision_id: int
    tenant: str
    intent: str
    lane: str
    arm: Arm
    assignment: Assignment
    propensity: float = 1.0
    explored: bool = False
    policy_version: str
    candidates: list[brain.Candidate]
    reason: str


class Enqueued(Decided, kw_only=True):
    """A decision whose work is on the bus; `replayed`: the same key and body came before."""

    message_id: int
    status_url: str
    replayed: bool = False


class State(msgspec.Struct, kw_only=True):
    """What the orchestrator sees: every lane that answers an intent, with its health."""

    policy: dict[str, str | None]
    intents: list[str]
    arms: list[brain.Candidate]


class _Reader:
    """The connection of a transaction, as the brain reads it."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    async def fetch(self, sql: str, params: Any = ()) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await (await self.conn.execute(sql, params)).fetchall()
        return rows


def asked(request: Request[Any, Any, Any], data: DecideRequest) -> brain.Request:
    """The brain's request. Raises Forbidden, AssignmentForbidden, Invalid."""
    if not principal_of(request).may_read(data.tenant):
        raise errors.Forbidden(f"this token may not decide for the tenant {data.tenant!r}")
    if "__assignment" in data.payload:
        raise errors.AssignmentForbidden
    usual = brain.Request(tenant=data.tenant, intent=data.intent)
    budget = data.budget or usual.budget
    if (budget.maxCostUsd or 0) < 0 or (budget.maxTokens or 0) < 0:
        raise errors.Invalid("a budget is not negative - at `$.budget`")
    return msgspec.structs.replace(
        usual, payload=data.payload, model=data.model, budget=budget, ttl_ms=data.ttl_ms or usual.ttl_ms
    )


def shown(decision: brain.Decision) -> dict[str, Any]:
    """The fields of Decided for a decision that has been recorded."""
    service, role, shard = decision.lane.split("/")
    arm = Arm(**decision.arm, service=service, role=role, shard=int(shard))
    return {
        "decision_id": decision.id, "tenant": decision.tenant, "intent": decision.intent, "arm": arm,
        "lane": decision.lane, "assignment": decision.assignment, "candidates": decision.candidates,
        "policy_version": decision.policy_version, "reason": decision.reason,
    }  # fmt: skip


@post("/api/orchestrator/decide", guards=[operator], status_code=200)
async def decide(request: Request[Any, Any, Any], data: JSONBody[DecideRequest]) -> Decided:
    """Decide and log it, without touching the bus."""
    db = db_of(request)
    with bounded():
        decision = await brain.decide(db, asked(request, data))
        decision = await brain.record(
            db, decision, message_id=None, trace_id=trace_id_of(traceparent_of(request))
        )
    return Decided(**shown(decision))


@post("/api/orchestrator/decide-enqueue", guards=[operator], status_code=202)
async def decide_enqueue(request: Request[Any, Any, Any], data: JSONBody[DecideRequest]) -> Enqueued:
    """Decide, log and enqueue for the executor in one transaction; the same key and body replays."""
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
    row = await db_of(request).fetch_one(EARLIER, (data.tenant, data.idempotency_key))
    if row is None:
        return None
    if row["digest"] != digest_of(data) or row["decision_id"] is None:
        raise errors.IdempotencyConflict(f"the key belongs to message {row['id']} with another body")
    decision = brain.Decision(
        tenant=data.tenant, intent=data.intent, lane=row["lane"], arm=msgspec.json.decode(row["arm"]),
        assignment=msgspec.json.decode(row["assignment"], type=Assignment),
        candidates=msgspec.json.decode(row["candidates"], type=list[brain.Candidate]),
        reason=row["reason"], policy_version=row["policy_version"], id=row["decision_id"],
    )  # fmt: skip
    return Enqueued(**shown(decision), message_id=row["id"], status_url=_status_url(row["id"]), replayed=True)


async def _enqueue(request: Request[Any, Any, Any], data: DecideRequest, wanted: brain.Request) -> Enqueued:
    trace = traceparent_of(request)
    async with db_of(request).transaction() as conn:
        reader = _Reader(conn)
        decision = await brain.decide(reader, wanted)
        decision = await brain.record(reader, decision, message_id=None, trace_id=trace_id_of(trace))
        order = {
            "to": decision.lane, "payload": data.payload, "decision_id": decision.id,
            "assignment": msgspec.to_builtins(decision.assignment), "request_digest": digest_of(data),
        }  # fmt: skip
        to = RoutingKey.parse(EXECUTE, tenant=data.tenant)
        message = await enqueue(conn, to, order, idempotency_key=data.idempotency_key, traceparent=trace)
        await conn.execute(ATTACH, (message, decision.id))
        actor = principal_of(request).subject
        for kind, detail in (
            ("orchestrate_enqueued", {"intent": data.intent}),
            (
                "orchestrate_decision",
                {"decision_id": decision.id, "lane": decision.lane, "reason": decision.reason},
            ),
        ):
            await conn.execute(EVENT, (kind, message, trace_id_of(trace), data.tenant, actor, Json(detail)))
    return Enqueued(**shown(decision), message_id=message, status_url=_status_url(message))


def _status_url(message: int) -> str:
    return f"/api/messages/{message}"


@get("/api/orchestrator/state", guards=[viewer])
async def state(request: Request[Any, Any, Any], service: Filter = None, role: Filter = None) -> State:
    """The lanes that answer intents, their health, and the policy that chooses among them."""
    db = db_of(request)
    with bounded():
        arms = await brain.candidates_for(db, None)
        known = await brain.intents(db)
    kept = [
        arm for arm in arms
        if service in (None, arm.lane.split("/")[0]) and role in (None, arm.lane.split("/")[1])
    ]  # fmt: skip
    return State(policy={"active": brain.POLICY_VERSION, "shadow": None}, intents=known, arms=kept)


ROUTES = (decide, decide_enqueue, state)
