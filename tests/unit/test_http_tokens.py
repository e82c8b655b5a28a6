"""Proves that only a token or key of this installation opens a door, and only as far as it says."""

from __future__ import annotations

import base64
import time
from typing import Any

import jwt
import msgspec
import pytest

from cogo.core.errors import InvalidSetting, Unauthorized
from cogo.core.settings import Secret, Settings, local_keys
from cogo.http.tokens import KeyRing, claimed_tenants, csrf_token, mint_token, sign, verify

SECRET = "s" * 64
OTHER = "o" * 64


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    meta = {"tenants": ["acme"], "cogo_role": "operator"}
    usual = {"iss": "cogo", "aud": "cogo", "sub": "me", "iat": now, "exp": now + 60, "app_metadata": meta}
    return {name: value for name, value in (usual | changes).items() if value is not None}


def token(secret: str = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes), secret, algorithm=algorithm)


def unsigned(**changes: Any) -> str:
    parts = [{"alg": "none", "typ": "JWT"}, claims(**changes)]
    return (
        ".".join(base64.urlsafe_b64encode(msgspec.json.encode(p)).decode().rstrip("=") for p in parts) + "."
    )


def test_a_good_token_names_its_principal():
    """Role, tenants and subject come from the claims."""
    principal = verify(SECRET, token())
    assert (principal.subject, principal.role, principal.tenants) == ("me", "operator", frozenset({"acme"}))
    assert principal.at_least("viewer")
    assert not principal.at_least("admin")
    assert principal.may_read("acme")
    assert not principal.may_read("other")


def test_an_admin_is_for_all_tenants():
    """Whatever tenants the token names."""
    principal = verify(SECRET, sign(SECRET, ["acme"], "admin", 60, subject="root"))
    assert principal.tenants is None
    assert principal.narrowed(None) is None
    assert principal.narrowed("x") == ["x"]


BAD = {
    "signed by another secret": token(OTHER),
    "another algorithm of the family": token(algorithm="HS512"),
    "unsigned": unsigned(),
    "unsigned, spelt otherwise": unsigned().replace(unsigned().split(".")[0], "eyJhbGciOiJOb05lIn0"),
    "expired": token(exp=int(time.time()) - 1),
    "not yet valid": token(nbf=int(time.time()) + 60),
    "without an end": token(exp=None),
    "another issuer": token(iss="https://x.supabase.co/auth/v1"),
    "another audience": token(aud="authenticated"),
    "without a subject": token(sub=None),
    "a role that does not exist": token(app_metadata={"tenants": ["acme"], "cogo_role": "root"}),
    "a role in user_metadata": token(app_metadata=None, user_metadata={"cogo_role": "admin"}),
    "a list for app_metadata": token(app_metadata=["admin"]),
    "huge": token(x="y" * 10_000),
    "empty": "",
    "two parts": "a.b",
    "not base64": "!.!.!",
    "a NUL": "a\0.b.c",
    "a surrogate": "\ud800.b.c",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_bad_token_is_refused(text: str):
    """Every one of them is 401; the text says no more than expired or not valid."""
    with pytest.raises(Unauthorized):
        verify(SECRET, text)


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"tenants": ["a", "b"]}, {"a", "b"}),
        ({"tenants": ["a", 1, None, "no spaces", "x" * 64, "a\n", "*"]}, {"a"}),
        ({"tenants": "a"}, set()),
        ({}, set()),
        (None, set()),
    ],
)
def test_only_names_of_tenants_count(meta: Any, expected: set[str]):
    """What cannot be a tenant is no tenant; there is no wildcard."""
    assert claimed_tenants({"app_metadata": meta, "user_metadata": {"tenants": ["evil"]}}) == expected


def test_minted_tokens_are_accepted_by_the_same_home(tmp_path: Any):
    """`cogo token` and the server find the same secret in the data home."""
    settings = Settings(data_dir=tmp_path / "home")
    ring = KeyRing.of(settings)
    assert verify(ring.signing, mint_token(settings, ["a"], "viewer", 60)).tenants == frozenset({"a"})
    assert ring.own(mint_token(settings, ["a"], "viewer", 60)) is not None
    assert ring.own(token(OTHER, iss="somebody")) is None
    with pytest.raises(Unauthorized):
        ring.own(token(OTHER))


def test_keys_are_known_by_kind(tmp_path: Any):
    """Configured and local keys, today's and legacy; anything else is nothing."""
    settings = Settings(
        data_dir=tmp_path / "home",
        database_url=Secret("postgresql://x"),
        supabase_secret_keys=(Secret("sb_secret_1"), Secret("sb_secret_2")),
        supabase_service_role_key=Secret("legacy-service"),
        supabase_publishable_keys=(Secret("sb_publishable_1"),),
        supabase_anon_key=Secret("legacy-anon"),
    )
    ring, local = KeyRing.of(settings), local_keys(settings)
    for key in ("sb_secret_1", "sb_secret_2", "legacy-service", local.secret_key.reveal()):
        assert ring.kind(key) == "secret"
    for key in ("sb_publishable_1", "legacy-anon", local.publishable_key):
        assert ring.kind(key) == "publishable"
    for key in ("", "sb_secret_", "sb_secret_11", "SB_SECRET_1", "\ud800", "***"):
        assert ring.kind(key) is None


def test_a_configured_secret_needs_no_data_home(tmp_path: Any):
    """A container with a read-only root runs with COGO_JWT_SECRET alone; without it the error is clear."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    settings = Settings(
        data_dir=blocked / "home", database_url=Secret("postgresql://x"), jwt_secret=Secret(SECRET)
    )
    assert KeyRing.of(settings).signing == SECRET
    with pytest.raises(InvalidSetting):
        KeyRing.of(Settings(data_dir=blocked / "home", database_url=Secret("postgresql://x")))


def test_short_secrets_are_refused_at_boot(tmp_path: Any):
    """A secret that can be guessed from one token does not start the process."""
    for name in ("jwt_secret", "supabase_jwt_secret"):
        with pytest.raises(InvalidSetting, match=f"(?i){name}"):
            KeyRing.of(Settings(data_dir=tmp_path / "home", **{name: Secret("short")}))


def test_a_csrf_token_belongs_to_one_session():
    """Another session or another installation has another one."""
    ring, other = KeyRing(signing=SECRET), KeyRing(signing=OTHER)
    assert csrf_token(ring, "a") == csrf_token(ring, "a")
    assert len({csrf_token(ring, "a"), csrf_token(ring, "b"), csrf_token(other, "a")}) == 3
