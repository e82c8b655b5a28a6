"""Proves that the metrics and the dashboard say what happened on the bus, and show nothing that runs."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from hands import Hand, child
from helpers import eventually_async
from http_hands import Served

from cogo.core.bus import Bus
from cogo.plugins.metrics import pages, stats

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = f"00-{TRACE}-b7ad6b7169203331-01"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


async def happen(bus: Bus) -> dict[str, int]:
    """Two done (one through a delegation), one failed twice over, one cancelled, one queued, one retried."""
    hand = await Hand(bus, "hand <b>").register("work/do/0")
    ids: dict[str, int] = {}

    async def begin(name: str, tenant: str = "acme", **payload: Any) -> Any:
        ids[name] = await bus.enqueue(f"work/do/0@{tenant}", payload, traceparent=SPAN)
        (message,) = await hand.claim("work/do", 1)
        return message

    follow_up = child("work/do/0@acme", traceparent=SPAN)
    await hand.finish(await begin("parent"), "delegated", follow_ups=[follow_up])
    (kid,) = await hand.claim("work/do", 1)
    ids["child"] = kid.id
    await hand.finish(kid, "done", snippet='{"x": 1}')
    for name in ("failed-1", "failed-2"):
        await hand.finish(await begin(name, evil=EVIL), "failed", error=f"rejected: {EVIL} took {len(ids)} s")
    await hand.finish(await begin("retried"), "retry", error="handler_error: later", retry_ms=3_600_000)
    ids["cancelled"] = await bus.enqueue("work/do/0@acme", {})
    await bus.cancel(ids["cancelled"], actor="me", reason=EVIL)
    await begin("claimed")
    ids["queued"] = await bus.enqueue("work/do/0@acme", {})
    ids["foreign"] = await bus.enqueue("work/do/0@other", {})
    return ids


EXPECTED = {"queued": 2, "claimed": 1, "waiting": 0, "done": 2, "failed": 2, "cancelled": 1}


async def test_the_summary_counts_what_happened(served: Served):
    """By status, per tenant and in all; the same after the counters were rolled up and after a requeue."""
    bus = served.runtime.bus
    ids = await happen(bus)
    async with served.as_("viewer", "acme") as client, served.as_("admin") as admin:

        async def counts(who: httpx.AsyncClient) -> dict[str, int]:
            found: dict[str, int] = (await who.get("/api/metrics/summary")).json()["bus"]["byStatus"]
            return found

        assert await counts(client) == EXPECTED
        assert await counts(admin) == EXPECTED | {"queued": 3}
        await bus.db.execute("SELECT cogo.roll_up()")
        await bus.requeue(ids["failed-1"], actor="me", reason="")

        async def requeued() -> bool:
            return await counts(client) == EXPECTED | {"queued": 3, "failed": 1}

        assert await eventually_async(requeued)
        summary = (await client.get("/api/metrics/summary")).json()
    assert summary["bus"]["failure_rate"] == pytest.approx(1 / 3, abs=0.01)
    assert summary["bus"]["oldest_queued_ms"] > 0
    assert 0 < summary["bus"]["latency_ms"]["pickup"]["p50"] <= summary["bus"]["latency_ms"]["total"]["p99"]
    assert {holder["holder"] for holder in summary["holders"]} >= {"hand <b>"}


async def test_latency_is_by_lane(served: Served):
    """Ends and percentiles of each lane; other windows and lanes have their own."""
    await happen(served.runtime.bus)
    async with served.as_("viewer", "acme") as client:
        found = (await client.get("/api/metrics/bus/latency?window_s=600")).json()
    (lane,) = found["lanes"]
    assert (lane["service"], lane["role"]) == ("work", "do")
    assert lane["ended"] == {"done": 2, "failed": 2, "cancelled": 1, "retry": 1}
    assert found["all"]["total"] == lane["total"]


async def test_failures_are_grouped_by_their_words(served: Served):
    """Numbers and quotes don't split a group; a failure stands where it began, not at what waited for it."""
    bus = served.runtime.bus
    ids = await happen(bus)
    hand = await Hand(bus, "two").register("top/do/0")
    top = await bus.enqueue("top/do/0@acme", {})
    (message,) = await hand.claim("top/do", 1)
    await hand.finish(message, "delegated", follow_ups=[child("low/do/0@acme")])
    (low,) = await hand.claim("low/do", 1)
    await hand.finish(low, "failed", error="poison: gave up on 'x'")
    assert (await bus.peek(top)).status == "failed"
    async with served.as_("viewer", "acme") as client:
        groups = (await client.get("/api/metrics/bus/failures")).json()["groups"]
    assert [(g["code"], g["service"], g["n"]) for g in groups] == [
        ("rejected", "work", 2),
        ("poison", "low", 1),
    ]
    assert sorted(groups[0]["ids"]) == [ids["failed-1"], ids["failed-2"]]
    assert groups[0]["first_seen"] <= groups[0]["last_seen"]


