"""Proves that no input gives a 5xx or leaves a trace: every bad one has its status and code, and nothing is inserted."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest
from http_hands import Served

from cogo.core.settings import local_keys

INGRESS = "/functions/v1/orchestrator-chat"
GOOD = {
    INGRESS: {"tenant": "demo", "intent": "chat", "payload": {}},
    "/api/orchestrator/decide": {"tenant": "demo", "intent": "chat"},
    "/api/orchestrator/decide-enqueue": {"tenant": "demo", "intent": "chat"},
    "/api/messages/1/cancel": {"reason": "x"},
    "/api/messages/1/requeue": {"reason": "x"},
}
JSON = "application/json"
BIG = 256 * 1024


def with_(path: str, **changes: Any) -> bytes:
    return msgspec.json.encode({k: v for k, v in (GOOD[path] | changes).items() if v is not ...})


def everywhere(path: str) -> list[tuple[str, bytes, str | None, int, str]]:
    """What is wrong on every route that takes a body."""
    good = with_(path)
    return [
        ("no body", b"", JSON, 400, "bad_request"),
        ("not JSON", b"hello", JSON, 400, "bad_request"),
        ("truncated", good[:-1], JSON, 400, "bad_request"),
        ("two values", good + good, JSON, 400, "bad_request"),
        ("an array", b"[]", JSON, 422, "invalid"),
        ("null", b"null", JSON, 422, "invalid"),
        ("a string", b'"x"', JSON, 422, "invalid"),
        ("invalid UTF-8", good[:-1] + b',"x":"\xff\xfe"}', JSON, 400, "bad_request"),
        ("UTF-16", good.decode().encode("utf-16"), JSON, 400, "bad_request"),
        ("200,000 arrays", b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}", JSON, 413, "too_large"),
        ("120,000 arrays", b'{"x":' + b"[" * 120_000 + b"]" * 120_000 + b"}", JSON, 400, "bad_request"),
        ("120,000 open arrays", b"[" * 120_000, JSON, 400, "bad_request"),
        ("65 objects", b'{"a":' * 65 + b"1" + b"}" * 65, JSON, 400, "bad_request"),
        ("NUL escaped", good[:-1] + b',"x":"\\u0000"}', JSON, 422, "invalid"),
        ("NUL raw", good[:-1] + b',"x":"\x00"}', JSON, 400, "bad_request"),
        ("lone surrogate", good[:-1] + b',"x":"\\udfff"}', JSON, 400, "bad_request"),
        ("5,000 digits", good[:-1] + b',"x":' + b"9" * 5000 + b"}", JSON, 422, "invalid"),
        ("1e999", good[:-1] + b',"x":1e999}', JSON, 422, "invalid"),
        ("NaN", good[:-1] + b',"x":NaN}', JSON, 400, "bad_request"),
        ("an unknown field", with_(path, status="done"), JSON, 422, "invalid"),
        ("text/plain", good, "text/plain", 415, "unsupported_media"),
        ("a form", b"tenant=demo", "application/x-www-form-urlencoded", 415, "unsupported_media"),
        ("multipart", good, "multipart/form-data; boundary=x", 415, "unsupported_media"),
        ("no content type", good, None, 415, "unsupported_media"),
        ("latin-1", good, "application/json; charset=iso-8859-1", 415, "unsupported_media"),
        ("257 KB", good[:-1] + b" " * BIG + b"}", JSON, 413, "too_large"),
        ("10 MB", b" " * 10_000_000, JSON, 413, "too_large"),
    ]


FIELDS: list[tuple[str, bytes, int, str]] = [
    (INGRESS, with_(INGRESS, tenant=...), 422, "invalid"),
    (INGRESS, with_(INGRESS, tenant=None), 422, "invalid"),
    (INGRESS, with_(INGRESS, tenant=""), 422, "invalid"),
    (INGRESS, with_(INGRESS, tenant="demo\n"), 422, "invalid"),
    (INGRESS, with_(INGRESS, tenant="x" * 64), 422, "invalid"),
    (INGRESS, with_(INGRESS, tenant="'; DROP TABLE agent_messages; --"), 422, "invalid"),
    (INGRESS, with_(INGRESS, tenant="démo"), 422, "invalid"),
    (INGRESS, with_(INGRESS, intent=...), 422, "invalid"),
    (INGRESS, with_(INGRESS, intent="1chat"), 422, "invalid"),
    (INGRESS, with_(INGRESS, intent="chat\n"), 422, "invalid"),
    (INGRESS, with_(INGRESS, intent="a b"), 422, "invalid"),
    (INGRESS, with_(INGRESS, payload=...), 422, "invalid"),
    (INGRESS, with_(INGRESS, payload=[]), 422, "invalid"),
    (INGRESS, with_(INGRESS, payload="x"), 422, "invalid"),
    (INGRESS, with_(INGRESS, payload={"__assignment": None}), 422, "assignment_forbidden"),
    (INGRESS, with_(INGRESS, tenant="acme"), 403, "forbidden"),
    ("/api/orchestrator/decide", b'{"tenant":"demo","intent":"dance"}', 422, "intent_unknown"),
    ("/api/orchestrator/decide", b'{"tenant":"other","intent":"chat"}', 403, "forbidden"),
    ("/api/orchestrator/decide", b'{"tenant":"demo","intent":"chat","ttl_ms":0}', 422, "invalid"),
    ("/api/orchestrator/decide", b'{"tenant":"demo","intent":"chat","ttl_ms":1e30}', 422, "invalid"),
    ("/api/orchestrator/decide", b'{"tenant":"demo","intent":"chat","ttl_ms":"5"}', 422, "invalid"),
    ("/api/orchestrator/decide", b'{"tenant":"demo","intent":"chat","budget":{"maxCostUsd":-1}}', 422, "invalid"),
    ("/api/orchestrator/decide", b'{"tenant":"demo","intent":"chat","payload":{"__assignment":1}}', 422, "assignment_forbidden"),
    ("/api/orchestrator/decide-enqueue", b'{"tenant":"demo","intent":"dance"}', 422, "intent_unknown"),
    ("/api/orchestrator/decide-enqueue", b'{"tenant":"demo","intent":"chat","idempotency_key":""}', 422, "invalid"),
    ("/api/messages/1/cancel", b'{"reason":"x"}', 404, "message_unknown"),
    ("/api/messages/9007199254740993/cancel", b'{"reason":"x"}', 404, "message_unknown"),
]  # fmt: skip

GETS: list[tuple[str, int, str | None]] = [
    ("/api/messages/0", 404, "message_unknown"),
    ("/api/messages/-1", 404, "message_unknown"),
    ("/api/messages/1.0", 404, "message_unknown"),
    ("/api/messages/1_0", 404, "message_unknown"),
    ("/api/messages/%D9%A1", 404, "message_unknown"),
    ("/api/messages/" + "9" * 20, 404, "message_unknown"),
    ("/api/messages/" + "9" * 6000, 404, "message_unknown"),
    ("/api/messages/%00", 400, "bad_request"),
    ("/api/messages/1%00/result", 400, "bad_request"),
    ("/api/messages/%ff%fe", 404, "message_unknown"),
    ("/api/messages/%ED%A0%80", 404, "message_unknown"),
    ("/api/messages?q=%00", 400, "bad_request"),
    ("/api/messages?q=%ff", 200, None),
    ("/api/messages?q=%25%27%22%5C", 200, None),
    ("/api/messages?q=" + "x" * 201, 422, "invalid"),
    ("/api/messages?tenat=demo", 422, "invalid"),
    ("/api/messages?limit=0", 422, "invalid"),
    ("/api/messages?limit=201", 422, "invalid"),
    ("/api/messages?limit=" + "9" * 5000, 422, "invalid"),
    ("/api/messages?before=9223372036854775808", 422, "invalid"),
    ("/api/messages?status=lost", 422, "invalid"),
    ("/api/messages?since=yesterday", 422, "invalid"),
    ("/api/messages?since=2026-11-23T08:00:00", 422, "invalid"),
    ("/api/messages?since=0001-01-01T00:00:00Z", 200, None),
    ("/api/messages?since=9999-12-31T23:59:59Z", 200, None),
    ("/api/messages/1/result?wait_ms=60001", 422, "invalid"),
    ("/api/messages/1/result?wait_ms=-1", 422, "invalid"),
    ("/api/messages/1/result?wait_ms=x", 422, "invalid"),
    ("/api/artifacts/..%2f..%2fetc%2fpasswd", 404, "not_found"),
    ("/api/artifacts/" + "a" * 5000, 404, "not_found"),
    ("/api/metrics/trace/xyz", 404, "not_found"),
    ("/api/metrics/trace/" + "0" * 32, 404, "not_found"),
    ("/api/metrics/bus/events?message_id=x", 404, "message_unknown"),
    ("/api/metrics/bus/events?kind=%27;--", 200, None),
    ("/api/metrics/summary?window_s=1", 422, "invalid"),
    ("/api/metrics/bus/failures?window_s=1e9", 422, "invalid"),
    ("/dashboard/static/..%2fpages.py", 404, "not_found"),
    ("/dashboard/static/%2e%2e/pages.py", 404, "not_found"),
    ("/dashboard/messages/x", 404, "message_unknown"),
    ("/dashboard/messages?before=x", 422, "invalid"),
    ("/dashboard/login?token=x", 401, "unauthorized"),
    ("/schema/problems/x%0d%0aset-cookie:a", 404, "not_found"),
    ("//api//messages", 404, "not_found"),
    ("/nope", 404, "not_found"),
]  # fmt: skip


@pytest.fixture
async def whole(serve: Any) -> Served:
    """Every route that this project ships, on one process; the orchestrator's consumer idles."""
    served: Served = await serve(["ingress", "metrics", "orchestrator"], ingress_public_tenants="demo")
    return served


