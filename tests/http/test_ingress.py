"""Proves the ingress contract: who may send for whom, what is accepted once, and what a client is told."""

from __future__ import annotations

import time
from typing import Any

import anyio
import httpx
import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from helpers import eventually_async
from http_hands import Served

from cogo.core.settings import local_keys

PATH = "/functions/v1/orchestrator-chat"
SECRET = "x" * 48
BODY = {"tenant": "demo", "intent": "chat", "payload": {"question": "why?"}}

EC, OTHER_EC = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


def jwks() -> str:
    keys = []
    for kid, key, kind in (("e", EC, jwt.algorithms.ECAlgorithm), ("r", RSA, jwt.algorithms.RSAAlgorithm)):
        keys.append(msgspec.json.decode(kind.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"})
    keys.append(
        {"kty": "oct", "kid": "o", "k": "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg", "alg": "HS256"}
    )
    return msgspec.json.encode({"keys": keys}).decode()


def user(key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **changes: Any) -> str:
    claims = {
        "sub": "u-1", "role": "authenticated", "aud": "authenticated", "exp": int(time.time()) + 3600,
        "app_metadata": {"tenants": ["acme"]}, "user_metadata": {"tenants": ["other", "demo"]},
    } | changes  # fmt: skip
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


ANON = user(role="anon", aud=None, app_metadata={})
SERVICE = user(role="service_role", aud=None, app_metadata={})

CONFIG = {
    "ingress_public_tenants": "demo",
    "supabase_publishable_keys": "sb_publishable_t",
    "supabase_secret_keys": '{"default": "sb_secret_t"}',
    "supabase_anon_key": ANON,
    "supabase_service_role_key": "legacy-service-key",
    "supabase_jwt_secret": SECRET,
    "supabase_jwks": jwks(),
}

PUB = "sb_publishable_t"
# What it is, then: apikey, bearer, tenant, and the status and code that come back.
CALLERS: list[tuple[str, str | None, str | None, str, int, str | None]] = [
    ("publishable, public tenant", PUB, None, "demo", 202, None),
    ("publishable, another tenant", PUB, None, "acme", 403, "forbidden"),
    ("secret, any tenant", "sb_secret_t", None, "acme", 202, None),
    ("legacy service key, any tenant", "legacy-service-key", None, "acme", 202, None),
    ("legacy anon key as apikey", ANON, None, "demo", 202, None),
    ("service JWT as apikey", SERVICE, None, "acme", 202, None),
    ("no apikey", None, None, "demo", 401, "unauthorized"),
    ("no apikey, but a user", None, user(), "acme", 401, "unauthorized"),
    ("wrong apikey", "sb_publishable_x", None, "demo", 401, "unauthorized"),
    ("empty apikey", "", None, "demo", 401, "unauthorized"),
    ("a user's JWT as apikey", user(), None, "acme", 401, "unauthorized"),
    ("anon JWT as Bearer, as the specification sends it", PUB, ANON, "demo", 202, None),
    ("anon JWT as Bearer, another tenant", PUB, ANON, "acme", 403, "forbidden"),
    ("service JWT as Bearer", PUB, SERVICE, "acme", 202, None),
    ("user HS256, own tenant", PUB, user(), "acme", 202, None),
    ("user HS256, a public tenant that is not theirs", PUB, user(), "demo", 403, "forbidden"),
    ("user ES256", PUB, user(EC, "ES256", "e"), "acme", 202, None),
    ("user RS256", PUB, user(RSA, "RS256", "r"), "acme", 202, None),
    ("tenants in user_metadata count for nothing", PUB, user(app_metadata={}), "other", 403, "forbidden"),
    ("ES256 of another key", PUB, user(OTHER_EC, "ES256", "e"), "acme", 401, "unauthorized"),
    ("ES256, unknown kid", PUB, user(EC, "ES256", "z"), "acme", 401, "unauthorized"),
    ("ES256 signed, RSA's kid", PUB, user(EC, "ES256", "r"), "acme", 401, "unauthorized"),
    ("HS256 with a secret of the public set", PUB, user(SECRET[:40], "HS256", "o"), "acme", 401, "unauthorized"),
    ("HS512", PUB, user("y" * 64, "HS512"), "acme", 401, "unauthorized"),
    ("alg none", PUB, user(None, "none"), "acme", 401, "unauthorized"),
    ("expired", PUB, user(exp=int(time.time()) - 5), "acme", 401, "unauthorized"),
    ("without an end", PUB, user(exp=None), "acme", 401, "unauthorized"),
    ("another audience", PUB, user(aud="cogo"), "acme", 401, "unauthorized"),
    ("garbage", PUB, "garbage", "demo", 401, "unauthorized"),
    ("an API key as Bearer", PUB, PUB, "demo", 401, "unauthorized"),
    ("a secret key as Bearer", PUB, "sb_secret_t", "acme", 401, "unauthorized"),
    ("secret apikey, bad Bearer", "sb_secret_t", "garbage", "acme", 401, "unauthorized"),
]  # fmt: skip


async def test_who_may_send_for_whom(serve: Any):
    """The apikey decides; a Bearer narrows to its tenants and, when given, must be valid."""
    served: Served = await serve(["ingress"], **CONFIG)
    wrong = []
    async with served.client() as client:
        for what, apikey, bearer, tenant, status, code in CALLERS:
            headers = {} if apikey is None else {"apikey": apikey}
            headers |= {} if bearer is None else {"authorization": f"Bearer {bearer}"}
            answer = await client.post(PATH, json=BODY | {"tenant": tenant}, headers=headers)
            if (answer.status_code, answer.json().get("code")) != (status, code):
                wrong.append((what, answer.status_code, answer.text))
        basic = await client.post(PATH, json=BODY, headers={"apikey": PUB, "authorization": "Basic eDp5"})
        assert basic.status_code == 401
    assert not wrong
    accepted = sum(status == 202 for *_, status, _ in CALLERS)
    assert await served.rows() == accepted


async def test_an_accepted_request_is_a_message_with_the_callers_trace(serve: Any):
    """202 {id}, Location, the row of the contract; a valid traceparent goes on, an invalid one is replaced."""
    served: Served = await serve(["ingress"], **CONFIG)
    trace = "0af7651916cd43dd8448eb211c80319c"
    parents = {
        f"00-{trace}-b7ad6b7169203331-01": trace,
        f"ff-{trace}-b7ad6b7169203331-01": None,
        f"00-{'0' * 32}-b7ad6b7169203331-01": None,
        f"00-{trace.upper()}-b7ad6b7169203331-01": None,
        "garbage": None,
    }
    async with served.client(apikey=PUB) as client:
        for parent, expected in parents.items():
            answer = await client.post(PATH, json=BODY, headers={"traceparent": parent})
            assert answer.status_code == 202
            id = answer.json()["id"]
            assert answer.json() == {"id": id}
            assert answer.headers["location"] == f"/api/messages/{id}"
            row = await served.runtime.bus.message(id)
            key = (row["service"], row["role"], row["shard"], row["tenant"], row["status"])
            assert key == ("orchestrator", "decide", 0, "demo", "queued")
            assert row["payload"] == {"intent": "chat", "payload": {"question": "why?"}}
            assert len(row["trace_id"]) == 32
            assert (row["trace_id"] == trace) == (expected is not None)
            assert "b7ad6b7169203331" not in row["traceparent"], "the span is our own"
    kinds = await served.runtime.db.fetch("SELECT kind, count(*) AS n FROM public.bus_events GROUP BY 1")
    assert kinds == [{"kind": "orchestrate_enqueued", "n": 5}]


async def test_a_key_is_accepted_once(serve: Any):
    """The same key and body, in any order and spelling, is one message; another body is 409."""
    served: Served = await serve(["ingress"], **CONFIG)
    same = [
        b'{"tenant":"demo","intent":"chat","payload":{"a":1,"b":[1,2]}}',
        b'{ "payload": {"b": [1, 2], "a": 1.0}, "intent": "chat",\n "tenant": "demo"}',
        b'{"tenant":"demo","intent":"chat","payload":{"\\u0061":1,"b":[1,2]}}',
    ]
    other = b'{"tenant":"demo","intent":"chat","payload":{"a":1,"b":[2,1]}}'
    headers = {"content-type": "application/json", "idempotency-key": "k-1"}
    async with served.client(apikey=PUB) as client:
        answers = [await client.post(PATH, content=body, headers=headers) for body in same]
        assert {(a.status_code, a.json()["id"]) for a in answers} == {(202, answers[0].json()["id"])}
        conflict = await client.post(PATH, content=other, headers=headers)
        assert (conflict.status_code, conflict.json()["code"]) == (409, "idempotency_conflict")
        for key in ("", "x" * 256, "naïve"):
            raw = {"content-type": "application/json", "idempotency-key": key.encode("latin-1")}
            bad = await client.post(PATH, content=other, headers=raw)
            assert (bad.status_code, bad.json()["code"]) == (422, "invalid"), key
    async with served.client(apikey="sb_secret_t") as client:
        elsewhere = await client.post(PATH, content=other.replace(b"demo", b"acme"), headers=headers)
        assert elsewhere.status_code == 202, "a key belongs to its tenant"
    assert await served.rows() == 2


async def test_fifty_at_once_with_one_key_are_one_message(serve: Any):
    """Parallel repeats agree on one id."""
    served: Served = await serve(["ingress"], **CONFIG)
    ids = []
    async with served.client(apikey=PUB, **{"idempotency-key": "race"}) as client:

        async def post() -> None:
            answer = await client.post(PATH, json=BODY)
            assert answer.status_code == 202, answer.text
            ids.append(answer.json()["id"])

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(post)
    assert len(ids) == 50
    assert len(set(ids)) == 1
    assert await served.rows() == 1


async def test_too_many_requests_are_429_with_the_time_to_wait(serve: Any):
    """A burst of twice the rate passes, then 429; another tenant's bucket is its own."""
    served: Served = await serve(["ingress"], **CONFIG, ingress_rate_per_s=0.5)
    async with served.client(apikey="sb_secret_t") as client:
        codes = [(await client.post(PATH, json=BODY)).status_code for _ in range(3)]
        assert codes == [202, 429, 429]
        refused = await client.post(PATH, json=BODY)
        assert refused.json()["code"] == "rate_limited"
        assert refused.headers["retry-after"] in ("1", "2")
        assert refused.headers["access-control-allow-origin"] == "*"
        assert (await client.post(PATH, json=BODY | {"tenant": "acme"})).status_code == 202
    assert await served.rows() == 2


async def test_a_lane_that_is_too_deep_pushes_back(serve: Any):
    """Over the depth: 429; once it has drained, 202 again."""
    served: Served = await serve(["ingress"], **CONFIG, ingress_depth_max=3)
    await served.runtime.bus.enqueue_many("orchestrator/decide/0@demo", [{"intent": "x"}] * 4)
    async with served.client(apikey=PUB) as client:
        refused = await client.post(PATH, json=BODY)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert refused.headers["retry-after"] == "5"
        await served.runtime.db.execute("UPDATE public.agent_messages SET status = 'cancelled'")

        async def accepted() -> bool:
            return (await client.post(PATH, json=BODY)).status_code == 202

        assert await eventually_async(accepted, 5)


async def test_browsers_of_any_origin_may_ask(serve: Any):
    """The preflight names method and headers; every answer, also a refusal, is readable."""
    served: Served = await serve(["ingress"], **CONFIG)
    async with served.client(origin="https://example.org") as client:
        preflight = await client.options(PATH, headers={"access-control-request-method": "POST"})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "*"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert {"apikey", "authorization", "idempotency-key"} <= set(
            preflight.headers["access-control-allow-headers"].split(", ")
        )
        for answer in (
            await client.post(PATH, json=BODY, headers={"apikey": PUB}),
            await client.post(PATH, json=BODY),
        ):
            assert answer.headers["access-control-allow-origin"] == "*"
        region = await client.post(f"{PATH}?forceFunctionRegion=x", json=BODY, headers={"apikey": PUB})
        assert region.status_code == 202, "what Supabase's clients add is ignored"
        wrong = await client.get(PATH)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "OPTIONS, POST")
        elsewhere = await client.get("/api/messages")
        assert "access-control-allow-origin" not in elsewhere.headers


async def test_embedded_keys_reach_the_demo_tenant(serve: Any):
    """With nothing configured the data home's publishable key sends for the public tenant alone."""
    served: Served = await serve(["ingress"], ingress_public_tenants="demo")
    keys = local_keys(served.tokens)
    async with served.client(apikey=keys.publishable_key) as client:
        assert (await client.post(PATH, json=BODY)).status_code == 202
        assert (await client.post(PATH, json=BODY | {"tenant": "acme"})).status_code == 403
    async with served.client(apikey=keys.secret_key.reveal()) as client:
        assert (await client.post(PATH, json=BODY | {"tenant": "acme"})).status_code == 202


async def test_our_own_tokens_send_for_their_tenants(serve: Any):
    """`cogo token --role operator` as Bearer; a viewer's reads only."""
    served: Served = await serve(["ingress"], **CONFIG)

    async def post(client: httpx.AsyncClient, tenant: str) -> int:
        async with client:
            return (
                await client.post(PATH, json=BODY | {"tenant": tenant}, headers={"apikey": PUB})
            ).status_code

    assert await post(served.as_("operator", "acme"), "acme") == 202
    assert await post(served.as_("operator", "acme"), "demo") == 403
    assert await post(served.as_("viewer", "acme"), "acme") == 403
    assert await post(served.as_("admin"), "anything") == 202


@pytest.mark.parametrize("key", ["__assignment", "\\u005f_assignment"])
async def test_nobody_sets_the_assignment_from_outside(serve: Any, key: str):
    """Not even a secret key, however it is spelt."""
    served: Served = await serve(["ingress"], **CONFIG)
    body = b'{"tenant":"demo","intent":"chat","payload":{"%s":{"model":"dear"}}}' % key.encode()
    async with served.client(apikey="sb_secret_t", **{"content-type": "application/json"}) as client:
        answer = await client.post(PATH, content=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "assignment_forbidden")
    assert await served.rows() == 0
