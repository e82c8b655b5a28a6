"""How soon an idle worker starts a job: from the enqueue's return in the producer to the handler's start."""

from __future__ import annotations

import time

from bench import (
    LABELS,
    LIMIT_S,
    Bench,
    Gate,
    Medians,
    Reading,
    Verdict,
    against_best,
    at_most,
    own,
    percentile,
)
from roster import FLOOR, Peer

COUNT = 300
WARM = 10
"""The first jobs of a process pay for plans and imports; they are not counted, whoever's they are."""
SETTLE_S = 1.5
"""A worker that has just started still has things to do; it shall be idle."""


def pickup(bench: Bench, peer: Peer) -> Reading:
    count = WARM + COUNT
    with bench.database(peer, waking=True) as dsn, bench.runner(peer).worker(dsn, count) as worker:
        time.sleep(SETTLE_S)
        sent = bench.runner(peer).call("pace", dsn, LIMIT_S, count=count, min_ms=20, max_ms=40)["sent"]
        worker.wait("all", LIMIT_S)
        starts = dict(worker.stop()["starts"])
    sent = sent[WARM:]
    waits = [(starts[n] - returned) / 1e6 for n, _, returned in sent]
    from_call = [(starts[n] - called) / 1e6 for n, called, _ in sent]
    return {
        "p50_ms": percentile(waits, 0.5),
        "p99_ms": percentile(waits, 0.99),
        "from_call_p50_ms": percentile(from_call, 0.5),
        "from_call_p99_ms": percentile(from_call, 0.99),
    }


def judge(medians: Medians) -> list[Verdict]:
    found = []
    for figure in ("p50_ms", "p99_ms"):
        found += against_best(medians, figure, 1.0, least=True)
        floor, mine = medians.get("limit", {}).get(figure), own(medians, figure)
        if floor and mine is not None:
            found += at_most(f"{LABELS[figure]} against {FLOOR.name}", mine / floor, 1.2)
    return found


PICKUP = Gate(
    name="pickup",
    title="Latency of an idle worker, from the enqueue's return to the handler's start, at 20 to 40 ms intervals",
    columns={
        "p50_ms": "p50, ms",
        "p99_ms": "p99, ms",
        "from_call_p50_ms": "p50 from the call, ms",
        "from_call_p99_ms": "p99 from the call, ms",
    },
    bar="p50 and p99 at most the best peer's, and 1.2x of a bare psycopg NOTIFY and claim",
    measure=pickup,
    judge=judge,
    limit=lambda bench: pickup(bench, FLOOR),
)
