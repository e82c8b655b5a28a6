"""HTTP as a service of the runtime: the app of the enabled roles, on a port if any brings routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from cogo.core.runtime import Runtime


class HttpService:
    """Callable that the runtime starts; `always` opens the port even when no role brings routes."""

    def __init__(self, *, always: bool = False) -> None:
        self._always = always

    async def __call__(self, runtime: Runtime, tasks: TaskGroup) -> Mapping[str, Any]:
        """Serve in the runtime's task group; {host, port, url} once it listens. Raises PortInUse."""
        from .app import build_app
        from .server import Bound, serve_http

        routes = runtime.registry.routes()
        app = build_app(runtime, routes)
        settings = runtime.settings
        port = settings.port if routes or self._always else None

        async def serve(*, task_status: Any) -> None:
            await serve_http(runtime, app, host=settings.host, port=port, task_status=task_status)

        bound: Bound = await tasks.start(serve)
        if bound.port is None:
            return {"host": None, "port": None, "url": None}
        host = f"[{bound.host}]" if ":" in bound.host else bound.host
        return {"host": bound.host, "port": bound.port, "url": f"http://{host}:{bound.port}"}
