"""Proves the messages routes on messages that a real role handles: look, wait, follow, cancel, put back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from hands import Hand, child
from helpers import eventually_async
from http_hands import Served

from cogo.core.bus import Bus

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def hand(served: Served) -> Hand:
    """A holder beside the process, so that the test decides what becomes of each message."""
    return await Hand(served.runtime.bus).register("work/do/0")


def bus_of(served: Served) -> Bus:
    return served.runtime.bus


async def test_a_message_shows_its_whole_story(served: Served, hand: Hand):
    """Row, result, children, events, decision and cost of a message that was delegated once."""
    bus = bus_of(served)
    id = await bus.enqueue("work/do/0@acme", {"n": 10**30}, traceparent=PARENT)
    await bus.hold(id, "acme", 0.5, 1000)
    await bus.draw(id, 0.125, 40)
    await bus.db.execute(
        """INSERT INTO cogo.decisions (tenant, message_id, intent, lane, candidates, reason, policy_version)
           VALUES ('acme', %s, 'do', 'work/do/0', '[{"lane": "work/do/0"}]', 'the only one', 'p')""",
        (id,),
    )
    (first,) = await hand.claim("work/do")
    await hand.finish(first, "delegated", follow_ups=[child("work/do/0@acme", b'{"m": 1}')])
    (second,) = await hand.claim("work/do")
    await hand.finish(second, "done", snippet='{"answer": 42}')
    async with served.as_("viewer", "acme") as client:
        shown = (await client.get(f"/api/messages/{id}")).json()
    row = shown["message"]
    assert (row["id"], row["status"], row["service"], row["tenant"]) == (id, "done", "work", "acme")
    assert row["payload"] == {"n": 10**30}
    assert row["created_at"].endswith("Z")
    assert row["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert shown["result"] == {"answer": 42}
    assert [(kid["id"], kid["status"], kid["reply_to"]) for kid in shown["children"]] == [
        (second.id, "done", id)
    ]
    assert shown["decision"]["reason"] == "the only one"
    assert shown["decision"]["candidates"] == [{"lane": "work/do/0"}]
    assert (shown["cost"]["spent_cost_usd"], shown["cost"]["max_tokens"]) == (0.125, 1000)
    times = [event["created_at"] for event in shown["events"]]
    assert times == sorted(times)


async def test_stored_json_that_no_decoder_takes_is_passed_through(served: Served):
    """A number of 400 digits and one beyond every float, put there by plain SQL, are no 500."""
    id = await bus_of(served).db.fetch_value(
        """INSERT INTO public.agent_messages (service, role, tenant, payload)
           VALUES ('work', 'do', 'acme', ('{"a": ' || repeat('9', 5000) || ', "b": 1e999}')::jsonb) RETURNING id"""
    )
    async with served.as_("viewer", "acme") as client:
        for path in (f"/api/messages/{id}", "/api/messages", f"/dashboard/messages/{id}"):
            answer = await client.get(path, headers={"accept": "text/html"})
            assert answer.status_code == 200, path
            assert "9" * 5000 in answer.text or path.startswith("/dash")


async def test_a_result_that_is_no_json_is_a_snippet(served: Served, hand: Hand):
    """A foreign worker may have written any text: `result` is null, the text stands as it is."""
    bus = bus_of(served)
    id = await bus.enqueue("work/do/0@acme", {})
    (message,) = await hand.claim("work/do")
    await hand.finish(message, "done", snippet="not json <script>")
    async with served.as_("viewer", "acme") as client:
        ended = await client.get(f"/api/messages/{id}/result")
    assert (ended.status_code, ended.json()["result"]) == (200, None)
    assert ended.json()["result_snippet"] == "not json <script>"


async def test_result_waits_until_the_end(served: Served, hand: Hand):
    """202 at once without a wait, 202 after the wait, 200 as soon as the message ends."""
    bus = bus_of(served)
    id = await bus.enqueue("work/do/0@acme", {})
    async with served.as_("viewer", "acme") as client:
        now = await client.get(f"/api/messages/{id}/result")
        assert (now.status_code, now.json()["status"]) == (202, "queued")
        started = time.monotonic()
        later = await client.get(f"/api/messages/{id}/result?wait_ms=150")
        assert later.status_code == 202
        assert 0.14 < time.monotonic() - started < 5
        answers: list[httpx.Response] = []

        async def wait() -> None:
            answers.append(await client.get(f"/api/messages/{id}/result?wait_ms=60000"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            waiting = "SELECT count(*) FROM cogo.bus_waiters"
            assert await eventually_async(lambda: bus.db.fetch_value(waiting))
            (message,) = await hand.claim("work/do")
            await hand.finish(message, "failed", error="rejected: no")
            ended = time.monotonic()
        assert time.monotonic() - ended < 2
    assert answers[0].status_code == 200
    assert (answers[0].json()["status"], answers[0].json()["error"]) == ("failed", "rejected: no")
    assert await eventually_async(lambda: _none_waits(bus))


async def _none_waits(bus: Bus) -> bool:
    return await bus.db.fetch_value("SELECT count(*) FROM cogo.bus_waiters") == 0


async def test_a_client_that_leaves_is_no_longer_waited_for(served: Served):
    """Closing the connection ends the long poll and the stream on the server as well."""
    bus = bus_of(served)
    id = await bus.enqueue("work/do/0@acme", {})
    waiting = "SELECT count(*) FROM cogo.bus_waiters"
    for path in (f"/api/messages/{id}/result?wait_ms=60000", f"/api/messages/{id}/stream"):
        async with served.as_("viewer", "acme") as client, anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, path)
            assert await eventually_async(lambda: bus.db.fetch_value(waiting))
            tasks.cancel_scope.cancel()
        assert await eventually_async(lambda: _none_waits(bus)), path


class Event(msgspec.Struct):
    kind: str
    data: Any
    id: str | None


@asynccontextmanager
async def streamed(client: httpx.AsyncClient, id: int, **headers: str) -> AsyncIterator[AsyncIterator[Event]]:
    async def events(response: httpx.Response) -> AsyncIterator[Event]:
        fields: dict[str, str] = {}
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
            elif "event" in fields:
                yield Event(fields["event"], msgspec.json.decode(fields["data"]), fields.get("id"))
                fields = {}

    async with client.stream("GET", f"/api/messages/{id}/stream", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield events(response)


async def test_a_stream_follows_progress_to_the_outcome_and_resumes(served: Served, hand: Hand):
    """Chunks in order, each once, also over a new connection; then the outcome; then 204 for good."""
    bus = bus_of(served)
    id = await bus.enqueue("work/do/0@acme", {})
    (message,) = await hand.claim("work/do")
    async with served.as_("viewer", "acme") as client:
        async with streamed(client, id) as events:
            await bus.add_chunks(
                id, message.fence, [("progress", {"share": 0.5}), ("token", "a\nb\n\nevent: x")]
            )
            first = [await anext(events), await anext(events)]
        assert [(e.kind, e.data, e.id) for e in first] == [
            ("progress", {"share": 0.5}, "1"),
            ("token", "a\nb\n\nevent: x", "2"),
        ]
        await bus.add_chunks(id, message.fence, [("token", "c")])
        await hand.finish(message, "done", snippet='{"x": 1}')
        async with streamed(client, id, **{"last-event-id": "2"}) as events:
            rest = [event async for event in events]
        assert [(e.kind, e.id) for e in rest] == [("token", "3"), ("outcome", "end")]
        assert (rest[1].data["status"], rest[1].data["result"]) == ("done", {"x": 1})
        over = await client.get(f"/api/messages/{id}/stream", headers={"last-event-id": "end"})
        assert over.status_code == 204
        for bad in ("x", "-1", "1e3", "9" * 30):
            refused = await client.get(f"/api/messages/{id}/stream", headers={"last-event-id": bad})
            assert (refused.status_code, refused.json()["code"]) == (422, "invalid")


async def test_operators_cancel_and_requeue_with_a_reason(served: Served, hand: Hand):
    """Both leave an event with the token's subject and the reason; states that forbid it are 409."""
    bus = bus_of(served)
    id = await bus.enqueue("work/do/0@acme", {})
    why = {"reason": "a drill"}
    async with served.as_("operator", "acme") as client:
        cancelled = await client.post(f"/api/messages/{id}/cancel", json=why)
        assert (cancelled.status_code, cancelled.json()) == (200, {"id": id, "status": "cancelled"})
        assert (await client.post(f"/api/messages/{id}/cancel", json=why)).status_code == 200, "again is fine"
        back = await client.post(f"/api/messages/{id}/requeue", json=why)
        assert (back.status_code, back.json()) == (200, {"id": id, "status": "queued"})
        twice = await client.post(f"/api/messages/{id}/requeue", json=why)
        assert (twice.status_code, twice.json()["code"]) == (409, "message_state")
        (message,) = await hand.claim("work/do")
        await hand.finish(message, "done", snippet="1")
        late = await client.post(f"/api/messages/{id}/cancel", json=why)
        assert (late.status_code, late.json()["code"]) == (409, "message_state")
        for bad in ({}, {"reason": ""}, {"reason": "x" * 501}, {"reason": 1}, {"reason": "a", "actor": "b"}):
            refused = await client.post(f"/api/messages/{id}/cancel", json=bad)
            assert (refused.status_code, refused.json()["code"]) == (422, "invalid"), bad
    sql = "SELECT kind, actor, detail ->> 'reason' AS why FROM public.bus_events WHERE kind IN ('cancelled','requeued') ORDER BY id"
    assert await bus.db.fetch(sql) == [
        {"kind": "cancelled", "actor": "operator@test", "why": "a drill"},
        {"kind": "requeued", "actor": "operator@test", "why": "a drill"},
    ]


