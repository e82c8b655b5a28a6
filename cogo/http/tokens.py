"""Tokens and keys of this installation: whom a credential stands for, without any web framework.

A principal comes from our own HS256 JWT (`iss` and `aud` cogo, claims under `app_metadata`) or from a
secret key, which is admin. `cogo token`, the demo and the guards use the same functions.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Iterable
from typing import Any, Literal, get_args

import jwt
import msgspec

from cogo.core.errors import CogoError, InvalidSetting, Unauthorized
from cogo.core.model import TENANT_PATTERN
from cogo.core.settings import Secret, Settings, local_keys

AccessRole = Literal["viewer", "operator", "admin"]
ROLES: tuple[AccessRole, ...] = get_args(AccessRole)
ISSUER = AUDIENCE = "cogo"
TOKEN_MAX = 8_192
"""Characters; a longer token is refused before anything is computed from it."""
SECRET_MIN = 32
"""Bytes of an HS256 secret: a shorter one can be guessed offline from one token (RFC 7518, 3.2)."""
TTL_S = 12 * 3600


class Principal(msgspec.Struct, frozen=True):
    """Who asks: a name for the audit, a role, and the tenants (None: all of them)."""

    subject: str
    role: AccessRole
    tenants: frozenset[str] | None

    def at_least(self, role: AccessRole) -> bool:
        """True if this principal's role includes `role`."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def may_read(self, tenant: str) -> bool:
        """True if rows of this tenant may be shown."""
        return self.tenants is None or tenant in self.tenants

    def tenant_list(self) -> list[str] | None:
        """For SQL: `(%s::text[] IS NULL OR tenant = ANY (%s))`; None is every tenant."""
        return None if self.tenants is None else sorted(self.tenants)

    def narrowed(self, tenant: str | None) -> list[str] | None:
        """`tenant_list` for a filter by one tenant: one that may not be read is like an unknown one."""
        if tenant is None:
            return self.tenant_list()
        return [tenant] if self.may_read(tenant) else []


# -- keys -------------------------------------------------------------------------------------


class KeyRing:
    """The keys that this process accepts, read once from settings and the data home."""

    def __init__(
        self, *, signing: str, publishable: Iterable[str] = (), secret: Iterable[str] = (),
        supabase_jwt_secret: str | None = None, supabase_jwks: str | None = None,
    ) -> None:  # fmt: skip
        for name, value in (("COGO_JWT_SECRET", signing), ("SUPABASE_JWT_SECRET", supabase_jwt_secret)):
            if value is not None and len(value.encode()) < SECRET_MIN:
                raise InvalidSetting(f"{name} is shorter than {SECRET_MIN} bytes")
        self.signing = signing
        self._publishable = [digest(key) for key in publishable]
        self._secret = [digest(key) for key in secret]
        self.supabase_jwt_secret = supabase_jwt_secret
        self.supabase_jwks = supabase_jwks

    @classmethod
    def of(cls, settings: Settings) -> KeyRing:
        """The configured keys, and those of the data home, which the commands on this machine use.

        Raises what `local_keys` raises, unless COGO_JWT_SECRET makes a data home unnecessary.
        """
        publishable = _texts([*settings.supabase_publishable_keys, settings.supabase_anon_key])
        secret = _texts([*settings.supabase_secret_keys, settings.supabase_service_role_key])
        signing = settings.jwt_secret.reveal() if settings.jwt_secret else None
        try:
            local = local_keys(settings)
        except (CogoError, OSError):
            if signing is None:
                raise
        else:
            signing = signing or local.jwt_secret.reveal()
            publishable.append(local.publishable_key)
            secret.append(local.secret_key.reveal())
        own = settings.supabase_jwt_secret
        return cls(
            signing=signing,
            publishable=publishable,
            secret=secret,
            supabase_jwt_secret=own.reveal() if own else None,
            supabase_jwks=settings.supabase_jwks,
        )

    def kind(self, key: str) -> Literal["publishable", "secret"] | None:
        """What an API key is. Every key is compared, by digest, so that time tells nothing."""
        given = digest(key)
        secret = [hmac.compare_digest(given, known) for known in self._secret]
        publishable = [hmac.compare_digest(given, known) for known in self._publishable]
        return "secret" if any(secret) else "publishable" if any(publishable) else None

    def own(self, token: str) -> Principal | None:
        """The principal of a token that says it is ours (`iss` cogo); None for a token of others.

        Raises Unauthorized when it says so and is not valid.
        """
        try:
            claims = jwt.decode(token[:TOKEN_MAX], options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        return verify(self.signing, token) if claims.get("iss") == ISSUER else None


def digest(key: str) -> bytes:
    """SHA-256 of a key: what is compared and, by its head, what names the key in the audit."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _texts(secrets: Iterable[Secret | None]) -> list[str]:
    return [secret.reveal() for secret in secrets if secret]


# -- tokens -----------------------------------------------------------------------------------


def mint_token(
    settings: Settings,
    tenants: Iterable[str],
    role: AccessRole,
    ttl_s: float = TTL_S,
    *,
    subject: str = "cli",
) -> str:
    """A token for these tenants and this role, valid for `ttl_s` seconds; admin is for all tenants."""
    return sign(KeyRing.of(settings).signing, tenants, role, ttl_s, subject=subject)


def sign(secret: str, tenants: Iterable[str], role: AccessRole, ttl_s: float, *, subject: str) -> str:
    """The JWT itself: iss and aud `cogo`, claims under app_metadata, HS256."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + int(ttl_s)}
    claims["app_metadata"] = {"tenants": sorted(tenants), "cogo_role": role}
    return jwt.encode(claims, secret, algorithm="HS256")


def verify(secret: str, token: str) -> Principal:
    """The principal of one of our tokens. Raises Unauthorized, never saying which check failed."""
    if len(token) > TOKEN_MAX:
        raise Unauthorized("the token is too long")
    try:
        claims = jwt.decode(
            token, secret, algorithms=["HS256"], audience=AUDIENCE, issuer=ISSUER,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )  # fmt: skip
    except jwt.ExpiredSignatureError:
        raise Unauthorized("the token has expired") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise Unauthorized("the token is not valid here") from None
    return _principal_of(claims)


def _principal_of(claims: dict[str, Any]) -> Principal:
    meta = claims.get("app_metadata")
    role = meta.get("cogo_role") if isinstance(meta, dict) else None
    if role not in ROLES:
        raise Unauthorized("the token names no role of COGO (app_metadata.cogo_role)")
    tenants = None if role == "admin" else claimed_tenants(claims)
    return Principal(subject=str(claims["sub"])[:200], role=role, tenants=tenants)


def claimed_tenants(claims: dict[str, Any]) -> frozenset[str]:
    """`app_metadata.tenants` as far as they are names of tenants; never user_metadata, which users write."""
    meta = claims.get("app_metadata")
    names = meta.get("tenants") if isinstance(meta, dict) else None
    if not isinstance(names, list):
        return frozenset()
    return frozenset(n for n in names if isinstance(n, str) and re.fullmatch(TENANT_PATTERN, n))


def csrf_token(ring: KeyRing, session: str) -> str:
    """What a page must send back in `X-CSRF-Token` to act with its cookie; bound to that cookie."""
    return hmac.new(ring.signing.encode(), b"csrf:" + session.encode(), hashlib.sha256).hexdigest()
