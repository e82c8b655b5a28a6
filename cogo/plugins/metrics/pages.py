"""`/dashboard/*`: server-rendered pages that work without a script; one small script keeps them fresh."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.resources import files
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get
from litestar.params import FromPath, QueryParameter

from cogo import errors
from cogo.web import (
    MESSAGES,
    Before,
    Pages,
    Since,
    aware,
    bounded,
    db_of,
    describe,
    on_exception,
    parse_id,
    principal_of,
    public,
    runtime_of,
    session_cookie,
    shaped,
    tenants_of,
    viewer,
    walk,
)

from . import charts, queries, stats
from .routes import ask_shared

HOME = "/dashboard/local"
PACKAGE = "cogo.plugins.metrics"
KINDS = {"app.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}
STATIC = {name: files(PACKAGE).joinpath("static", name).read_bytes() for name in KINDS}
# In the address of each file, so that no browser shows an upgrade in yesterday's colours.
MARK = hashlib.sha256(b"".join(STATIC.values())).hexdigest()[:10]

pages = Pages(PACKAGE, mark=MARK)


def on_problem(request: Request[Any, Any, Any], exc: Exception) -> Response[Any]:
    """A problem as a page for people, as JSON for everybody else."""
    plain = on_exception(request, exc)
    if "text/html" not in request.headers.get("accept", ""):
        return plain
    problem = msgspec.json.decode(plain.content or b"{}")
    page = pages.render(request, "problem.html", status=plain.status_code or 500, problem=problem)
    page.headers.update({name: value for name, value in plain.headers.items() if name != "content-type"})
    return page


@get(
    "/dashboard/static/{name:str}",
    guards=[public],
    include_in_schema=False,
    sync_to_thread=False,
    opt={"any_query": True},
)
def static(name: FromPath[str]) -> Response[bytes]:
    """The few files of the pages; they hold no data."""
    if name not in STATIC:
        raise errors.NotFound
    headers = {"cache-control": "public, max-age=86400"}
    return Response(STATIC[name], media_type=f"{KINDS[name]}; charset=utf-8", headers=headers)


@get("/dashboard/login", guards=[public], include_in_schema=False, sync_to_thread=False)
def login(
    request: Request[Any, Any, Any], token: Annotated[str, QueryParameter(max_length=8_192)] = ""
) -> Response[None]:
    """Take a token of `cogo token`, keep it in a cookie, and go on without it in the address."""
    if not token.strip():
        raise errors.Unauthorized
    cookie = session_cookie(request, token.strip())
    return Response(None, status_code=303, headers={"location": HOME}, cookies=[cookie])


@get("/dashboard", guards=[viewer], include_in_schema=False, sync_to_thread=False)
def home() -> Response[None]:
    """The first page."""
    return Response(None, status_code=303, headers={"location": HOME})


@get("/dashboard/local", guards=[viewer], include_in_schema=False)
async def local(request: Request[Any, Any, Any]) -> Response[str]:
    """Counts, lanes with depth and holders, decisions with reasons, events, failures."""
    runtime = runtime_of(request)
    data = await ask_shared(request, overview)
    chart = charts.throughput(data["minutes"], datetime.now(UTC))
    return pages.render(request, "local.html", runtime=runtime, health=runtime.health(), chart=chart, **data)


async def overview(db: Any, tenants: list[str] | None) -> dict[str, Any]:
    """All that the first page shows."""
    args = {"tenants": tenants, "limit": 12, "window_s": stats.WINDOW_S}
    with bounded():
        events, _ = await walk(
            db, queries.EVENTS, {**args, "kind": None, "message_id": None, "trace_id": None, "since": None},
            before=None, limit=15,
        )  # fmt: skip
        return {
            "summary": await stats.summary(db, tenants),
            "lanes": await stats.lanes(db, tenants),
            "minutes": await db.fetch(queries.PER_MINUTE, args),
            "decisions": await db.fetch(queries.RECENT_DECISIONS, args),
            "failures": await stats.failures(db, tenants, stats.FAILURES_S),
            "events": [shaped(event) for event in events],
        }


Text = Annotated[str, QueryParameter(max_length=200)]


@get("/dashboard/messages", guards=[viewer], include_in_schema=False)
async def messages(
    request: Request[Any, Any, Any],
    service: Text = "",
    role: Text = "",
    status: Text = "",
    tenant: Text = "",
    q: Text = "",
    since: Since = None,
    before: Before = None,
) -> Response[str]:
    """The newest messages under a filter that stands in the address."""
    given = {"service": service.strip(), "role": role.strip(), "status": status, "q": q.strip()}
    filters: dict[str, Any] = {name: value or None for name, value in given.items()}
    filters |= {"since": aware(since), "tenants": principal_of(request).narrowed(tenant.strip() or None)}
    rows, after = await walk(db_of(request), MESSAGES, filters, before=before, limit=50)
    form = {**given, "tenant": tenant.strip()}
    return pages.render(
        request,
        "messages.html",
        rows=rows,
        after=after,
        form=form,
        statuses=stats.STATUSES,
        first=before is None,
    )


@get("/dashboard/messages/{message_id:str}", guards=[viewer], include_in_schema=False)
async def message(request: Request[Any, Any, Any], message_id: FromPath[str]) -> Response[str]:
    """One message: its hops and their times, why it went there, its events, payload and result."""
    db, tenants = db_of(request), tenants_of(request)
    found = await describe(db, parse_id(message_id), tenants)
    row = found["message"]
    traced = await stats.trace(db, tenants, row["trace_id"]) if row["trace_id"] else None
    hops = traced["messages"] if traced else stats.hops([row, *found["children"]])
    return pages.render(
        request, "message.html",
        row=row, hops=charts.gantt(hops, datetime.now(UTC)), events=found["events"],
        elapsed_ms=stats.hops([row])[0]["elapsed_ms"], decision=found["decision"],
        candidates=_candidates(found["decision"]), cost=found["cost"],
        payload=pretty(bytes(row["payload"])), result=pretty((row["result_snippet"] or "").encode()),
    )  # fmt: skip


def _candidates(decision: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decision is None:
        return []
    found: list[dict[str, Any]] = msgspec.json.decode(decision["candidates"])
    return found


def pretty(text: bytes) -> str:
    """JSON with line breaks, cut to what a page should hold; any other text as it is."""
    try:
        shown = msgspec.json.format(text, indent=2).decode()
    except msgspec.DecodeError:
        shown = text.decode("utf-8", "replace")
    return shown if len(shown) <= 20_000 else f"{shown[:20_000]}\n… ({len(shown)} characters)"


PAGES = (
    Router(
        "/",
        route_handlers=[static, login, home, local, messages, message],
        exception_handlers={Exception: on_problem},
    ),
)
