"""What COGO's insert triggers cost 32 foreign writers, beside a process that is busy, and one that waits."""

from __future__ import annotations

import statistics

import psycopg
from psycopg.conninfo import make_conninfo

import limit
from bench import UNBOUNDED, Bench, Gate, Reading, at_least, own
from roster import Peer

CLIENTS = 32
WINDOW_S = 4
TURNS = (True, False, False, True)
"""Whether the triggers are enabled: a drift of the machine hits both alike."""
BUSY = {"concurrency": 100, "handle_ms": 50}
"""At most 2,000 messages a second: busy with a backlog, yet not taking the writers' CPU."""
BACKLOG = 2_000 * WINDOW_S * len(TURNS) * 2
INSERT = (
    """INSERT INTO public.agent_messages (service, role, payload) VALUES ('bench', 'noop', '{"n": 1}');"""
)
FILL = """
INSERT INTO public.agent_messages (service, role, payload)
SELECT 'bench', 'noop', '{"n": 1}' FROM generate_series(1, %s)
"""
TRIGGERS = """
SELECT tgname FROM pg_trigger
WHERE tgrelid = 'public.agent_messages'::regclass AND NOT tgisinternal AND tgtype & 4 > 0
"""


def writers(bench: Bench, peer: Peer) -> Reading:
    on, off = _rates(bench, peer, BACKLOG, **BUSY)
    asleep_on, asleep_off = _rates(bench, peer, 0)
    return {
        "on_per_s": on,
        "off_per_s": off,
        "on_of_off": on / off,
        "asleep_on_per_s": asleep_on,
        "asleep_off_per_s": asleep_off,
    }


def _rates(bench: Bench, peer: Peer, backlog: int, **handler: int) -> tuple[float, float]:
    """Single-row INSERTs a second with and without the triggers on INSERT, in turns on one table."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with bench.database(peer, waking=True) as dsn:
        with psycopg.connect(make_conninfo(dsn), autocommit=True) as conn:
            conn.execute(FILL.encode(), (backlog,))
        with bench.runner(peer).worker(dsn, UNBOUNDED, **handler):
            for enabled in TURNS:
                _switch(dsn, enabled=enabled)
                scripts = {"insert": INSERT}
                rates[enabled].append(limit.pgbench(bench, dsn, scripts, clients=CLIENTS, seconds=WINDOW_S))
    return statistics.mean(rates[True]), statistics.mean(rates[False])


def _switch(dsn: str, *, enabled: bool) -> None:
    with psycopg.connect(make_conninfo(dsn), autocommit=True) as conn:
        names = [name for (name,) in conn.execute(TRIGGERS).fetchall()]
        assert names, "no trigger on INSERT: nothing to compare"
        for name in names:
            verb = "ENABLE" if enabled else "DISABLE"
            conn.execute(f"ALTER TABLE public.agent_messages {verb} TRIGGER {name}".encode())


WRITERS = Gate(
    name="writers",
    title="Single-row INSERTs a second of 32 foreign writers, while a COGO process has a backlog, or waits",
    columns={
        "on_per_s": "busy, rows/s",
        "off_per_s": "busy, insert triggers disabled, rows/s",
        "asleep_on_per_s": "waiting, rows/s",
        "asleep_off_per_s": "waiting, insert triggers disabled, rows/s",
    },
    bar="beside a busy process 85% of the rate without insert triggers",
    measure=writers,
    judge=lambda medians: at_least("with triggers, of without", own(medians, "on_of_off"), 0.85),
    peers=False,
)
