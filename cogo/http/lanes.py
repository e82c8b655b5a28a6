"""`/api/lanes`, `/api/dead`, `/api/redrive`: pause and resume, what failed, and its way back.

A whole lane concerns every tenant, so only who may see all of them pauses one; an operator of some tenants
pauses those, and redrives what is theirs.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import FromPath, JSONBody, QueryParameter

from cogo.core.errors import Forbidden
from cogo.core.operate import Redriven

from .auth import operator, principal_of, viewer
from .messages import Reason, bus_of
from .params import Filter
from .shapes import ID_MAX, aware, bounded, shaped

IDS_MAX = 1_000
REDRIVE_MAX = 10_000
"""Of one request: 1,000 take some 50 ms."""


class Switch(Reason, forbid_unknown_fields=True):
    """Why, and for which tenant; without one the whole lane."""

    tenant: Annotated[str, msgspec.Meta(min_length=1, max_length=63)] | None = None


class Redrive(Reason, forbid_unknown_fields=True, kw_only=True):
    """Which failed messages go back: those that match all that is given."""

    lane: Annotated[str, msgspec.Meta(max_length=127)] | None = None
    tenant: Annotated[str, msgspec.Meta(min_length=1, max_length=63)] | None = None
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=63)] | None = None
    before: datetime | None = None
    ids: (
        Annotated[list[Annotated[int, msgspec.Meta(ge=1, le=ID_MAX)]], msgspec.Meta(max_length=IDS_MAX)]
        | None
    ) = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=REDRIVE_MAX)] = 1_000
    dry_run: bool = False


async def switched(
    request: Request[Any, Any, Any], lane: str, data: Switch, *, pause: bool
) -> dict[str, Any]:
    """Raises Forbidden for a tenant, or a whole lane, that is not the principal's to pause."""
    principal, tenant = principal_of(request), data.tenant
    if tenant is None and principal.tenants is not None:
        raise Forbidden("a whole lane concerns every tenant: name one of yours, or use an admin's token")
    if tenant is not None and not principal.may_read(tenant):
        raise Forbidden(f"this token may not act for the tenant {tenant!r}")
    switch = bus_of(request).pause if pause else bus_of(request).resume
    changed = await switch(lane, tenant=tenant, actor=principal.subject, reason=data.reason)
    return {"lane": lane, "tenant": tenant, "paused": pause, "changed": changed}


@post("/api/lanes/{service:str}/{role:str}/pause", guards=[operator], status_code=200)
async def pause(
    request: Request[Any, Any, Any], service: FromPath[str], role: FromPath[str], data: JSONBody[Switch]
) -> dict[str, Any]:
    """Begin nothing more in a lane, or for one tenant of it; what runs goes on. Audited."""
    return await switched(request, f"{service}/{role}", data, pause=True)


@post("/api/lanes/{service:str}/{role:str}/resume", guards=[operator], status_code=200)
async def resume(
    request: Request[Any, Any, Any], service: FromPath[str], role: FromPath[str], data: JSONBody[Switch]
) -> dict[str, Any]:
    """The opposite. Audited."""
    return await switched(request, f"{service}/{role}", data, pause=False)


@get("/api/dead", guards=[viewer])
async def dead(
    request: Request[Any, Any, Any],
    lane: Filter = None,
    tenant: Filter = None,
    limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """Failed messages by lane and error code, the most frequent first; `answers` of them need their root."""
    tenants = principal_of(request).narrowed(tenant)
    with bounded():
        groups = await bus_of(request).dead(lane, tenants=tenants, limit=limit)
    return {"groups": [shaped(msgspec.structs.asdict(group)) for group in groups]}


@post("/api/redrive", guards=[operator], status_code=200)
async def redrive(request: Request[Any, Any, Any], data: JSONBody[Redrive]) -> Redriven:
    """Queue failed messages again, at most `limit` a request; `refused` ones answered another message."""
    principal = principal_of(request)
    given = (data.lane, data.tenant, data.code, data.before, data.ids)
    # Nothing given is refused; all that an operator may see is not what that means.
    tenants = principal.narrowed(data.tenant) if any(one is not None for one in given) else None
    return await bus_of(request).redrive(
        data.lane, actor=principal.subject, tenants=tenants, code=data.code, before=aware(data.before),
        ids=data.ids, limit=data.limit, reason=data.reason, dry_run=data.dry_run,
    )  # fmt: skip


lane_routes = (pause, resume, dead, redrive)
