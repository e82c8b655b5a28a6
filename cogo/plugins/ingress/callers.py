"""Who may send to the ingress: Supabase's API keys decide, a user's JWT names the tenants.

Keys of today (`sb_publishable_…`, `sb_secret_…`) are no JWTs and belong into `apikey` alone; the
legacy anon and service_role keys are JWTs and may also come as Bearer, as the specification sends them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import jwt
import msgspec

from cogo import errors
from cogo.web import KeyRing, Principal, bearer_of, claimed_tenants, guard, ring_of, runtime_of

if TYPE_CHECKING:
    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler

TOKEN_MAX = 8_192
CURVES: dict[str, str] = {"EC": "ES256", "RSA": "RS256"}
"""The one algorithm for each type of key: never the one that the token asks for."""

Kind = Literal["publishable", "secret"]


class User(msgspec.Struct, frozen=True):
    """What a Bearer proves. `service`: the legacy service_role key; else `tenants` of the user."""

    subject: str
    service: bool
    tenants: frozenset[str]


@guard
async def api_key(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """Guard: a valid `apikey`, and a valid Bearer if there is one. Its tenants are where it may send."""
    ring = ring_of(connection)
    key = connection.headers.get("apikey")
    if not key:
        raise errors.Unauthorized(
            "the header apikey is missing", hint="Send your publishable key as `apikey`."
        )
    kind = ring.kind(key) or _legacy_kind(ring, key)
    if kind is None:
        raise errors.Unauthorized("the apikey is not valid", hint="Send your publishable key as `apikey`.")
    bearer = bearer_of(connection)
    user = None if bearer is None else user_of(ring, bearer)
    public = runtime_of(connection).settings.public_tenants
    connection.scope["user"] = caller(kind, user, public)


@guard
async def preflight(_connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """Guard of the CORS preflight, which browsers send without credentials; it answers headers only."""


def caller(kind: Kind, user: User | None, public: frozenset[str]) -> Principal:
    """The principal of a key and a user: a service's may send for every tenant."""
    if kind == "secret" or (user is not None and user.service):
        return Principal(subject="service", role="admin", tenants=None)
    if user is None:
        return Principal(subject="anon", role="operator", tenants=public)
    return Principal(subject=user.subject, role="operator", tenants=user.tenants)


def _legacy_kind(ring: KeyRing, key: str) -> Kind | None:
    """A legacy key that is not configured by its text is still known by its signature."""
    try:
        role = _claims(ring, key).get("role")
    except errors.Unauthorized:
        return None
    return {"anon": "publishable", "service_role": "secret"}.get(str(role))  # type: ignore[return-value]


def user_of(ring: KeyRing, bearer: str) -> User | None:
    """The user of a Bearer; None for the legacy anon key, which names nobody. Raises Unauthorized."""
    if bearer.startswith("sb_"):
        raise errors.Unauthorized(
            "API keys of the form sb_… are not tokens", hint="Send them as `apikey`, without Authorization."
        )
    kind = ring.kind(bearer)
    if kind is not None:
        return User("service", service=True, tenants=frozenset()) if kind == "secret" else None
    own = ring.own(bearer)
    if own is not None:
        if not own.at_least("operator"):
            raise errors.Forbidden("a viewer's token reads; sending needs the role operator")
        return User(own.subject, service=own.tenants is None, tenants=own.tenants or frozenset())
    claims = _claims(ring, bearer)
    match claims.get("role"):
        case "anon":
            return None
        case "service_role":
            return User("service", service=True, tenants=frozenset())
        case "authenticated" if claims.get("aud") == "authenticated":
            return User(str(claims.get("sub", ""))[:200], service=False, tenants=claimed_tenants(claims))
    raise errors.Unauthorized("the token is not of a user of this project")


def _claims(ring: KeyRing, token: str) -> dict[str, Any]:
    """The verified claims of a JWT of the Supabase project. Raises Unauthorized."""
    if len(token) > TOKEN_MAX:
        raise errors.Unauthorized("the token is too long")
    try:
        header = jwt.get_unverified_header(token)
        key, algorithm = _verifier(ring, header)
        return jwt.decode(
            token, key, algorithms=[algorithm], options={"require": ["exp"], "verify_aud": False}
        )
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, RecursionError):
        raise errors.Unauthorized("the token is not valid here, or has expired") from None


def _verifier(ring: KeyRing, header: dict[str, Any]) -> tuple[Any, str]:
    """The key and the algorithm that goes with it; a public key is never taken for an HS256 secret."""
    if header.get("alg") == "HS256":
        if ring.supabase_jwt_secret is None:
            raise jwt.InvalidKeyError("no shared secret is configured")
        return ring.supabase_jwt_secret, "HS256"
    if ring.supabase_jwks is None:
        raise jwt.InvalidKeyError("no public keys are configured")
    for key in jwt.PyJWKSet.from_json(ring.supabase_jwks).keys:
        if key.key_id == header.get("kid") and key.key_type in CURVES:
            return key.key, CURVES[key.key_type]
    raise jwt.InvalidKeyError("no public key of that kid")
