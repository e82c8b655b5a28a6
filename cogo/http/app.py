"""The Litestar app of a process: its own routes and those that its enabled roles bring.

What holds for every answer, found route or not, is done at the edge (`App.__call__`): no NUL in path
or query, security headers, HEAD for probes. What holds for every route is checked when the app is
built: `check_guards` refuses an app with a route that nobody guards.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, cast

from litestar import Litestar
from litestar.datastructures import State
from litestar.enums import HttpMethod, ScopeType
from litestar.routes import HTTPRoute

from cogo.core.errors import BadRequest, PluginFailed

from . import problems
from .auth import is_guard, public
from .body import MAX_BYTES
from .guarded import PROBES
from .request import CogoRequest, refuse_unknown_query
from .schema import openapi_config
from .tokens import KeyRing

if TYPE_CHECKING:
    from litestar.types import HTTPScope, Message, Receive, Scope, Send

    from cogo.core.runtime import Runtime

OPEN_PATHS = (*sorted(PROBES), "/dashboard/login", "/dashboard/static/", "/schema")
"""Where the guard `public` may stand: probes, documentation, and what shows a login page."""

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""Set on every answer that does not set them itself."""


class App(Litestar):
    """Litestar behind an edge of our own, so that answers without a route get the same care."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        """One ASGI connection."""
        if scope["type"] != ScopeType.HTTP:
            await super().__call__(scope, receive, send)
            return
        http = scope
        send = _with_headers(send)
        if "\0" in http["path"] or b"%00" in http["query_string"]:
            await _refuse(send, BadRequest("the address holds U+0000 (NUL)"))
            return
        if http["method"] == HttpMethod.HEAD and http["path"] in PROBES:
            # The server leaves the body out: it goes by a scope of its own.
            http = cast("HTTPScope", {**http, "method": HttpMethod.GET})
        await super().__call__(http, receive, send)


async def _refuse(send: Send, error: BadRequest) -> None:
    headers, body = problems.raw_response(error)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


_date: tuple[int, bytes] = (0, b"")


def _http_date() -> bytes:
    """The Date header, formatted once a second."""
    global _date  # noqa: PLW0603 (a cache of one value for the process)
    now = int(time.time())
    if now != _date[0]:
        _date = now, formatdate(now, usegmt=True).encode()
    return _date[1]


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            present = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in SECURITY_HEADERS if name not in present]
            headers.append((b"date", _http_date()))
            message["headers"] = headers
        await send(message)

    return wrapped


def build_app(runtime: Runtime, routes: Sequence[Any] = ()) -> App:
    """The app of this process: probes always; with `routes` of roles also messages.

    Raises PluginFailed for a route without a guard.
    """
    from .health import health_routes

    handlers: list[Any] = [*health_routes, problems.explain]
    if routes:
        from .lanes import lane_routes
        from .messages import message_routes

        handlers += [*message_routes, *lane_routes, *routes]
    state = {"runtime": runtime, "key_ring": KeyRing.of(runtime.settings)} if routes else {"runtime": runtime}
    app = App(
        route_handlers=handlers,
        state=State(state),
        request_class=CogoRequest,
        request_max_body_size=MAX_BYTES,
        before_request=refuse_unknown_query,
        exception_handlers={Exception: problems.on_exception},
        openapi_config=openapi_config(),
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )
    check_guards(app)
    return app


def check_guards(app: Litestar) -> None:
    """Refuse an app in which a route has no guard of `cogo.web`, or `public` where data may be.

    Exempt are /schema and the OPTIONS answers that Litestar adds by itself. Raises PluginFailed.
    """
    bare = [f"{'|'.join(sorted(methods))} {path}" for path, methods in _unguarded(app)]
    if bare:
        raise PluginFailed(
            f"without a guard: {', '.join(bare)}", hint="Add guards=[viewer], operator or admin of cogo.web."
        )


def _unguarded(app: Litestar) -> Iterable[tuple[str, set[str]]]:
    for route in app.routes:
        handlers = route.route_handlers if isinstance(route, HTTPRoute) else [route.route_handler]
        for handler in handlers:
            methods = {str(method) for method in getattr(handler, "http_methods", ("WEBSOCKET",))}
            ours = [check for check in handler.resolve_guards() if is_guard(check)]
            is_open = any(route.path.startswith(path) for path in OPEN_PATHS)
            added_options = methods == {"OPTIONS"} and handler.fn.__module__.startswith("litestar.")
            documentation = route.path.startswith("/schema")
            closed = bool(ours) and (public not in ours or is_open)
            if not (closed or added_options or documentation):
                yield route.path, methods
