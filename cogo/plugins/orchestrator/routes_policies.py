"""/api/orchestrator/policies and /evaluate: policies are compared, looked on by, and activated."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from cogo import errors
from cogo.web import Since, Tenant, admin, aware, bounded, db_of, principal_of, shaped, viewer

from . import compare, queries, registry
from .offpolicy import Report
from .registry import Policy
from .shapes import may, settings_of

Web = Request[Any, Any, Any]
ACTIONS = {"shadow": "shadow", "activate": "active", "retire": "retired"}
DECISIONS: int = 3_000
DECISIONS_MAX: int = 10_000


class PutPolicy(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How scores become probabilities, and the share of tasks that is spread over all that can take them."""

    explore: registry.Explore
    exploration: registry.Share


class Move(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Why; and a tenant on whose log the policy is compared first, so that the report stays with the move."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    tenant: Tenant | None = None


@post("/api/orchestrator/policies", guards=[admin], status_code=201)
async def put_policy(request: Web, data: JSONBody[PutPolicy]) -> dict[str, Any]:
    """Make a candidate, which decides nothing; one that is known stays as it is."""
    policy = Policy(data.explore, data.exploration)
    if registry.named(policy.version) != policy:
        raise errors.Invalid("exploration has at most six digits: the version names it - at `$.exploration`")
    params = {
        "version": policy.version, "params": msgspec.json.encode(policy).decode(), "by": principal_of(request).subject,
    }  # fmt: skip
    with bounded():
        await db_of(request).execute(queries.PUT_POLICY, params)
        return await _shown(request, policy.version)


@get("/api/orchestrator/policies", guards=[viewer])
async def policies(request: Web) -> dict[str, Any]:
    """Every policy, and which one decides: of the settings, while none is active."""
    with bounded():
        rows = await db_of(request).fetch(queries.POLICIES, {"version": None})
    by_status = {row["status"]: row["version"] for row in rows}
    return {
        "active": by_status.get("active", settings_of(request).policy.version),
        "shadow": by_status.get("shadow"),
        "settings": settings_of(request).policy.version,
        "policies": [shaped(row, "params", "evaluation") for row in rows],
    }


@post("/api/orchestrator/policies/{version:str}/{action:str}", guards=[admin], status_code=200)
async def move_policy(
    request: Web, version: FromPath[str], action: FromPath[str], data: JSONBody[Move]
) -> dict[str, Any]:
    """shadow, activate or retire. Every process obeys from its next decision on; without an active one, its settings."""
    if action not in ACTIONS:
        raise errors.NotFound(f"there is no action {action!r}; there are {', '.join(ACTIONS)}")
    with bounded():
        await _shown(request, version)
        evaluation = await _compared(request, version, data.tenant) if data.tenant else None
        params = {
            "version": version, "status": ACTIONS[action], "reason": data.reason, "by": principal_of(request).subject,
            "evaluation": None if evaluation is None else msgspec.json.encode(evaluation).decode(),
        }  # fmt: skip
        await db_of(request).fetch(queries.MOVE_POLICY, params)
        return await _shown(request, version)


async def _compared(request: Web, version: str, tenant: str) -> Report:
    db = db_of(request)
    target = await compare.named(db, version, settings_of(request).policy)
    return await compare.compare(db, tenant, target, since=None, limit=DECISIONS)


async def _shown(request: Web, version: str) -> dict[str, Any]:
    """Raises NotFound."""
    rows = await db_of(request).fetch(queries.POLICIES, {"version": version})
    if not rows:
        raise errors.NotFound("there is no such policy")
    return shaped(rows[0], "params", "evaluation")


@get("/api/orchestrator/evaluate", guards=[viewer])
async def evaluate(
    request: Web,
    tenant: FromQuery[Tenant],
    policy: Annotated[str, QueryParameter(min_length=1, max_length=300)],
    since: Since = None,
    limit: Annotated[int, QueryParameter(ge=1, le=DECISIONS_MAX)] = DECISIONS,
) -> Report:
    """What a policy would have been worth on the tenant's last decisions: a version, uniform, greedy, logged, or arm:AGENT_ID."""
    may(request, tenant)
    with bounded():
        target = await compare.named(db_of(request), policy, settings_of(request).policy)
        return await compare.compare(db_of(request), tenant, target, since=aware(since), limit=limit)


HANDLERS = [put_policy, policies, move_policy, evaluate]
