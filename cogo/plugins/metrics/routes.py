"""`/api/metrics/*` as JSON. A viewer's answer is about the viewer's own tenants."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any

from litestar import Request, get
from litestar.params import FromPath, QueryParameter

from cogo import errors
from cogo.web import (
    Before,
    Filter,
    Since,
    aware,
    db_of,
    parse_id,
    principal_of,
    runtime_of,
    shaped,
    tenants_of,
    viewer,
    walk,
)

from . import queries, stats

Window = Annotated[int, QueryParameter(ge=60, le=14 * 86_400, description="seconds to look back")]

shared = stats.Shared()


def tenants_key(request: Request[Any, Any, Any]) -> tuple[str, ...] | None:
    """What the answers of two viewers with the same tenants have in common."""
    tenants = tenants_of(request)
    return None if tenants is None else tuple(tenants)


async def ask_shared(request: Request[Any, Any, Any], what: Any, *args: Any) -> Any:
    """`what(db, tenants, *args)`, shared among those who see the same."""
    db, tenants = db_of(request), tenants_of(request)
    key = (db.dsn, what.__name__, tenants_key(request), args)
    return await shared.get(key, partial(what, db, tenants, *args))


@get("/api/metrics/summary", guards=[viewer])
async def summary(request: Request[Any, Any, Any], window_s: Window = stats.WINDOW_S) -> dict[str, Any]:
    """Messages by status, latency, failure rate, holders, cost."""
    found: dict[str, Any] = await ask_shared(request, stats.summary, window_s)
    return found


@get("/api/metrics/bus/latency", guards=[viewer])
async def latency(request: Request[Any, Any, Any], window_s: Window = stats.WINDOW_S) -> dict[str, Any]:
    """Percentiles of the time to the first claim and to the end, of all lanes and of each."""
    found: dict[str, Any] = await ask_shared(request, stats.latencies, window_s)
    return found


@get("/api/metrics/bus/failures", guards=[viewer])
async def failures(request: Request[Any, Any, Any], window_s: Window = stats.FAILURES_S) -> dict[str, Any]:
    """Failed messages grouped by code, lane and words: count, first and last seen, a sample, ids."""
    return {"window_s": window_s, "groups": await ask_shared(request, stats.failures, window_s)}


@get("/api/metrics/bus/events", guards=[viewer])
async def events(
    request: Request[Any, Any, Any],
    kind: Filter = None,
    message_id: Filter = None,
    trace_id: Filter = None,
    tenant: Filter = None,
    since: Since = None,
    before: Before = None,
    limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """The audit, newest first, by pages (`next` as `before`); `by_kind` counts the newest 10,000."""
    filters = {
        "kind": kind, "trace_id": trace_id, "since": aware(since),
        "message_id": None if message_id is None else parse_id(message_id),
        "tenants": principal_of(request).narrowed(tenant),
    }  # fmt: skip
    db = db_of(request)
    rows, after = await walk(db, queries.EVENTS, filters, before=before, limit=limit)
    kinds = await ask_shared(request, by_kind)
    return {"events": [shaped(row, "detail") for row in rows], "next": after, "by_kind": kinds}


async def by_kind(db: Any, tenants: list[str] | None) -> dict[str, int]:
    """How many of each kind are among the newest events."""
    return {row["kind"]: row["n"] for row in await db.fetch(queries.BY_KIND, {"tenants": tenants})}


@get("/api/metrics/trace/{trace_id:str}", guards=[viewer])
async def trace(request: Request[Any, Any, Any], trace_id: FromPath[str]) -> dict[str, Any]:
    """Every hop of a request, in time order, with its times, events and decisions."""
    wanted = trace_id.lower()
    found = None
    if re.fullmatch(r"[0-9a-f]{32}", wanted):
        found = await stats.trace(db_of(request), tenants_of(request), wanted)
    if found is None:
        raise errors.NotFound("there is no trace of that id")
    return found


@get("/api/metrics/health", guards=[viewer])
async def health(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """This process, the others whose lease stands, and lanes in which work waits for nobody."""
    runtime = runtime_of(request)
    state = runtime.health()
    lanes = await ask_shared(request, stats.lanes)
    return {
        "status": "ok" if state.ready else "degraded",
        "database": state.database,
        "listener": state.listener,
        "listener_mode": state.listener_mode,
        "loop_lag_ms": state.loop_lag_ms,
        "holder": runtime.holder,
        "roles": sorted(runtime.roles),
        "holders": await stats.holders(db_of(request)),
        "unserved": [lane["lane"] for lane in lanes if lane["queued"] and not lane["holders"]],
    }


ROUTES = (summary, latency, failures, events, trace, health)
