"""/api/orchestrator: decide, decide and enqueue, execute what was decided; the other routes are in routes_*."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Router, post
from litestar.params import JSONBody

from cogo import Assignment, Json, RoutingKey, enqueue, errors
from cogo.web import bounded, db_of, operator, principal_of, tenants_of, trace_id_of, traceparent_of

from . import brain, ledger, plan, queries, routes_canaries, routes_plan, routes_policies, routes_state
from .brain import OrchestratorSettings
from .model import Scored
from .shapes import (
    SETTINGS,
    Decided,
    DecideRequest,
    Enqueued,
    Executed,
    ExecuteRequest,
    arm_of,
    asked,
    digest_of,
    settings_of,
    shown,
)

EXECUTE = "orchestrator/execute/0"
Web = Request[Any, Any, Any]


class Reader:
    """The connection of a transaction, as the brain reads it."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    async def fetch(self, sql: str, params: Any = ()) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await (await self.conn.execute(sql, params)).fetchall()
        return rows


# -- decide ---------------------------------------------------------------------------------------


@post("/api/orchestrator/decide", guards=[operator], status_code=200)
async def decide(request: Web, data: JSONBody[DecideRequest]) -> Decided:
    """Decide and log it, without touching the bus or reserving money; the same key and body replays."""
    db, wanted = db_of(request), asked(request, data)
    with bounded():
        if earlier := await _decided(request, data):
            return earlier
        decision = await brain.decide(db, db, wanted, settings_of(request))
        logged = await brain.record(
            db, decision, message_id=None, trace_id=trace_id_of(traceparent_of(request)), key=data.idempotency_key,
            digest=digest_of(data) if data.idempotency_key else None,
        )  # fmt: skip
        if not logged and (earlier := await _decided(request, data)):
            return earlier  # another caller with the key was faster
    return Decided(**shown(decision))


async def _decided(request: Web, data: DecideRequest) -> Decided | None:
    """What the key's first request was answered. Raises IdempotencyConflict."""
    if data.idempotency_key is None:
        return None
    row = await db_of(request).fetch_one(queries.EARLIER_DECISION, (data.tenant, data.idempotency_key))
    if row is None:
        return None
    if row["digest"] != digest_of(data):
        raise errors.IdempotencyConflict(
            f"the key belongs to decision {row['decision_id']} with another body"
        )
    return Decided(**_logged(data, row))


def _logged(data: DecideRequest, row: dict[str, Any]) -> dict[str, Any]:
    """The fields of Decided for a row of decisions."""
    return {
        "decision_id": row["decision_id"], "tenant": data.tenant, "intent": data.intent, "lane": row["lane"],
        "arm": arm_of(msgspec.json.decode(row["arm"]), row["lane"]),
        "assignment": msgspec.json.decode(row["assignment"], type=Assignment),
        "scores": msgspec.json.decode(row["candidates"], type=list[Scored]), "reason": row["reason"],
        "policy_version": row["policy_version"], "propensity": row["propensity"], "explored": row["explored"],
        "state_version": row["known"], "seed": row["seed"],
    }  # fmt: skip


# -- decide and enqueue ---------------------------------------------------------------------------


@post("/api/orchestrator/decide-enqueue", guards=[operator], status_code=202)
async def decide_enqueue(request: Web, data: JSONBody[DecideRequest]) -> Enqueued:
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


async def _earlier(request: Web, data: DecideRequest) -> Enqueued | None:
    if data.idempotency_key is None:
        return None
    row = await db_of(request).fetch_one(queries.EARLIER, (data.tenant, data.idempotency_key))
    if row is None:
        return None
    if row["digest"] != digest_of(data) or row["decision_id"] is None or row["known"] is None:
        raise errors.IdempotencyConflict(f"the key belongs to message {row['id']} with another body")
    return Enqueued(
        **_logged(data, row), message_id=row["id"], status_url=_status_url(row["id"]), replayed=True
    )


