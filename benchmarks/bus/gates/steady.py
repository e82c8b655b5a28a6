"""COGO under a steady load, clean and while another session pins what vacuum may remove."""

from __future__ import annotations

from contextlib import nullcontext

import psycopg
from psycopg.conninfo import make_conninfo

from bench import LIMIT_S, Bench, Gate, Medians, Reading, Verdict, at_least, at_most, own, percentile
from cluster import held_snapshot
from roster import Peer

from . import statements


def pinned(bench: Bench, peer: Peer) -> Reading:
    clean, held = _steady(bench, peer, pin=False), _steady(bench, peer, pin=True)
    return {
        "clean_per_s": clean["per_s"],
        "held_per_s": held["per_s"],
        "held_of_clean": held["per_s"] / clean["per_s"],
        "clean_claim_buffers": clean["claim_buffers"],
        "held_claim_buffers": held["claim_buffers"],
        "claim_buffers_ratio": held["claim_buffers"] / clean["claim_buffers"],
        "clean_p99_ms": clean["p99_ms"],
        "held_p99_ms": held["p99_ms"],
    }


def _steady(bench: Bench, peer: Peer, *, pin: bool) -> Reading:
    """Messages completed a second while they are offered; buffers are those of the second half."""
    rate, seconds = bench.options.rate, bench.options.seconds
    with bench.database(peer, waking=True) as dsn:
        statements.track(dsn)
        with held_snapshot(dsn) if pin else nullcontext():
            total = rate * seconds
            with bench.runner(peer).worker(dsn, total) as worker:
                half = bench.runner(peer).call("offer", dsn, LIMIT_S, rate=rate, seconds=seconds // 2)
                statements.reset(dsn)
                before = _done(dsn)
                offered = bench.runner(peer).call(
                    "offer", dsn, LIMIT_S, rate=rate, seconds=seconds - seconds // 2
                )
                done = _done(dsn)
                claims, _ = statements.buffers(dsn, statements.CLAIM)
                waits = _pickup_ms(dsn)
                worker.stop()
    window_s = (offered["ended"] - offered["started"]) / 1e9
    assert half["count"] + offered["count"] <= total
    return {
        "per_s": (done - before) / window_s,
        "claim_buffers": claims / max(1, done - before),
        "p99_ms": percentile(waits, 0.99),
    }


def _done(dsn: str) -> int:
    with psycopg.connect(make_conninfo(dsn)) as conn:
        row = conn.execute("SELECT count(*) FROM public.agent_messages WHERE status = 'done'").fetchone()
    assert row is not None
    return int(row[0])


def _pickup_ms(dsn: str) -> list[float]:
    """From each message's creation to its claim, by the database's clock."""
    sql = """SELECT extract(epoch FROM claimed_at - created_at)::float8 * 1000 FROM public.agent_messages
             WHERE claimed_at IS NOT NULL"""
    with psycopg.connect(make_conninfo(dsn)) as conn:
        return [row[0] for row in conn.execute(sql).fetchall()]


def judge(medians: Medians) -> list[Verdict]:
    return [
        *at_least("rate under the pin, of clean", own(medians, "held_of_clean"), 0.95),
        *at_most("claim buffers a message, of clean", own(medians, "claim_buffers_ratio"), 1.3),
    ]


PINNED = Gate(
    name="pinned",
    title="COGO at a steady rate, clean and under a held snapshot",
    columns={
        "clean_per_s": "clean, msg/s",
        "held_per_s": "held, msg/s",
        "clean_claim_buffers": "clean, claim buffers a message",
        "held_claim_buffers": "held, claim buffers a message",
        "held_p99_ms": "held, p99 until claimed, ms",
    },
    bar="95% of the clean rate; claim buffers within 1.3x",
    measure=pinned,
    judge=judge,
    peers=False,
)