async def test_events_are_pages_of_the_audit(served: Served):
    """Newest first, filtered by kind, message and trace; by_kind counts them."""
    ids = await happen(served.runtime.bus)
    async with served.as_("viewer", "acme") as client:
        found = (await client.get("/api/metrics/bus/events?limit=2")).json()
        assert [event["id"] for event in found["events"]] == sorted(
            (e["id"] for e in found["events"]), reverse=True
        )
        assert found["by_kind"] == {"work_failed": 2, "cancelled": 1}
        rest = (await client.get(f"/api/metrics/bus/events?before={found['next']}")).json()
        assert (len(rest["events"]), rest["next"]) == (1, None)
        one = (await client.get(f"/api/metrics/bus/events?message_id={ids['cancelled']}")).json()["events"]
        assert [(e["kind"], e["actor"], e["detail"]["reason"]) for e in one] == [("cancelled", "me", EVIL)]
        assert len((await client.get(f"/api/metrics/bus/events?trace_id={TRACE}")).json()["events"]) == 2


async def test_a_trace_holds_every_hop_with_its_times(served: Served):
    """Queued, at work, in all, and when it was handed on; in the order in which they were made."""
    ids = await happen(served.runtime.bus)
    async with served.as_("viewer", "acme") as client:
        found = (await client.get(f"/api/metrics/trace/{TRACE.upper()}")).json()
    hops = {hop["id"]: hop for hop in found["messages"]}
    assert list(hops) == sorted(hops)
    parent, kid = hops[ids["parent"]], hops[ids["child"]]
    assert parent["handed_at"] == kid["created_at"]
    assert kid["reply_to"] == ids["parent"]
    assert parent["queued_ms"] + parent["work_ms"] <= parent["elapsed_ms"]
    assert found["elapsed_ms"] is None, "one of its messages has not ended"


async def test_health_names_lanes_that_nobody_serves(served: Served):
    """Work that waits in a lane without a live holder is named."""
    await served.runtime.bus.enqueue("lost/lane/0@acme", {})
    async with served.as_("viewer", "acme") as client:
        found = (await client.get("/api/metrics/health")).json()
    assert found["unserved"] == ["lost/lane/0"]
    assert found["roles"] == ["ingress", "metrics"]


async def test_sql_and_python_agree_on_buckets(served: Served):
    """A duration put into its bucket by SQL comes back within a tenth."""
    sql = "SELECT cogo.bucket('2026-01-01', '2026-01-01'::timestamptz + %s * interval '1 ms')"
    for ms in (0.2, 1, 3.7, 50, 999, 60_000, 3_600_000):
        bucket = await served.runtime.db.fetch_value(sql, (ms,))
        assert stats.bucket_ms(bucket) == pytest.approx(ms, rel=0.1)


async def test_answers_are_shared_for_a_moment_only():
    """Two viewers at once are one query; the next one is asked again when the moment is over."""
    import anyio

    shared, asked = stats.Shared(age_s=0.05), []

    async def ask() -> int:
        asked.append(1)
        return len(asked)

    got: list[int] = []

    async def one() -> None:
        got.append(await shared.get("k", ask))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(one)
    assert got == [1] * 5

    async def asked_again() -> bool:
        return await shared.get("k", ask) == 2

    assert await eventually_async(asked_again, 2)


# -- pages -------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page would load, run or style by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]


async def browse(client: httpx.AsyncClient, path: str) -> tuple[Page, httpx.Response]:
    answer = await client.get(path, headers={"accept": "text/html"})
    return Page(answer.text), answer


