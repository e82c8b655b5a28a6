"""Who may: the guards that routes declare, and how a request proves who it is.

A proof is a Bearer token, a secret key (as `apikey` or Bearer: admin) or the dashboard's cookie (for
GET, or with its CSRF token). Another tenant's id answers like an unknown one, so routes filter by
`Principal.tenants`.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from cogo.core.errors import Forbidden, Unauthorized

from .tokens import TTL_S, AccessRole, KeyRing, Principal, csrf_token, digest, verify

if TYPE_CHECKING:
    from litestar.connection import ASGIConnection
    from litestar.datastructures import Cookie
    from litestar.handlers import BaseRouteHandler

Connection: TypeAlias = "ASGIConnection[Any, Any, Any, Any]"
Guard: TypeAlias = "Callable[[Connection, BaseRouteHandler], Awaitable[None]]"

COOKIE = "cogo_session"
CSRF_HEADER = "x-csrf-token"


# -- the principal of a request ---------------------------------------------------------------


def bearer_of(connection: Connection) -> str | None:
    """The credentials of `Authorization: Bearer`; None without the header. Raises Unauthorized."""
    header = connection.headers.get("authorization")
    if header is None:
        return None
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "bearer" or not value.strip():
        raise Unauthorized("Authorization is not `Bearer <token>`")
    return value.strip()


def ring_of(connection: Connection) -> KeyRing:
    """The key ring of the running app."""
    ring: KeyRing = connection.app.state.key_ring
    return ring


def authenticate(connection: Connection) -> Principal:
    """Find the principal, strongest proof first; a proof that is given and wrong is never skipped.

    Raises Unauthorized.
    """
    ring = ring_of(connection)
    bearer = bearer_of(connection)
    apikey = connection.headers.get("apikey")
    if bearer is not None:
        return _service(bearer) if ring.kind(bearer) == "secret" else verify(ring.signing, bearer)
    if apikey is not None:
        if ring.kind(apikey) != "secret":
            raise Unauthorized("this apikey does not open this route; send a token or a secret key")
        return _service(apikey)
    if session := connection.cookies.get(COOKIE):
        return _from_cookie(connection, ring, session)
    raise Unauthorized


def _service(key: str) -> Principal:
    # The digest's head names the key in the audit without giving it away.
    return Principal(subject=f"key:{digest(key).hex()[:8]}", role="admin", tenants=None)


def _from_cookie(connection: Connection, ring: KeyRing, session: str) -> Principal:
    principal = verify(ring.signing, session)
    if connection.scope.get("method") not in ("GET", "HEAD"):
        given = connection.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(given.encode(), csrf_token(ring, session).encode()):
            raise Forbidden("an action with the dashboard's cookie needs its X-CSRF-Token")
    return principal


# -- guards -----------------------------------------------------------------------------------


def guard(function: Guard) -> Guard:
    """Mark a guard of one's own as one: `check_guards` accepts only marked guards."""
    function.__cogo_guard__ = True  # type: ignore[attr-defined]
    return function


def is_guard(function: object) -> bool:
    """True for what `guard` marked."""
    return getattr(function, "__cogo_guard__", False) is True


def _require(role: AccessRole) -> Guard:
    async def check(connection: Connection, _handler: BaseRouteHandler) -> None:
        principal = authenticate(connection)
        if not principal.at_least(role):
            raise Forbidden(f"this needs the role {role}; the token is of a {principal.role}")
        connection.scope["user"] = principal

    check.__name__ = check.__qualname__ = role
    check.__doc__ = f"Guard: a principal of the role {role} or above."
    return guard(check)


viewer: Guard = _require("viewer")
operator: Guard = _require("operator")
admin: Guard = _require("admin")


@guard
async def public(_connection: Connection, _handler: BaseRouteHandler) -> None:
    """Guard of the few routes that show no data; `check_guards` holds the list of their paths."""


def principal_of(connection: Connection) -> Principal:
    """The principal that the route's guard found."""
    principal: Principal = connection.scope["user"]
    return principal


def known_principal(connection: Connection) -> Principal | None:
    """The principal, or None on a route that is open to everyone."""
    principal: Principal | None = connection.scope.get("user")
    return principal


def csrf_of(connection: Connection) -> str:
    """What this browser's pages must send as `X-CSRF-Token`; empty without a session."""
    session = connection.cookies.get(COOKIE)
    return csrf_token(ring_of(connection), session) if session else ""


def session_cookie(connection: Connection, token: str) -> Cookie:
    """The cookie that stands for this token in a browser: no script and no other site sees it.

    Raises Unauthorized for a token that is not valid here.
    """
    from litestar.datastructures import Cookie

    verify(ring_of(connection).signing, token)
    return Cookie(
        key=COOKIE,
        value=token,
        path="/",
        httponly=True,
        samesite="strict",
        secure=connection.scope["scheme"] == "https",
        max_age=TTL_S,  # the token's own end counts; this only tidies the browser
    )
