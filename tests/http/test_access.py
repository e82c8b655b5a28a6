"""Proves who may: every route has a guard, roles stop where they should, another tenant's id is unknown."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hands import Hand
from http_hands import Served
from litestar import get, post
from litestar.routes import HTTPRoute

from cogo.core.errors import PluginFailed
from cogo.http.app import OPEN_PATHS, build_app
from cogo.http.auth import COOKIE, CSRF_HEADER, guard, public, viewer
from cogo.http.tokens import KeyRing, csrf_token, mint_token

PATH_ID = re.compile(r"\{[^}]+\}")
INPUTS = '{"task": {"intent": "do"}, "objective": {}, "arms": []}'
# A lane is no tenant's, nor a policy; a tenant that is named is refused (tests/http/test_orchestrator_learning.py).
NO_TENANTS = ("/api/lanes/", "/api/orchestrator/budgets/", "/api/orchestrator/policies/")
OWN_GUARD = {"/functions/v1/orchestrator-chat"}


@pytest.fixture
async def whole(serve: Any) -> Served:
    """Every route that this project ships."""
    served: Served = await serve(["ingress", "metrics", "orchestrator"])
    return served


def routes(served: Served) -> list[tuple[str, str, str]]:
    """(method, path, function) of every handler but Litestar's own OPTIONS and /schema."""
    app = build_app(served.runtime, served.runtime.registry.routes())
    return sorted(
        (str(method), route.path_format, handler.handler_name)
        for route in app.routes
        if isinstance(route, HTTPRoute) and not route.path.startswith("/schema")
        for handler in route.route_handlers
        for method in handler.http_methods
        if method != "OPTIONS"
    )


async def test_nothing_answers_a_stranger(whole: Served):
    """Without a credential every route but the open ones is 401, and says nothing else."""
    found = routes(whole)
    assert len(found) > 20
    wrong = []
    async with whole.client() as client:
        for method, path, _ in found:
            is_open = any(path.startswith(prefix) for prefix in OPEN_PATHS)
            answer = await client.request(
                method, PATH_ID.sub("1", path), json={} if method == "POST" else None
            )
            if (answer.status_code == 401) == (is_open and not path.endswith("/login")):
                wrong.append((method, path, answer.status_code))
            if answer.status_code == 401:
                assert answer.headers["www-authenticate"] == 'Bearer realm="cogo"'
    assert not wrong


async def test_a_viewer_changes_nothing(whole: Served):
    """Every route that is not GET is 403 for a viewer, whatever the body."""
    async with whole.as_("viewer", "acme") as client:
        for method, path, _ in routes(whole):
            if method != "GET" and path not in OWN_GUARD:
                answer = await client.request(method, PATH_ID.sub("1", path), json={})
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path


async def test_another_tenants_id_answers_like_an_unknown_one(whole: Served):
    """Every route with an id: status and body are the same for a foreign id and for one that never was."""
    bus = whole.runtime.bus
    trace = "0af7651916cd43dd8448eb211c80319c"
    digest = "d" * 64
    id = await bus.enqueue(
        "work/do/0@acme", {"secret": "s3cr3t"}, traceparent=f"00-{trace}-b7ad6b7169203331-01"
    )
    failed = await bus.enqueue("work/do/0@acme", {})
    hand = await Hand(bus).register("work/do/0")
    _, second = await hand.claim("work/do")
    await hand.finish(second, "failed", error="rejected: s3cr3t")
    await bus.db.execute(
        "INSERT INTO cogo.artifacts (tenant, digest, body) VALUES ('acme', %s, 's3cr3t')", (digest,)
    )
    decision = await bus.db.fetch_value(
        """INSERT INTO cogo.decisions (tenant, message_id, intent, reason, policy_version, inputs, chosen)
           VALUES ('acme', %s, 'do', 's3cr3t', 'p', %s, 0) RETURNING id""",
        (id, INPUTS),
    )
    canary = await bus.db.fetch_value(
        """INSERT INTO cogo.canaries (tenant, agent_id, base_version, canary_version, steps, changed_by)
           VALUES ('acme', 's3cr3t', '1', '2', '{10}', 'x') RETURNING id"""
    )
    known = {
        "canary_id": str(canary),
        "action": "pause",
        "message_id": str(id),
        "trace_id": trace,
        "digest": digest,
        "decision_id": str(decision),
        "tenant": "acme",
    }
    unknown = {
        "message_id": "999999", "trace_id": "f" * 32, "digest": "f" * 64, "decision_id": "999999",
        "canary_id": "999999", "action": "pause",
    }  # fmt: skip
    checked = 0
    async with whole.as_("operator", "other") as stranger, whole.as_("operator", "acme") as owner:
        for method, path, name in routes(whole):
            names = PATH_ID.findall(path)
            if not names or "static" in path or path.startswith(NO_TENANTS):
                continue
            body = {"reason": "x"} if method == "POST" else None
            addresses = [PATH_ID.sub(lambda m, ids=ids: ids[m[0][1:-1]], path) for ids in (known, unknown)]
            theirs, nobodys = [await stranger.request(method, address, json=body) for address in addresses]
            assert theirs.status_code == 404, path
            assert (theirs.status_code, theirs.content) == (nobodys.status_code, nobodys.content), path
            if name not in ("follow", "requeue", "cancel", "move_canary"):
                real = await owner.get(addresses[0])
                assert real.status_code in (200, 202), "the id that was tried is a real one"
            checked += 1
        assert checked >= 8
        lists = ("/api/messages", "/api/messages?q=s3cr3t", "/api/messages?tenant=acme", "/api/metrics/bus/events",
                 "/api/metrics/bus/events?tenant=acme", f"/api/metrics/bus/events?message_id={failed}",
                 "/api/dead", "/api/metrics/bus/failures", "/api/metrics/bus/latency", "/api/metrics/summary",
                 "/dashboard/local", "/dashboard/messages", "/dashboard/messages?tenant=acme")  # fmt: skip
        for path in lists:
            seen = (await stranger.get(path)).text
            assert "s3cr3t" not in seen, path
            assert "acme" not in seen.replace('value="acme"', ""), path
        counts = (await stranger.get("/api/metrics/summary")).json()["bus"]["byStatus"]
        assert not any(counts.values())
        assert "s3cr3t" in (await owner.get("/api/messages")).text


