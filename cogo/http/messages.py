"""`/api/messages`: look at a message, wait for its end, follow its progress, cancel it, put it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, PathParameter, QueryParameter

from cogo.core.errors import Invalid, MessageState, MessageUnknown, NotFound
from cogo.core.model import STATUSES, Result

from . import queries
from .auth import operator, principal_of, viewer
from .paging import walk
from .params import Before, Filter, Since
from .shapes import aware, bounded, parse_id, shaped, snippet_value
from .stream import stream
from .waiting import unless_over

if TYPE_CHECKING:
    from cogo.core.bus import Bus
    from cogo.core.db import Database

WAIT_MAX_MS = 60_000
PAGE_MAX = 200

Id = Annotated[str, PathParameter(description="message id")]


class Reason(msgspec.Struct, forbid_unknown_fields=True):
    """Why an operator acts; it stands in the audit."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


def bus_of(request: Request[Any, Any, Any]) -> Bus:
    """The bus of the running process."""
    bus: Bus = request.app.state.runtime.bus
    return bus


async def visible(request: Request[Any, Any, Any], text: str) -> int:
    """The id, if its message exists and its tenant may be read. Raises MessageUnknown."""
    found = parse_id(text)
    tenants = principal_of(request).tenant_list()
    if await bus_of(request).db.fetch_value(queries.VISIBLE, {"id": found, "tenants": tenants}) is None:
        raise MessageUnknown
    return found


def message_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of agent_messages as the API shows it."""
    return shaped(row, "payload")


async def describe(db: Database, found: int, tenants: list[str] | None) -> dict[str, Any]:
    """A message with its children, bus events, decisions and cost. Raises MessageUnknown."""
    with bounded():
        row = await db.fetch_one(queries.MESSAGE, {"id": found, "tenants": tenants})
        if row is None:
            raise MessageUnknown
        children = await db.fetch(queries.CHILDREN, {"id": found})
        ids = [found, *(child["id"] for child in children)]
        events = await db.fetch(queries.EVENTS, {"ids": ids})
        decisions = await db.fetch(queries.DECISIONS, {"ids": ids})
        cost = await db.fetch_one(queries.COST, {"root": row["root_id"] or found})
    shown = [shaped(decision, "arm", "assignment", "candidates") for decision in decisions]
    return {
        "message": message_row(row),
        "result": snippet_value(row["result_snippet"]),
        "children": [message_row(child) for child in children],
        "events": [shaped(event, "detail") for event in events],
        "decision": shown[-1] if shown else None,
        "decisions": shown,
        "cost": shaped(cost) if cost else None,
    }


@get("/api/messages/{message_id:str}", guards=[viewer])
async def message(request: Request[Any, Any, Any], message_id: Id) -> dict[str, Any]:
    """The row, its children, its bus events, decision and cost, each in time order."""
    tenants = principal_of(request).tenant_list()
    return await describe(bus_of(request).db, parse_id(message_id), tenants)


def outcome(result: Result) -> dict[str, Any]:
    """How a message stands, as `/result` and the stream's last event show it."""
    row = msgspec.structs.asdict(result)
    row["result_snippet"], row["result_url"] = row.pop("snippet"), row.pop("url")
    return {**shaped(row), "result": snippet_value(result.snippet)}


NOT_YET = ResponseSpec(dict[str, Any], description="it has not ended yet", generate_examples=False)


@get("/api/messages/{message_id:str}/result", guards=[viewer], responses={202: NOT_YET})
async def result(
    request: Request[Any, Any, Any],
    message_id: Id,
    wait_ms: Annotated[int, QueryParameter(ge=0, le=WAIT_MAX_MS)] = 0,
) -> Response[dict[str, Any]]:
    """200 with the outcome when the message has ended; 202 with its status after `wait_ms`."""
    found = await visible(request, message_id)
    bus = bus_of(request)
    now = await bus.peek(found)
    if wait_ms and not now.terminal:
        now = await unless_over(request, lambda: bus.wait(found, wait_ms / 1000)) or await bus.peek(found)
    return Response(outcome(now), status_code=200 if now.terminal else 202)