async def test_pages_hold_every_message_once(served: Served):
    """Filters and `next`: walking the pages gives exactly the rows that match, newest first."""
    bus = bus_of(served)
    ids = await bus.enqueue_many("work/do/0@acme", [{"n": n, "word": f"w{n % 7}x"} for n in range(5_000)])
    await bus.enqueue_many("other/do/0@acme", [{"n": 0}] * 10)
    await bus.db.execute(
        "UPDATE public.agent_messages SET status = 'cancelled' WHERE id = ANY (%s)", (ids[:3],)
    )
    cases: list[tuple[str, list[int]]] = [
        ("service=work&limit=200", ids),
        ("service=work&status=cancelled", ids[:3]),
        ("service=work&q=W3X&limit=97", [id for n, id in enumerate(ids) if n % 7 == 3]),
        ("service=nobody", []),
        ("role=do&service=other", list(range(ids[-1] + 1, ids[-1] + 11))),
        ("since=2100-01-01T00:00:00Z", []),
    ]
    async with served.as_("viewer", "acme") as client:
        for query, expected in cases:
            found: list[int] = []
            after: int | None = None
            while True:
                page = (
                    await client.get(f"/api/messages?{query}" + (f"&before={after}" if after else ""))
                ).json()
                found += [row["id"] for row in page["messages"]]
                after = page["next"]
                if after is None:
                    break
            assert found == sorted(expected, reverse=True), query


async def test_artifacts_are_shown_to_their_tenant_and_never_run(served: Served):
    """A long result comes back byte for byte; HTML is a download under a policy that runs nothing."""
    bus = bus_of(served)
    for digest, media, body in (
        ("d" * 64, "application/json", b'{"a": 1}'),
        ("e" * 64, "text/html", b"<script>"),
    ):
        await bus.db.execute(
            "INSERT INTO cogo.artifacts (tenant, digest, media_type, body) VALUES ('acme', %s, %s, %s)",
            (digest, media, body),
        )
    async with served.as_("viewer", "acme") as client:
        found = await client.get(f"/api/artifacts/{'d' * 64}")
        assert (found.status_code, found.content) == (200, b'{"a": 1}')
        html = await client.get(f"/api/artifacts/{'e' * 64}")
        assert html.headers["content-disposition"] == "attachment"
        assert "sandbox" in html.headers["content-security-policy"]
        assert (await client.get(f"/api/artifacts/{'f' * 64}")).json()["code"] == "not_found"
    async with served.as_("viewer", "other") as client:
        assert (await client.get(f"/api/artifacts/{'d' * 64}")).status_code == 404
