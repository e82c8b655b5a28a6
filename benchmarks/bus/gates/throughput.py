"""How many no-op jobs a second one worker process completes: from a full queue, and while it is filled."""

from __future__ import annotations

import limit
from bench import (
    Bench,
    Gate,
    Medians,
    Reading,
    Verdict,
    against_best,
    at_least,
    own,
    until_finished,
)
from cluster import held_snapshot
from roster import Peer

HELD_FACTOR = 3.0
HELD_FACTOR_OWN = 10.0
"""COGO handles more, which is harder: a last quarter of half a second says little about a slow decay."""


def drain(bench: Bench, peer: Peer) -> Reading:
    """From the first handler's start to the last completion in the database."""
    count = bench.count(peer)
    with bench.database(peer) as dsn:
        bench.enqueue(peer, dsn, count)
        bench.cluster.admin.execute("CHECKPOINT")
        starts, ended = bench.drain(peer, dsn, count)
    return {"per_s": count / (ended - starts[0]) * 1e9}


def end_to_end(bench: Bench, peer: Peer) -> Reading:
    """From the first enqueue to the last completion, producer and worker being two processes."""
    count = bench.count(peer)
    with bench.database(peer, waking=True) as dsn, bench.runner(peer).worker(dsn, count) as worker:
        sent = bench.enqueue(peer, dsn, count)
        ended = until_finished(peer, dsn, count, worker)
        worker.stop()
    return {"per_s": count / (ended - sent["started"]) * 1e9}


def held(bench: Bench, peer: Peer) -> Reading:
    """First and last quarter of a drain under a held snapshot; for COGO also of a clean drain."""
    first, last = _quarters(bench, peer, pinned=True)
    reading = {"first_per_s": first, "last_per_s": last}
    if peer.is_cogo:
        _, clean = _quarters(bench, peer, pinned=False)
        reading |= {"clean_last_per_s": clean, "last_of_clean": last / clean}
    return reading


def _quarters(bench: Bench, peer: Peer, *, pinned: bool) -> tuple[float, float]:
    count = bench.count(peer, HELD_FACTOR_OWN if peer.is_cogo else HELD_FACTOR)
    with bench.database(peer) as dsn:
        bench.enqueue(peer, dsn, count)
        bench.cluster.admin.execute("CHECKPOINT")
        if pinned:
            with held_snapshot(dsn):
                starts, ended = bench.drain(peer, dsn, count)
        else:
            starts, ended = bench.drain(peer, dsn, count)
    quarter = count // 4
    return quarter / (starts[quarter] - starts[0]) * 1e9, quarter / (ended - starts[-quarter]) * 1e9


def judge_held(medians: Medians) -> list[Verdict]:
    return [
        *against_best(medians, "last_per_s", 1.0, strict=True),
        *at_least("last quarter, of clean", own(medians, "last_of_clean"), 0.95, aim=True),
    ]


def judge_rate(medians: Medians) -> list[Verdict]:
    return [
        *against_best(medians, "per_s", 1.0, strict=True),
        *against_best(medians, "per_s", 1.5, aim=True),
    ]


DRAIN = Gate(
    name="drain",
    title="No-op jobs a second from a full queue, one worker process",
    columns={"per_s": "jobs/s"},
    bar="ahead of every peer (aim: 1.5x the best)",
    measure=drain,
    judge=judge_rate,
    limit=limit.drain,
)
END_TO_END = Gate(
    name="end_to_end",
    title="The same while a producer process enqueues in bulks of 500",
    columns={"per_s": "jobs/s"},
    bar="ahead of every peer (aim: 1.5x the best)",
    measure=end_to_end,
    judge=judge_rate,
)
HELD = Gate(
    name="held",
    title="A drain while another session holds a snapshot with a transaction id: first and last quarter",
    columns={"first_per_s": "first, jobs/s", "last_per_s": "last, jobs/s"},
    bar="in the last quarter ahead of every peer (aim: 95% of a clean drain's; at a steady rate: see pinned)",
    measure=held,
    judge=judge_held,
)
