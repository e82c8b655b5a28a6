"""Where the shapes of a chart go: numbers for SVG attributes, since the pages allow no inline style."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

MINUTES = 60
BAR_WIDTH = 10
HEIGHT = 96


def throughput(rows: list[dict[str, Any]], now: datetime) -> dict[str, Any]:
    """One bar a minute for the last hour, failed on top of done; in units of a 600 x 96 box."""
    by_minute = {row["minute"].astimezone(UTC): row for row in rows}
    first = now.astimezone(UTC).replace(second=0, microsecond=0) - timedelta(minutes=MINUTES - 1)
    none = {"done": 0, "failed": 0}
    minutes = [by_minute.get(first + timedelta(minutes=n), none) for n in range(MINUTES)]
    top = max((max(0, m["done"]) + max(0, m["failed"]) for m in minutes), default=0)
    bars = []
    for n, minute in enumerate(minutes):
        done, failed = max(0, minute["done"]), max(0, minute["failed"])
        done_h, failed_h = (_height(done, top), _height(failed, top))
        bars.append({
            "x": n * BAR_WIDTH + 1, "width": BAR_WIDTH - 2, "done": done, "failed": failed,
            "done_y": HEIGHT - done_h, "done_h": done_h,
            "failed_y": HEIGHT - done_h - failed_h, "failed_h": failed_h,
            "at": (first + timedelta(minutes=n)).strftime("%H:%M"),
        })  # fmt: skip
    return {
        "bars": bars,
        "top": top,
        "done": sum(b["done"] for b in bars),
        "failed": sum(b["failed"] for b in bars),
    }


def _height(n: int, top: int) -> float:
    """At least 1.5 units for any message: one failure among thousands must be seen."""
    return 0.0 if not n or not top else max(1.5, round(n / top * (HEIGHT - 4), 2))


def gantt(messages: list[dict[str, Any]], now: datetime) -> list[dict[str, Any]]:
    """Each hop of a trace with its bars in a box of 1000 x 16: queued, at work, waiting for the next hop."""
    if not messages:
        return []
    start = min(hop["created_at"] for hop in messages)
    end = max(hop["done_at"] or now for hop in messages)
    whole = max((end - start).total_seconds(), 1e-6)

    def place(moment: datetime) -> float:
        part: float = (moment - start).total_seconds() / whole
        return round(part * 1000, 2)

    def bar(kind: str, since: datetime, until: datetime, height: int) -> dict[str, Any]:
        x = min(place(since), 998.0)  # the shortest work is still a line that can be seen
        return {
            "kind": kind,
            "x": x,
            "width": max(2.0, round(place(until) - x, 2)),
            "y": (16 - height) // 2,
            "height": height,
        }

    rows = []
    for hop in messages:
        ended = hop["done_at"] or now
        claimed, handed = hop["claimed_at"], hop["handed_at"]
        bars = [bar("queued", hop["created_at"], claimed or ended, 6)]
        if claimed:
            bars.append(bar("work", claimed, handed or ended, 16))
        if handed:
            bars.append(bar("await", handed, ended, 6))
        rows.append({**hop, "bars": bars})
    return rows
