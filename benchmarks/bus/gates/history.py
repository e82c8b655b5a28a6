"""What a claim and a finish of COGO read, on an empty table and behind many messages that are done."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import make_conninfo

from bench import Bench, Gate, Medians, Reading, Verdict, at_most, own
from roster import Peer

from . import statements

COUNT = 5_000
CONCURRENCY = 100
FILL = """
INSERT INTO public.agent_messages (service, role, payload, status, claimed_by, claimed_at, done_at, attempts, created_at)
SELECT 'bench', 'noop', '{"n": 1}', 'done', 'history', now(), now(), 1, now() - interval '1 h'
FROM generate_series(1, %s)
"""


def history(bench: Bench, peer: Peer) -> Reading:
    empty, full = _buffers(bench, peer, 0), _buffers(bench, peer, bench.options.done)
    reading = {f"empty_{name}": value for name, value in empty.items()}
    reading |= {f"full_{name}": value for name, value in full.items()}
    reading |= {f"{name}_ratio": full[name] / empty[name] for name in ("claim", "finish")}
    return reading | {"done": float(bench.options.done)}


def _buffers(bench: Bench, peer: Peer, done: int) -> Reading:
    """Buffers for 100 messages, over a drain by a real process that claims 100 at a time."""
    with bench.database(peer) as dsn:
        if done:
            _fill(dsn, done)
        statements.track(dsn)
        bench.enqueue(peer, dsn, COUNT)
        with psycopg.connect(make_conninfo(dsn), autocommit=True) as conn:
            conn.execute("VACUUM ANALYZE public.agent_messages")
        bench.cluster.admin.execute("CHECKPOINT")
        statements.reset(dsn)
        with bench.runner(peer).worker(dsn, COUNT, concurrency=CONCURRENCY) as worker:
            worker.wait("all", 60)
            worker.stop()
        claim, claims = statements.buffers(dsn, statements.CLAIM)
        finish, finishes = statements.buffers(dsn, statements.FINISH)
    scale = 100 / COUNT
    return {
        "claim": claim * scale,
        "finish": finish * scale,
        "claim_size": COUNT / claims,
        "finish_size": COUNT / finishes,
    }


def _fill(dsn: str, done: int) -> None:
    """Rows that are done, by INSERT ... SELECT; without triggers, which have nothing to say to them."""
    with psycopg.connect(make_conninfo(dsn), autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")
        for start in range(0, done, 500_000):
            conn.execute(FILL.encode(), (min(500_000, done - start),))


def judge(medians: Medians) -> list[Verdict]:
    return [
        *at_most("claim buffers, of empty", own(medians, "claim_ratio"), 1.05),
        *at_most("finish buffers, of empty", own(medians, "finish_ratio"), 1.05),
    ]


HISTORY = Gate(
    name="history",
    title="Buffers that COGO reads for 100 messages, empty and behind done rows",
    columns={
        "empty_claim": "claim, empty",
        "full_claim": "claim, full",
        "empty_finish": "finish, empty",
        "full_finish": "finish, full",
        "done": "done rows",
    },
    bar="within 5% of empty",
    measure=history,
    judge=judge,
    peers=False,
)