async def test_pages_show_hostile_data_as_text(served: Served):
    """Nothing that a payload, an error or a holder's name says becomes a tag; the policy forbids the rest."""
    ids = await happen(served.runtime.bus)
    async with served.as_("admin") as client:
        for path in ("/dashboard/local", "/dashboard/messages", "/dashboard/messages?q=%3Cscript%3E",
                     f"/dashboard/messages/{ids['failed-1']}", f"/dashboard/messages/{ids['parent']}",
                     "/dashboard/messages/999"):  # fmt: skip
            page, answer = await browse(client, path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            for tag, attributes in page.tags:
                assert not {"style", "onclick", "onerror", "onload"} & attributes.keys(), (path, tag)
                if tag == "script":
                    assert str(attributes["src"]).startswith("/dashboard/static/"), path
                assert tag != "style"
            assert len(page.ids) == len(set(page.ids)), path
            assert EVIL not in answer.text


async def test_pages_are_built_for_everybody(served: Served):
    """A language, one h1, a caption or label for each table and field, and links that lead somewhere."""
    ids = await happen(served.runtime.bus)
    async with served.as_("viewer", "acme") as client:
        for path in ("/dashboard/local", "/dashboard/messages", f"/dashboard/messages/{ids['parent']}"):
            page, answer = await browse(client, path)
            assert answer.status_code == 200
            names = [tag for tag, _ in page.tags]
            assert ("html", {"lang": "en"}) in page.tags
            assert names.count("h1") == names.count("main") == 1
            assert names.count("table") == names.count("caption")
            assert all("scope" in attributes for tag, attributes in page.tags if tag == "th"), path
            assert all("aria-label" in attributes for tag, attributes in page.tags if tag == "svg"), path
            fields = [tag for tag in names if tag in ("input", "select")]
            assert len(fields) == names.count("label")
            for href in sorted({str(a["href"]) for tag, a in page.tags if tag == "a" and "href" in a}):
                if not href.startswith("#"):
                    assert (await client.get(href)).status_code == 200, href


async def test_the_overview_shows_what_an_operator_needs(served: Served):
    """Counts, the lane with its depth and holder, the failures grouped, the events."""
    await happen(served.runtime.bus)
    async with served.as_("viewer", "acme") as client:
        _, answer = await browse(client, "/dashboard/local")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.text))
    assert "2 queued 1 claimed 0 waiting 2 done 2 failed 1 cancelled" in text
    assert "work/do/0" in text
    assert "hand &lt;b&gt;" in text
    assert "rejected" in text
    assert "work_failed" in text


async def test_a_stranger_gets_a_page_to_sign_in(served: Served):
    """401 with a form for a browser, a problem for a program; a bad token gives the same page."""
    async with served.client() as client:
        page, answer = await browse(client, "/dashboard/local")
        assert answer.status_code == 401
        assert ("form", {"method": "get", "action": "/dashboard/login"}) in page.tags
        _, again = await browse(client, "/dashboard/login?token=x")
        assert again.status_code == 401
        assert (await client.get("/dashboard/local")).headers["content-type"] == "application/problem+json"
        assert (await client.get("/dashboard/local")).headers["www-authenticate"]


async def test_static_files_are_few_and_small(served: Served):
    """The sheet, the script and the icon; under 60 KB in all, named by their content."""
    async with served.client() as client:
        for name, kind in pages.KINDS.items():
            answer = await client.get(f"/dashboard/static/{name}?{pages.MARK}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            assert "max-age" in answer.headers["cache-control"]
    assert sum(map(len, pages.STATIC.values())) < 60_000


async def test_the_hour_ends_now(served: Served):
    """The chart's last bar is the minute in which a message just ended."""
    await happen(served.runtime.bus)
    async with served.as_("viewer", "acme") as client:
        _, answer = await browse(client, "/dashboard/local")
    assert "2 messages done and 2 failed in the last hour" in answer.text
    minutes = {(datetime.now(UTC) - timedelta(minutes=n)).strftime("%H:%M") for n in (0, 1)}
    assert any(f"<title>{minute}: 2 done, 2 failed</title>" in answer.text for minute in minutes)
