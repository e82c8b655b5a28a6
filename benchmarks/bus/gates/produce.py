"""How fast one producer process gets jobs in: in bulks, and one by one."""

from __future__ import annotations

import limit
from bench import LIMIT_S, Bench, Gate, Reading, against_best
from roster import Peer

IN_FLIGHT = 8
BULK_FACTOR = 5.0
"""20,000 jobs are in within half a second, most of it the first use of tables and plans."""


def bulk(bench: Bench, peer: Peer) -> Reading:
    count = bench.count(peer, BULK_FACTOR)
    with bench.database(peer) as dsn:
        sent = bench.enqueue(peer, dsn, count)
    return {"per_s": count / (sent["ended"] - sent["started"]) * 1e9}


def single(bench: Bench, peer: Peer) -> Reading:
    """Nobody works; then the same while a worker process is busy with what comes."""
    count = bench.count(peer, 0.2)
    with bench.database(peer) as dsn:
        asleep = _rate(bench, peer, dsn, count)
    with bench.database(peer, waking=True) as dsn, bench.runner(peer).worker(dsn, count) as worker:
        busy = _rate(bench, peer, dsn, count)
        worker.wait("all", LIMIT_S)
        worker.stop()
    return {"per_s": asleep, "busy_per_s": busy}


def _rate(bench: Bench, peer: Peer, dsn: str, count: int) -> float:
    sent = bench.runner(peer).call("single", dsn, LIMIT_S, count=count, in_flight=IN_FLIGHT)
    return count / (sent["ended"] - sent["started"]) * 1e9


BULK = Gate(
    name="bulk",
    title="Jobs enqueued a second in bulks of 500, one bulk after the other",
    columns={"per_s": "jobs/s"},
    bar="1.5x the best peer",
    measure=bulk,
    judge=lambda medians: against_best(medians, "per_s", 1.5),
    limit=limit.bulk,
)
SINGLE = Gate(
    name="single",
    title="Jobs enqueued a second one by one, 8 in flight, one process",
    columns={"per_s": "no worker, jobs/s", "busy_per_s": "with a worker, jobs/s"},
    bar="2x the best peer without a worker",
    measure=single,
    judge=lambda medians: against_best(medians, "per_s", 2.0),
    limit=limit.single,
)
