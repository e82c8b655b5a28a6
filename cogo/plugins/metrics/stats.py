"""What the metrics say, worked out of counters: percentiles, depths, groups of failures."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import anyio

from cogo.web import bounded, shaped, utc

from . import queries

if TYPE_CHECKING:
    from cogo import Database

STATUSES = ("queued", "claimed", "waiting", "done", "failed", "cancelled")
PERCENTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
WINDOW_S = 3600
FAILURES_S = 24 * 3600

Rows = list[dict[str, Any]]


# -- percentiles ------------------------------------------------------------------------------


def bucket_ms(bucket: int) -> float:
    """The duration for which a bucket of `cogo.bucket` stands: its geometric middle, in ms."""
    return 0.1 * math.pow(1.2, bucket + 0.5)


def percentiles(counts: Iterable[tuple[int, int]]) -> dict[str, float | None]:
    """p50, p90, p99 in ms from (bucket, n); right to 10 %. None without messages."""
    known = sorted((bucket, n) for bucket, n in counts if bucket >= 0 and n > 0)
    total = sum(n for _, n in known)
    found: dict[str, float | None] = dict.fromkeys(PERCENTILES)
    for name, share in PERCENTILES.items():
        seen = 0
        for bucket, n in known:
            seen += n
            if seen >= share * total:
                found[name] = round(bucket_ms(bucket), 2)
                break
    return found


def latency(rows: Rows) -> dict[str, dict[str, float | None]]:
    """Time to the first claim (`pickup`) and to the end (`total`) of ended messages."""
    ended = [row for row in rows if row["status"] in ("done", "failed")]
    return {
        "pickup": percentiles((row["pickup_b"], row["n"]) for row in ended),
        "total": percentiles((row["total_b"], row["n"]) for row in ended),
    }


def ends(rows: Rows) -> dict[str, int]:
    """How many were done, failed, cancelled and retried in the window."""
    found = dict.fromkeys(("done", "failed", "cancelled", "retry"), 0)
    for row in rows:
        found[row["status"]] += row["n"]
    return found


def failure_rate(rows: Rows) -> float:
    """Failed of all that were done or failed; 0.0 without any."""
    counted = ends(rows)
    total = counted["done"] + counted["failed"]
    return round(counted["failed"] / total, 4) if total > 0 else 0.0


# -- answers ----------------------------------------------------------------------------------


async def by_status(db: Database, tenants: list[str] | None, living: Rows) -> dict[str, int]:
    """Messages by status: ended ones from the counters, back to the retention."""
    counts = dict.fromkeys(STATUSES, 0)
    for row in living:
        counts[row["status"]] += row["n"]
    for row in await db.fetch(queries.ENDED, {"tenants": tenants}):
        counts[row["status"]] = max(0, row["n"])
    return counts


async def summary(db: Database, tenants: list[str] | None, window_s: int = WINDOW_S) -> dict[str, Any]:
    """`GET /api/metrics/summary`."""
    args = {"tenants": tenants, "window_s": window_s}
    with bounded():
        living = await db.fetch(queries.LIVING, args)
        buckets = await db.fetch(queries.BUCKETS, args)
        counts = await by_status(db, tenants, living)
        cost = shaped((await db.fetch(queries.COST, args))[0])
        recent = shaped((await db.fetch(queries.COST_RECENT, args))[0])
        alive = await holders(db)
    queued = [row["oldest"] for row in living if row["status"] == "queued"]
    return {
        "bus": {
            "byStatus": counts,
            "window_s": window_s,
            "latency_ms": latency(buckets),
            "failure_rate": failure_rate(buckets),
            "oldest_queued_ms": age_ms(min(queued, default=None)),
        },
        "holders": alive,
        "cost": {"open": cost, "recent": recent},
        "gates": {},
        "workflows": {},
    }


def age_ms(moment: Any) -> float:
    """Milliseconds since then; 0.0 for None."""
    return 0.0 if moment is None else round(max(0.0, time.time() - moment.timestamp()) * 1000, 1)


async def holders(db: Database) -> Rows:
    """The processes whose lease stands."""
    return [shaped(row) for row in await db.fetch(queries.HOLDERS)]


async def latencies(db: Database, tenants: list[str] | None, window_s: int) -> dict[str, Any]:
    """`GET /api/metrics/bus/latency`: all lanes together, and each of them."""
    with bounded():
        buckets = await db.fetch(queries.BUCKETS, {"tenants": tenants, "window_s": window_s})
    lanes: dict[tuple[str, str], Rows] = defaultdict(list)
    for row in buckets:
        lanes[row["service"], row["role"]].append(row)
    return {
        "window_s": window_s,
        "all": {"ended": ends(buckets), "failure_rate": failure_rate(buckets), **latency(buckets)},
        "lanes": [
            {
                "service": service,
                "role": role,
                "ended": ends(rows),
                "failure_rate": failure_rate(rows),
                **latency(rows),
            }
            for (service, role), rows in sorted(lanes.items())
        ],
    }


async def lanes(db: Database, tenants: list[str] | None) -> Rows:
    """Every lane that is known, served or holds something: its depth, its holders, its times."""
    args = {"tenants": tenants, "window_s": WINDOW_S}
    with bounded():
        living = await db.fetch(queries.LIVING, args)
        known = {(row["service"], row["role"]): row for row in await db.fetch(queries.LANES)}
        timed = {
            (row["service"], row["role"]): row for row in (await latencies(db, tenants, WINDOW_S))["lanes"]
        }
        alive = await holders(db)
    served = {lane: [h["holder"] for h in alive if lane in h["lanes"]] for h in alive for lane in h["lanes"]}
    names = set(served) | {f"{r['service']}/{r['role']}/{r['shard']}" for r in living}
    names |= {f"{s}/{r}/0" for s, r in known if not any(name.startswith(f"{s}/{r}/") for name in names)}
    found: Rows = []
    for name in sorted(names):
        service, role, shard = name.split("/")
        here = [r for r in living if (r["service"], r["role"], r["shard"]) == (service, role, int(shard))]
        counts = {status: sum(r["n"] for r in here if r["status"] == status) for status in STATUSES[:3]}
        oldest = min((r["oldest"] for r in here if r["status"] == "queued"), default=None)
        policy = known.get((service, role), {})
        found.append({
            "lane": name, **counts, "oldest_queued_ms": age_ms(oldest), "holders": served.get(name, []),
            "retrying": sum(r["retrying"] for r in here), "paused": policy.get("paused", False),
            "intents": policy.get("intents", []), "times": timed.get((service, role)),
        })  # fmt: skip
    return found


async def failures(db: Database, tenants: list[str] | None, window_s: int) -> Rows:
    """Failed messages in groups of the same code, lane and words, the largest first."""
    with bounded():
        rows = await db.fetch(queries.FAILURES, {"tenants": tenants, "window_s": window_s})
    return [{**shaped(row), "fingerprint": row["fingerprint"][:12]} for row in rows]


async def trace(db: Database, tenants: list[str] | None, trace_id: str) -> dict[str, Any] | None:
    """Every hop of a trace with its times, its events and decisions; None if there is none to see."""
    with bounded():
        rows = await db.fetch(queries.TRACE, {"tenants": tenants, "trace_id": trace_id})
        if not rows:
            return None
        ids = [row["id"] for row in rows]
        events = await db.fetch(queries.TRACE_EVENTS, {"ids": ids})
        decisions = await db.fetch(queries.TRACE_DECISIONS, {"ids": ids})
    ended = [row["done_at"] for row in rows if row["done_at"]]
    started = min(row["created_at"] for row in rows)
    whole = len(ended) == len(rows)
    return {
        "trace_id": trace_id,
        "started_at": utc(started),
        "elapsed_ms": _between(started, max(ended)) if whole else None,
        "messages": hops(rows),
        "events": [shaped(row, "detail") for row in events],
        "decisions": [shaped(row, "arm", "candidates", "assignment") for row in decisions],
    }


def hops(rows: Rows) -> Rows:
    """Messages with their times: in the lane until the (last) claim, at work, and from end to end.

    Work ends when the message is handed on to the one that answers for it (`handed_at`).
    """
    handed = {row["reply_to"]: row["created_at"] for row in rows if row["reply_to"]}
    return [
        {
            **shaped(row),
            "lane": f"{row['service']}/{row['role']}/{row['shard']}",
            "handed_at": handed.get(row["id"]),
            "queued_ms": _between(row["created_at"], row["claimed_at"]),
            "work_ms": _between(row["claimed_at"], handed.get(row["id"]) or row["done_at"]),
            "elapsed_ms": _between(row["created_at"], row["done_at"]),
        }
        for row in rows
    ]


def _between(start: Any, end: Any) -> float | None:
    return None if start is None or end is None else round((end - start).total_seconds() * 1000, 3)


# -- sharing ----------------------------------------------------------------------------------


class Shared:
    """Answers that many viewers ask for at once: one query for all, for a moment.

    The moment is at least `age_s` and twenty times what the query took, so that open dashboards
    never cost more than a twentieth of the database's time.
    """

    def __init__(self, age_s: float = 0.5, keep: int = 256) -> None:
        self.age_s = age_s
        self.keep = keep
        self._answers: dict[Any, tuple[float, Any]] = {}
        self._locks: defaultdict[Any, anyio.Lock] = defaultdict(anyio.Lock)

    async def get(self, key: Any, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The answer for `key`, from memory or from `ask`."""
        async with self._locks[key]:
            until, answer = self._answers.get(key, (0.0, None))
            started = time.monotonic()
            if started < until:
                return answer
            answer = await ask()
            took = time.monotonic() - started
            if len(self._answers) >= self.keep:
                self._answers.clear()
                self._locks.clear()
            self._answers[key] = (time.monotonic() + max(self.age_s, 20 * took), answer)
            return answer
