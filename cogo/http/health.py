"""The probes: is the loop alive, are database and listener fresh, what is this process."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from litestar import Request, Response, get

from cogo._version import __version__

from .auth import public

ANY_QUERY = {"any_query": True}  # probes of some balancers add a number against caches


@get("/livez", guards=[public], sync_to_thread=False, opt=ANY_QUERY)
def livez() -> dict[str, str]:
    """The event loop answers. Never asks the database: a restart would not bring it back."""
    return {"status": "ok"}


@get("/readyz", guards=[public], sync_to_thread=False, opt=ANY_QUERY)
def readyz(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    """200 while the database and the listener are fresh and the process is not stopping, else 503."""
    runtime = request.app.state.runtime
    health = runtime.health()
    ready = health.ready and not runtime.stop.is_set()
    body = {
        "status": "ready" if ready else "stopping" if runtime.stop.is_set() else "unready",
        "database": health.database,
        "listener": health.listener,
        "listener_mode": health.listener_mode,
        "loop_lag_ms": round(health.loop_lag_ms, 1),
    }
    return Response(body, status_code=200 if ready else 503, headers={} if ready else {"retry-after": "1"})


@get("/health", guards=[public], sync_to_thread=False, opt=ANY_QUERY)
def health(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """What this process is: its roles, its holder name, its age in seconds and its version."""
    runtime = request.app.state.runtime
    return {
        "status": "ok" if runtime.health().ready else "degraded",
        "roles": sorted(runtime.roles),
        "holder": runtime.holder,
        "uptime_s": round((datetime.now(UTC) - runtime.started_at).total_seconds(), 3),
        "version": __version__,
    }


health_routes = (livez, readyz, health)