async def test_the_cookie_reads_and_acts_only_with_its_csrf_token(whole: Served):
    """Login sets an HttpOnly, SameSite=Strict cookie; POST needs the token that belongs to it."""
    id = await whole.runtime.bus.enqueue("work/do/0@acme", {})
    token = mint_token(whole.tokens, ["acme"], "operator")
    async with whole.client() as browser:
        login = await browser.get(f"/dashboard/login?token={token}")
        assert (login.status_code, login.headers["location"]) == (303, "/dashboard/local")
        cookie = login.headers["set-cookie"]
        assert all(flag in cookie for flag in ("HttpOnly", "SameSite=strict", "Path=/"))
        assert (await browser.get("/dashboard/local")).status_code == 200
        assert (await browser.get(f"/api/messages/{id}")).status_code == 200
        why = {"reason": "x"}
        ring = KeyRing.of(whole.tokens)
        for given in (None, "", "x", csrf_token(ring, "another session")):
            headers = {} if given is None else {CSRF_HEADER: given}
            refused = await browser.post(f"/api/messages/{id}/cancel", json=why, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        headers = {CSRF_HEADER: csrf_token(ring, token)}
        assert (
            await browser.post(f"/api/messages/{id}/cancel", json=why, headers=headers)
        ).status_code == 200
    async with whole.client(cookie=f"{COOKIE}=garbage") as browser:
        assert (await browser.get("/dashboard/local")).status_code == 401


async def test_a_proof_that_is_given_and_wrong_is_not_skipped(whole: Served):
    """A bad Bearer beside a good cookie or key is 401; a publishable key opens nothing."""
    from cogo.core.settings import local_keys

    keys = local_keys(whole.tokens)
    secret, token = keys.secret_key.reveal(), mint_token(whole.tokens, ["acme"], "viewer")
    good = [{"apikey": secret}, {"authorization": f"Bearer {secret}"}, {"cookie": f"{COOKIE}={token}"}]
    bad = [
        {"apikey": secret, "authorization": "Bearer x"},
        {"cookie": f"{COOKIE}={token}", "authorization": "Bearer x"},
        {"cookie": f"{COOKIE}={token}", "apikey": "x"},
        {"apikey": keys.publishable_key},
        {"authorization": f"Bearer {keys.publishable_key}"},
        {"authorization": secret},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {secret}"},
    ]
    async with whole.client() as client:
        for headers in good:
            assert (await client.get("/api/messages", headers=headers)).status_code == 200, headers
        for headers in bad:
            assert (await client.get("/api/messages", headers=headers)).status_code == 401, headers


@get("/api/bare", sync_to_thread=False)
def bare() -> str:
    return ""


@get("/api/open", guards=[public], sync_to_thread=False)
def opened() -> str:
    return ""


async def homemade(_connection: Any, _handler: Any) -> None:
    """A guard of somebody's own."""


async def unmarked(_connection: Any, _handler: Any) -> None:
    """Looks like a guard, and nobody says that it is one."""


@post("/api/unmarked", guards=[unmarked], sync_to_thread=False)
def guarded_by_nobody() -> str:
    return ""


@get("/api/guarded", guards=[guard(homemade)], sync_to_thread=False)
def marked() -> str:
    return ""


@get("/api/viewed", guards=[viewer], sync_to_thread=False)
def viewed() -> str:
    return ""


async def test_an_app_with_an_unguarded_route_is_not_built(whole: Served):
    """No guard, `public` where data may be, or a function that is no marked guard: the error names the route."""
    for handler, named in (
        (bare, "GET /api/bare"),
        (opened, "GET /api/open"),
        (guarded_by_nobody, "POST /api/unmarked"),
    ):
        with pytest.raises(PluginFailed, match=named):
            build_app(whole.runtime, [handler])
    build_app(whole.runtime, [marked, viewed])
