"""What /api/orchestrator/decide and its kin are asked, and what they answer."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from cogo import Assignment, Budget, errors
from cogo.web import Tenant, principal_of

from . import brain, plan
from .brain import OrchestratorSettings
from .model import Objective, Scored

if TYPE_CHECKING:
    from litestar import Request

TTL_MAX_MS = 30 * 24 * 3_600_000
SETTINGS = "orchestrator"
Intent = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$(?!\n)")]
NowMs = Annotated[int, msgspec.Meta(ge=0, le=2**52)]
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


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
    constraints: plan.Constraints = plan.Constraints()
    deadline_ms: Annotated[float, msgspec.Meta(gt=0, le=1e10)] | None = None
    model: plan.Label | None = None
    budget: Budget | None = None
    ttl_ms: Annotated[int, msgspec.Meta(ge=1, le=TTL_MAX_MS)] | None = None
    idempotency_key: Key | None = None
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


class ExecuteRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which decision, and the payload of its work."""

    decision_id: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
    payload: dict[str, Any] = {}


class Executed(msgspec.Struct, kw_only=True):
    """The work of a decision is on the bus; `replayed`: it was there already."""

    decision_id: int
    lane: str
    message_id: int
    status_url: str
    replayed: bool


def digest_of(data: DecideRequest) -> str:
    """What the same request has in common, whatever the order of its keys."""
    return hashlib.sha256(msgspec.json.encode(data, order="sorted")).hexdigest()


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
        ttl_ms=data.ttl_ms, now_ms=data.now_ms, constraints=data.constraints, deadline_ms=data.deadline_ms,
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
