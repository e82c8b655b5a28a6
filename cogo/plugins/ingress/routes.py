"""The ingress route: validate, one insert, 202 with the id that will be answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post, route
from litestar.datastructures import State  # noqa: TC002 (Litestar reads it at run time)
from litestar.di import NamedDependency, Provide
from litestar.params import JSONBody

from cogo import RoutingKey, errors
from cogo.web import (
    Tenant,
    bounded,
    bus_of,
    on_exception,
    principal_of,
    traceparent_of,
)

from .callers import api_key, preflight
from .limits import Buckets, Depth

PATH = "/functions/v1/orchestrator-chat"
CORS = {"access-control-allow-origin": "*", "access-control-expose-headers": "Location, Retry-After"}
PREFLIGHT = {
    **CORS,
    "access-control-allow-methods": "POST, OPTIONS",
    "access-control-allow-headers": "authorization, x-client-info, apikey, content-type, idempotency-key, "
    "traceparent",
    "access-control-max-age": "86400",
    "allow": "OPTIONS, POST",
}
KEY_MAX = 255

Intent = Annotated[
    str,
    msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$(?!\n)", description="what the payload asks for"),
]


class Ask(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends; `payload` is the task of the role that answers `intent`."""

    tenant: Tenant
    intent: Intent
    payload: dict[str, Any]


class Accepted(msgspec.Struct):
    """The id of the message that will hold the answer."""

    id: int


class Gate:
    """What slows senders down; one for the app."""

    def __init__(self, rate: float, depth: int) -> None:
        self.buckets = Buckets(rate)
        self.depth = Depth(depth)


def gate_of(state: State) -> Gate:
    """The gate with the limits of the settings."""
    settings = state.runtime.settings
    return Gate(settings.ingress_rate_per_s, settings.ingress_depth_max)


def on_refusal(request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """The usual problem, readable by a page of another origin."""
    response = on_exception(request, exc)
    response.headers.update(CORS)
    return response


def idempotency_key(request: Request[Any, Any, Any]) -> str | None:
    """The Idempotency-Key: 1 to 255 visible ASCII characters. Raises Invalid."""
    key = request.headers.get("idempotency-key")
    if key is not None and not (1 <= len(key) <= KEY_MAX and key.isascii() and key.isprintable()):
        raise errors.Invalid(f"Idempotency-Key is not 1 to {KEY_MAX} visible ASCII characters")
    return key


# Supabase's clients may add `?forceFunctionRegion=`, which an Edge Function ignores.
@post(
    PATH,
    guards=[api_key],
    exception_handlers={Exception: on_refusal},
    status_code=202,
    opt={"any_query": True},
)
async def orchestrate(
    request: Request[Any, Any, Any], data: JSONBody[Ask], gate: NamedDependency[Gate]
) -> Response[Accepted]:
    """Accept work for the orchestrator: 202 with the id whose result will be the answer.

    Headers: `apikey` (needed), `Authorization: Bearer` (a user's JWT, optional), `Idempotency-Key`
    (the same key and body give the same id, another body 409) and `traceparent`.
    """
    principal = principal_of(request)
    if not principal.may_read(data.tenant):
        raise errors.Forbidden(f"this key or token may not send for the tenant {data.tenant!r}")
    if "__assignment" in data.payload:
        raise errors.AssignmentForbidden
    key = idempotency_key(request)
    gate.buckets.take((request.headers["apikey"], data.tenant))
    to = RoutingKey("orchestrator", "decide", 0, data.tenant)
    row = {"intent": data.intent, "payload": data.payload}
    with bounded():
        await gate.depth.check(bus_of(request))
        found = await bus_of(request).enqueue(
            to, row, idempotency_key=key, traceparent=traceparent_of(request)
        )
    return Response(Accepted(found), status_code=202, headers={**CORS, "location": f"/api/messages/{found}"})


@route(
    PATH,
    http_method=["OPTIONS"],
    guards=[preflight],
    status_code=204,
    include_in_schema=False,
    sync_to_thread=False,
)
def allow() -> Response[None]:
    """The CORS preflight: any origin may send, since it is the key that counts."""
    return Response(None, status_code=204, headers=PREFLIGHT)


def ingress_routes() -> Sequence[Any]:
    """The handlers, with one gate for all of their requests."""
    from litestar import Router

    gate = Provide(gate_of, use_cache=True, sync_to_thread=False)
    # The preflight first: once a path has a handler, Litestar adds an OPTIONS of its own.
    return [Router("/", route_handlers=[allow, orchestrate], dependencies={"gate": gate})]