async def _enqueue(request: Web, data: DecideRequest, wanted: plan.Request) -> Enqueued:
    trace = trace_id_of(parent := traceparent_of(request))
    async with db_of(request).transaction() as conn:
        tx = Reader(conn)
        decision = await brain.decide(db_of(request), tx, wanted, settings_of(request))
        lane = decision.lane or await brain.live_lane(tx, wanted.intent)
        decision = msgspec.structs.replace(decision, lane=lane)
        decision, reserved = await ledger.reserve(tx, wanted, decision)
        order = {
            "to": lane, "payload": data.payload, "decision_id": decision.id,
            "assignment": msgspec.to_builtins(decision.assignment), "request_digest": digest_of(data),
        }  # fmt: skip
        to = RoutingKey.parse(EXECUTE, tenant=data.tenant)
        message = await enqueue(conn, to, order, idempotency_key=data.idempotency_key, traceparent=parent)
        await brain.record(tx, decision, message_id=message, trace_id=trace)
        await ledger.hold(tx, decision, message, reserved)
        about = {"decision_id": decision.id, "lane": decision.lane, "reason": decision.reason}
        for kind, detail in (
            ("orchestrate_enqueued", {"intent": data.intent}),
            ("orchestrate_decision", about),
        ):
            await _tell(request, conn, kind, message, trace, data.tenant, detail)
    return Enqueued(**shown(decision), message_id=message, status_url=_status_url(message))


async def _tell(
    request: Web, conn: Any, kind: str, message: int, trace: str, tenant: str, detail: dict[str, Any]
) -> None:
    actor = principal_of(request).subject
    await conn.execute(queries.EVENT, (kind, message, trace, tenant, actor, Json(detail)))


def _status_url(message: int) -> str:
    return f"/api/messages/{message}"


# -- execute what was decided ---------------------------------------------------------------------


@post("/api/orchestrator/execute", guards=[operator], status_code=202)
async def execute(request: Web, data: JSONBody[ExecuteRequest]) -> Executed:
    """Enqueue the work of a decision that `decide` made, reserving its money now. A decision is executed once."""
    if "__assignment" in data.payload:
        raise errors.AssignmentForbidden
    trace = trace_id_of(parent := traceparent_of(request))
    with bounded():
        async with db_of(request).transaction() as conn:
            tx = Reader(conn)
            rows = await tx.fetch(
                queries.TO_EXECUTE, {"id": data.decision_id, "tenants": tenants_of(request)}
            )
            if not rows:
                raise errors.NotFound("there is no such decision")
            row = rows[0]
            if row["message_id"] is not None:
                return _executed(data, row["message_id"], row["lane"], replayed=True)
            lane = row["lane"] or await brain.live_lane(tx, row["intent"])
            assignment = msgspec.json.decode(row["assignment"], type=Assignment)
            assignment, reserved = await ledger.reserve_for(tx, row, assignment)
            order = {
                "to": lane, "payload": data.payload, "decision_id": data.decision_id,
                "assignment": msgspec.to_builtins(assignment),
            }  # fmt: skip
            to = RoutingKey.parse(EXECUTE, tenant=row["tenant"])
            message = await enqueue(conn, to, order, traceparent=parent)
            await tx.fetch(queries.EXECUTED, {
                "id": data.decision_id, "message_id": message, "lane": lane, "trace_id": trace,
                "assignment": msgspec.json.encode(assignment).decode(),
            })  # fmt: skip
            if reserved is not None:
                await ledger.hold_for(tx, message, row["tenant"], assignment, reserved)
            detail = {"intent": row["intent"], "decision_id": data.decision_id}
            await _tell(request, conn, "orchestrate_enqueued", message, trace, row["tenant"], detail)
    return _executed(data, message, lane, replayed=False)


def _executed(data: ExecuteRequest, message: int, lane: str, *, replayed: bool) -> Executed:
    return Executed(
        decision_id=data.decision_id, lane=lane, message_id=message, status_url=_status_url(message),
        replayed=replayed,
    )  # fmt: skip


def routes(settings: OrchestratorSettings) -> list[Router]:
    """The handlers, which find the settings in their `opt`."""
    handlers = [
        decide,
        decide_enqueue,
        execute,
        *routes_state.HANDLERS,
        *routes_canaries.HANDLERS,
        *routes_plan.HANDLERS,
        *routes_policies.HANDLERS,
    ]
    return [Router("/", route_handlers=handlers, opt={SETTINGS: settings})]