async def traces(served: Served) -> dict[str, int]:
    """Rows that a request could have left behind."""
    counted = {}
    for table in ("public.agent_messages", "public.bus_events", "cogo.decisions", "cogo.budget_holds"):
        counted[table] = await served.runtime.db.fetch_value(f"SELECT count(*) FROM {table}")
    return counted


def headers_of(served: Served, path: str, media: str | None) -> dict[str, str]:
    from cogo.http.tokens import mint_token

    headers = {} if media is None else {"content-type": media}
    if path == INGRESS:
        return headers | {"apikey": local_keys(served.tokens).publishable_key}
    return headers | {"authorization": f"Bearer {mint_token(served.tokens, ['demo'], 'operator')}"}


async def test_bad_bodies_are_refused_alike_on_every_route(whole: Served):
    """Each route x each bad body: exact status and code, problem+json, nothing inserted."""
    wrong = []
    async with whole.client() as client:
        for path in GOOD:
            for what, body, media, status, code in everywhere(path):
                answer = await client.post(path, content=body, headers=headers_of(whole, path, media))
                if (answer.status_code, answer.json()["code"]) != (status, code):
                    wrong.append((path, what, answer.status_code, answer.text[:200]))
                assert answer.headers["content-type"] == "application/problem+json"
        for path, body, status, code in FIELDS:
            answer = await client.post(path, content=body, headers=headers_of(whole, path, JSON))
            if (answer.status_code, answer.json()["code"]) != (status, code):
                wrong.append((path, body[:80], answer.status_code, answer.text[:200]))
    assert not wrong
    assert not any((await traces(whole)).values())