@get("/api/messages/{message_id:str}/stream", guards=[viewer], media_type="text/event-stream")
async def follow(request: Request[Any, Any, Any], message_id: Id) -> Response[Any]:
    """Server-sent events: progress and tokens as they come, then `outcome`; resumes by Last-Event-ID."""
    found = await visible(request, message_id)
    last = request.headers.get("last-event-id", "").strip()
    if last == "end":
        return Response(None, status_code=204)  # the one answer after which EventSource stays away
    if last and not (last.isascii() and last.isdigit() and len(last) < 10):
        raise Invalid("Last-Event-ID is not a number that this stream gave out")
    return stream(bus_of(request), found, int(last or 0), request.app.state.runtime.stop, outcome)


@post("/api/messages/{message_id:str}/cancel", guards=[operator], status_code=200)
async def cancel(request: Request[Any, Any, Any], message_id: Id, data: JSONBody[Reason]) -> dict[str, Any]:
    """Cancel the message and whatever it waits for; audited with actor and reason."""
    found = await visible(request, message_id)
    status = await bus_of(request).cancel(found, actor=principal_of(request).subject, reason=data.reason)
    if status != "cancelled":
        raise MessageState(f"message {found} is {status}; what has ended can't be cancelled")
    return {"id": found, "status": status}


@post("/api/messages/{message_id:str}/requeue", guards=[operator], status_code=200)
async def requeue(request: Request[Any, Any, Any], message_id: Id, data: JSONBody[Reason]) -> dict[str, Any]:
    """Put a failed or cancelled message back at attempt 0; audited with actor and reason."""
    found = await visible(request, message_id)
    status = await bus_of(request).requeue(found, actor=principal_of(request).subject, reason=data.reason)
    return {"id": found, "status": status}


@get("/api/messages", guards=[viewer])
async def messages(
    request: Request[Any, Any, Any],
    service: Filter = None,
    role: Filter = None,
    status: Filter = None,
    tenant: Filter = None,
    since: Since = None,
    q: Annotated[str | None, QueryParameter(min_length=1, max_length=200)] = None,
    before: Before = None,
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 50,
) -> dict[str, Any]:
    """Newest first, by pages: give `next` as `before` to go on; `next` null is the end.

    `q` is a trace id, an idempotency key, or text in payload or error. A page looks at a bounded
    piece of the table, so it may be short (even empty) and still have a `next`.
    """
    if status is not None and status not in STATUSES:
        raise Invalid(f"status is one of {', '.join(STATUSES)}")
    filters: dict[str, Any] = {"service": service, "role": role, "status": status, "q": q}
    filters["since"] = aware(since)
    filters["tenants"] = principal_of(request).narrowed(tenant)
    rows, after = await walk(bus_of(request).db, queries.MESSAGES, filters, before=before, limit=limit)
    return {"messages": [message_row(row) for row in rows], "next": after}


@get("/api/artifacts/{digest:str}", guards=[viewer])
async def artifact(request: Request[Any, Any, Any], digest: FromPath[str]) -> Response[bytes]:
    """A stored result that was too long for its message (`result_url`)."""
    args = {"digest": digest[:200], "tenants": principal_of(request).tenant_list()}
    row = await bus_of(request).db.fetch_one(queries.ARTIFACT, args)
    if row is None:
        raise NotFound("there is no such artifact")
    headers = {
        # Written by handlers, shown under the dashboard's own origin: it must never run as a page.
        "content-security-policy": "default-src 'none'; sandbox",
        "cache-control": "private, max-age=3600",
        "etag": f'"{digest}"',
    }
    if not row["media_type"].startswith("application/json"):
        headers["content-disposition"] = "attachment"
    return Response(bytes(row["body"]), media_type=row["media_type"], headers=headers)


message_routes = (message, result, follow, cancel, requeue, messages, artifact)
