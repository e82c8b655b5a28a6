"""/api/orchestrator/canaries and /agents: versions of agents, and trying a new one beside the old one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, get, post, put
from litestar.params import FromPath, JSONBody

from cogo import Database, errors
from cogo.web import Filter, Tenant, admin, bounded, db_of, operator, principal_of, shaped, tenants_of, viewer

from . import canary, plan, queries, sense
from .canary import Canary, Move

Web = Request[Any, Any, Any]
Share = Annotated[float, msgspec.Meta(gt=0, le=100)]
AgentId = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,62}/[a-z][a-z0-9-]{0,62}$(?!\n)")]
ACTIONS: dict[str, tuple[str, ...]] = {
    "pause": ("running",), "resume": ("paused",), "promote": ("running", "paused"), "rollback": ("running", "paused"),
}  # fmt: skip


class StartCanary(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A version (or model) of an agent that is to be tried against another.

    `steps` are percent of the base's tasks, ascending; at 100 the canary is promoted. Steps that end below 100 leave
    that to a person. A model that is not given is whichever.
    """

    tenant: Tenant
    agent_id: plan.Label
    base_version: plan.Label | None = None
    canary_version: plan.Label | None = None
    base_model: plan.Label | None = None
    canary_model: plan.Label | None = None
    steps: Annotated[list[Share], msgspec.Meta(min_length=1, max_length=20)] = msgspec.field(
        default_factory=lambda: list(canary.STEPS)
    )


class Because(msgspec.Struct, forbid_unknown_fields=True):
    """Why a person moves a canary."""

    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


class PutAgent(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A version that does the work of a lane: `agent_id` is its service/role."""

    agent_id: AgentId
    version: plan.Label | None = None
    model: plan.Label | None = None
    status: Literal["active", "draining", "paused", "retired"] = "active"
    list_price_usd: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None


@post("/api/orchestrator/canaries", guards=[operator], status_code=201)
async def start_canary(request: Web, data: JSONBody[StartCanary]) -> dict[str, Any]:
    """Give a new version its first share. One canary of an agent at a time."""
    if not principal_of(request).may_read(data.tenant):
        raise errors.Forbidden(f"this token may not decide for the tenant {data.tenant!r}")
    if (data.base_version, data.base_model) == (data.canary_version, data.canary_model):
        raise errors.Invalid("the canary is the same version and model as its base - at `$.canary_version`")
    if sorted(set(data.steps)) != data.steps or data.steps[0] >= 100:
        raise errors.Invalid("steps ascend and begin below 100 - at `$.steps`")
    with bounded():
        params = msgspec.to_builtins(data) | {"by": principal_of(request).subject}
        started = await db_of(request).fetch_one(queries.START_CANARY, params)
        if started is None:
            raise errors.Invalid(f"a canary of {data.agent_id!r} is under way: promote it or roll it back")
        return await _shown(request, started["id"])


@get("/api/orchestrator/canaries", guards=[viewer])
async def canaries(request: Web, tenant: Filter = None) -> dict[str, Any]:
    """All that are and were, the newest first."""
    tenants = tenants_of(request)
    if tenant is not None:
        tenants = [tenant] if principal_of(request).may_read(tenant) else []
    with bounded():
        return {"canaries": await listed(db_of(request), tenants)}


async def listed(db: Database, tenants: list[str] | None) -> list[dict[str, Any]]:
    """Of these tenants (None: of all), the newest first."""
    return [_as_canary(row) for row in await db.fetch(queries.CANARIES, {"tenants": tenants, "id": None})]


@get("/api/orchestrator/canaries/{canary_id:str}", guards=[viewer])
async def one_canary(request: Web, canary_id: FromPath[str]) -> dict[str, Any]:
    """Where it stands, with the comparison up to the last outcome."""
    with bounded():
        return await _shown(request, _id(canary_id))


@post("/api/orchestrator/canaries/{canary_id:str}/{action:str}", guards=[operator], status_code=200)
async def move_canary(
    request: Web, canary_id: FromPath[str], action: FromPath[str], data: JSONBody[Because]
) -> dict[str, Any]:
    """pause, resume, promote, or rollback, with a reason. What a person paused only a person resumes."""
    if action not in ACTIONS:
        raise errors.NotFound(f"there is no action {action!r}; there are {', '.join(ACTIONS)}")
    by = principal_of(request).subject
    with bounded():
        row = await _row(request, _id(canary_id))
        if row["state"] not in ACTIONS[action]:
            raise errors.Invalid(f"canary {canary_id} is {row['state'].replace('_', ' ')}: it can't {action}")
        one = _canary(row)
        state, step = _after(action, one)
        move = Move(state=state, step=step, resumes=0, cause=f"{by}: {data.reason or action}")
        if not await canary.make(db_of(request), one, move, by):
            raise errors.Invalid(
                f"canary {canary_id} was moved just now by somebody else: look at it, then ask again"
            )
        return await _shown(request, one.id)


def _after(action: str, one: Canary) -> tuple[canary.State, int]:
    if action == "promote":
        return "promoted", len(one.steps) - 1
    return ("paused" if action == "pause" else "running" if action == "resume" else "rolled_back"), one.step


async def _shown(request: Web, id: int) -> dict[str, Any]:
    """Raises NotFound."""
    row = await _row(request, id)
    found = _as_canary(row)
    if row["state"] != "running":
        return found
    mind = sense.minds_of(db_of(request)).of(row["tenant"])
    async with mind.lock:
        await mind.sense(db_of(request), row["tenant"], None)
        counts = mind.counts.get(id)
        return found | {
            "analysis": counts.analysis() if counts is not None and counts.run == row["run"] else None
        }


async def _row(request: Web, id: int) -> dict[str, Any]:
    rows = await db_of(request).fetch(queries.CANARIES, {"tenants": tenants_of(request), "id": id})
    if not rows:
        raise errors.NotFound("there is no such canary")
    return rows[0]


def _id(text: str) -> int:
    """Raises NotFound."""
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    raise errors.NotFound("there is no such canary")


def _canary(row: dict[str, Any]) -> Canary:
    return msgspec.convert({name: row[name] for name in Canary.__struct_fields__}, Canary)


def _as_canary(row: dict[str, Any]) -> dict[str, Any]:
    weight = _canary(row).weight
    found = shaped({name: value for name, value in row.items() if name != "resume_ms"})
    return found | {"weight": weight}


@put("/api/orchestrator/agents", guards=[admin])
async def put_agent(request: Web, data: JSONBody[PutAgent]) -> dict[str, Any]:
    """Register a version, or change its price or status: draining and paused ones get no work, retired ones are gone."""
    with bounded():
        params = msgspec.to_builtins(data) | {"by": principal_of(request).subject}
        return shaped((await db_of(request).fetch(queries.PUT_AGENT, params))[0])


@get("/api/orchestrator/agents", guards=[viewer])
async def agents(request: Web) -> dict[str, Any]:
    """Every version that is registered."""
    with bounded():
        rows = await db_of(request).fetch(queries.AGENTS)
    return {"agents": [shaped(row) for row in rows]}


HANDLERS = [start_canary, canaries, one_canary, move_canary, put_agent, agents]