async def test_bad_addresses_are_refused(whole: Served):
    """Odd ids, queries and paths."""
    wrong = []
    async with whole.as_("viewer", "demo") as client:
        for path, status, code in GETS:
            answer = await client.get(path)
            found = answer.json().get("code") if answer.status_code != 200 else None
            if (answer.status_code, found) != (status, code):
                wrong.append((path[:80], answer.status_code, answer.text[:200]))
    assert not wrong


async def test_wrong_methods_name_the_right_ones(whole: Served):
    """405 with Allow, on the ingress as on the API; HEAD only where probes need it."""
    async with whole.as_("viewer", "demo") as client:
        for method, path, allow in (
            ("DELETE", "/api/messages", "GET, OPTIONS"),
            ("GET", INGRESS, "OPTIONS, POST"),
            ("PUT", "/api/messages/1/cancel", "OPTIONS, POST"),
            ("POST", "/api/messages/1", "GET, OPTIONS"),
            ("PROPFIND", "/livez", "GET, OPTIONS"),
            ("HEAD", "/api/messages", "GET, OPTIONS"),
        ):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allow), (method, path)
        assert (await client.head("/livez")).status_code == 200


async def test_a_body_that_grows_as_it_comes_is_cut_off(whole: Served):
    """Chunked, without a length: 413 once 256 KB have come, whatever else would follow."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 16_384

    async with whole.client() as client:
        answer = await client.post(INGRESS, content=endless(), headers=headers_of(whole, INGRESS, JSON))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_a_body_of_exactly_the_limit_is_taken(whole: Served):
    """256 KB pass, one byte more does not."""
    body = with_(INGRESS)[:-1]
    async with whole.client() as client:
        headers = headers_of(whole, INGRESS, JSON)
        fits = await client.post(INGRESS, content=body + b" " * (BIG - len(body) - 1) + b"}", headers=headers)
        assert fits.status_code == 202
        over = await client.post(INGRESS, content=body + b" " * (BIG - len(body)) + b"}", headers=headers)
        assert over.status_code == 413


async def test_a_request_that_ends_early_is_nobodys_error(whole: Served, caplog: pytest.LogCaptureFixture):
    """A client that leaves in the middle of its body leaves no row and no error in the log."""
    port = int(whole.url.rsplit(":", 1)[1])
    head = f"POST {INGRESS} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: 100\r\n"
    key = headers_of(whole, INGRESS, None)["apikey"]
    for _ in range(3):
        stream = await anyio.connect_tcp("127.0.0.1", port)
        await stream.send(f'{head}apikey: {key}\r\n\r\n{{"tenant":'.encode())
        await stream.aclose()
    async with whole.client() as client:
        assert (await client.get("/livez")).status_code == 200
    assert await whole.rows() == 0
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


async def test_random_bytes_and_addresses_never_give_a_5xx(whole: Served):
    """300 mutations of good requests (one seed, so that a failure can be repeated)."""
    dice = random.Random(20261123)
    pieces = [
        b"\x00",
        b"\xff",
        b"{",
        b"}",
        b'"',
        b"\\",
        b"\\u0000",
        b"1e999",
        b"null",
        b"[" * 70,
        "é".encode(),
        b"-",
    ]
    paths = [
        "/api/messages",
        "/api/messages/1",
        "/api/metrics/trace/a",
        "/dashboard/messages",
        "/schema/problems/x",
    ]
    wrong = []
    async with whole.as_("admin") as client:
        for _ in range(200):
            path = dice.choice(list(GOOD))
            body = bytearray(with_(path))
            for _ in range(dice.randint(1, 4)):
                at = dice.randrange(len(body) + 1)
                body[at : at + dice.randint(0, 3)] = dice.choice(pieces)
            answer = await client.post(
                path, content=bytes(body), headers={"content-type": JSON} | headers_of(whole, path, None)
            )
            if answer.status_code >= 500:
                wrong.append((path, bytes(body), answer.text))
        for _ in range(100):
            odd = "".join(
                dice.choice(["%00", "%ff", "%25", "'", "/", "?q=", "&limit=", "..", "é", "9", "a"])
                for _ in range(6)
            )
            path = dice.choice(paths) + odd
            answer = await client.get(path)
            if answer.status_code >= 500:
                wrong.append((path, None, answer.text))
    assert not wrong
