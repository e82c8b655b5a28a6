"""Proves what metrics and limits compute from counts and clocks: percentiles, groups, charts, buckets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogo.core.errors import RateLimited
from cogo.http.pages import ago, count, milliseconds, span, when
from cogo.plugins.ingress.limits import BUCKETS_MAX, Buckets
from cogo.plugins.metrics import charts, stats


def bucket(ms: float) -> int:
    """What cogo.bucket() does in SQL; tests/bus compares the two."""
    import math

    return min(127, max(0, math.floor(math.log(max(ms * 10, 1)) / math.log(1.2))))


@given(st.lists(st.floats(0.2, 1e6), min_size=1, max_size=300))
def test_percentiles_are_right_to_a_tenth(durations: list[float]):
    """Against the exact percentile of the durations that were put into buckets."""
    found = stats.percentiles([(bucket(ms), 1) for ms in durations])
    ordered = sorted(durations)
    for name, share in stats.PERCENTILES.items():
        exact = next(ms for n, ms in enumerate(ordered, 1) if n >= share * len(ordered))
        assert abs((found[name] or 0) - exact) <= 0.1 * exact + 0.005  # shown to two digits


def test_no_messages_have_no_percentiles():
    """None, not zero: nothing was measured. Rows without a pickup (-1) don't count."""
    assert stats.percentiles([]) == {"p50": None, "p90": None, "p99": None}
    assert stats.percentiles([(-1, 5)])["p50"] is None


def ended(status: str, n: int, pickup: int = 5, total: int = 9) -> dict[str, Any]:
    return {"status": status, "n": n, "pickup_b": pickup, "total_b": total}


def test_the_failure_rate_counts_ends_alone():
    """Retries and cancellations are no ends of work; a requeue takes a failure back."""
    assert stats.failure_rate([]) == 0.0
    assert (
        stats.failure_rate([ended("done", 3), ended("failed", 1), ended("retry", 9), ended("cancelled", 9)])
        == 0.25
    )
    assert stats.failure_rate([ended("done", 3), ended("failed", 1), ended("failed", -1)]) == 0.0


def test_buckets_fill_again_at_their_rate():
    """A burst of twice the rate, then one each 1/rate seconds; the refusal says how long to wait."""
    now = 100.0
    buckets = Buckets(2.0, clock=lambda: now)
    name = ("key", "tenant")
    for _ in range(4):
        buckets.take(name)
    with pytest.raises(RateLimited) as refused:
        buckets.take(name)
    assert refused.value.extra["retry_after_s"] == 1
    buckets.take(("key", "other"))
    now += 0.5
    buckets.take(name)
    with pytest.raises(RateLimited):
        buckets.take(name)
    now += 3600
    for _ in range(4):
        buckets.take(name)
    with pytest.raises(RateLimited):
        buckets.take(name)


def test_a_slow_rate_says_how_long():
    """One in twenty seconds: the second has to wait for what is left of them."""
    now = 0.0
    buckets = Buckets(0.05, clock=lambda: now)
    buckets.take(("k", "t"))
    now = 5.0
    with pytest.raises(RateLimited) as refused:
        buckets.take(("k", "t"))
    assert refused.value.extra["retry_after_s"] == 15


def test_buckets_are_bounded():
    """A stranger who makes up names can't fill the memory."""
    buckets = Buckets(1.0, clock=lambda: 0.0)
    for n in range(BUCKETS_MAX + 50):
        buckets.take(("k", str(n)))
    assert len(buckets._filled) == BUCKETS_MAX


NOW = datetime(2026, 11, 23, 8, 30, 20, tzinfo=UTC)


def test_the_chart_has_a_bar_for_each_minute_of_the_last_hour():
    """Bars stand on the axis, failed on done; a single failure beside a thousand is still seen."""
    rows = [
        {"minute": NOW.replace(second=0), "done": 1000, "failed": 1},
        {"minute": NOW.replace(second=0) - timedelta(minutes=59), "done": 10, "failed": 0},
        {"minute": NOW.replace(second=0) - timedelta(minutes=60), "done": 7, "failed": 0},
    ]
    chart = charts.throughput(rows, NOW)
    assert (chart["done"], chart["failed"], chart["top"]) == (1010, 1, 1001)
    assert len(chart["bars"]) == 60
    last = chart["bars"][-1]
    assert last["failed_h"] == 1.5
    assert last["done_y"] + last["done_h"] == charts.HEIGHT
    assert last["failed_y"] + last["failed_h"] == last["done_y"]
    assert last["failed_y"] >= 0
    assert charts.throughput([], NOW)["top"] == 0


def test_hops_are_bars_within_their_box():
    """Queued, at work, waiting for the next hop: in order, inside 0..1000, also for what still runs."""
    start = NOW
    hop = {"created_at": start, "claimed_at": None, "handed_at": None, "done_at": None}
    first = hop | {
        "claimed_at": start + timedelta(milliseconds=10),
        "handed_at": start + timedelta(milliseconds=30),
        "done_at": start + timedelta(milliseconds=100),
    }
    second = hop | {
        "created_at": start + timedelta(milliseconds=30),
        "claimed_at": start + timedelta(milliseconds=50),
    }
    one, two = charts.gantt([first, second], start + timedelta(milliseconds=80))
    assert [(b["kind"], b["x"], b["width"]) for b in one["bars"]] == [
        ("queued", 0, 100),
        ("work", 100, 200),
        ("await", 300, 700),
    ]
    assert [(b["kind"], b["x"], b["width"]) for b in two["bars"]] == [
        ("queued", 300, 200),
        ("work", 500, 300),
    ]
    assert charts.gantt([], start) == []
    at_once = charts.gantt([hop | {"claimed_at": start, "done_at": start}], start)
    assert all(b["x"] >= 0 and b["x"] + b["width"] <= 1000 and b["width"] > 0 for b in at_once[0]["bars"])


def test_numbers_are_written_for_people():
    """Durations in a unit that fits, thousands apart, times in UTC."""
    shown = {0.04: "0.0 ms", 9.94: "9.9 ms", 120: "120 ms", 3210: "3.2 s", 240_000: "4 min", 7_200_000: "2 h"}
    for ms, text in shown.items():
        assert milliseconds(ms) == text
    assert milliseconds(None) == span(None, NOW) == ago(None) == "–"
    assert count(1234567) == "1\u202f234\u202f567"
    assert when(datetime(2026, 11, 23, 10, 0, 0, 5000, tzinfo=UTC)) == "2026-11-23 10:00:00.005"
    assert when(None) == ""
    assert span(NOW, NOW - timedelta(seconds=5)) == "0.0 ms", "clocks of two machines may differ"
