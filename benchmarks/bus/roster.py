"""Who is measured, at which version, with which settings, and how each one's table says "done".

A new peer is a row here and a driver in drivers/. Settings are those that its own documentation gives
for throughput with one worker process; where it names a range, the value that was fastest here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Peer:
    """One system under measurement."""

    name: str
    driver: str
    settings: str
    """For the table: how it is configured, in its own words."""
    finished: str
    """SQL, true when {total} jobs are completed: asked from outside, of everybody alike."""
    language: Literal["python", "node", "own"] = "python"
    version: str = ""
    requirements: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 10)
    share: float = 1.0
    """Of the number of messages; rates are per second, so slow peers are measured with fewer."""
    keeps: str = "the row"
    """What remains in the database of a job that is done."""

    @property
    def is_cogo(self) -> bool:
        return self.language == "own"


COGO = Peer(
    name="cogo",
    driver="cogo_driver.py",
    language="own",
    settings="Role(concurrency=2000, events='bench'): one audit event a message, fenced finish, uvloop; "
    "the collector at the thresholds that `cogo serve` sets",
    finished="""SELECT NOT EXISTS (SELECT FROM public.agent_messages WHERE status IN ('queued', 'claimed'))
                AND (SELECT count(*) FROM public.agent_messages WHERE status = 'done') = {total}""",
    keeps="the row and an audit event",
)

COGO_FAIR = replace(COGO, name="cogo, fair lane", driver="cogo_fair_driver.py")

UVLOOP = "uvloop==0.23.0"
PSYCOPG = ("psycopg[binary]==3.3.9", "psycopg-pool==3.3.3")

PEERS = (
    Peer(
        name="procrastinate",
        driver="procrastinate_driver.py",
        version="3.10.0",
        requirements=("procrastinate==3.10.0", *PSYCOPG, UVLOOP),
        settings="asynchronous task, concurrency 20, pool 10, LISTEN/NOTIFY on, uvloop; it fetches one job a call",
        finished="""SELECT NOT EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))
                    AND (SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded') = {total}""",
        share=0.1,
        keeps="the row and its events",
    ),
    Peer(
        name="pgqueuer",
        driver="pgqueuer_driver.py",
        version="1.6.0",
        requirements=("pgqueuer==1.6.0", "asyncpg==0.32.0", UVLOOP),
        settings="asyncpg, one dequeue loop, batch_size 100, durability `balanced` (log of done jobs unlogged), uvloop",
        finished="SELECT NOT EXISTS (SELECT FROM pgqueuer)",
        keeps="a line in an unlogged log",
    ),
    Peer(
        name="oban",
        driver="oban_driver.py",
        version="0.7.0",
        requirements=("oban==0.7.0", *PSYCOPG, UVLOOP),
        python=(3, 12),
        settings="open-source oban-py, one queue with limit 200, pool 10, orjson, uvloop",
        finished="""SELECT NOT EXISTS (SELECT FROM oban_jobs WHERE state IN ('available', 'executing'))
                    AND (SELECT count(*) FROM oban_jobs WHERE state = 'completed') = {total}""",
        share=0.2,
    ),
    Peer(
        name="awa",
        driver="awa_driver.py",
        version="0.6.9",
        requirements=("awa-pg==0.6.9", UVLOOP),
        settings="queue storage, max_workers 1024, 1 claimer, claim_batch_size 512, pool 24, enqueue_many_copy",
        finished="""SELECT (SELECT coalesce(sum(completed_count), 0) FROM awa.receipt_completion_batches)
                    + (SELECT coalesce(sum(pruned_completed_count), 0) FROM awa.queue_terminal_rollups) >= {total}""",
        share=0.5,
        keeps="receipts, truncated in rotation",
    ),
    Peer(
        name="graphile-worker",
        driver="graphile_worker_driver.mjs",
        language="node",
        version="0.18.0",
        requirements=("graphile-worker@0.18.0",),
        settings="localQueue.size 500, completeJobBatchDelay 0, concurrentJobs 24, maxPoolSize 25",
        finished="SELECT NOT EXISTS (SELECT FROM graphile_worker._private_jobs)",
        keeps="nothing",
    ),
    Peer(
        name="pg-boss",
        driver="pg_boss_driver.mjs",
        language="node",
        version="12.38.0",
        requirements=("pg-boss@12.38.0",),
        settings="batchSize 1000, localConcurrency 2, burstWhenBatchFull, pollingIntervalSeconds 0.5; "
        "queue `notify` where a worker waits (end_to_end, pickup), else off",
        finished="""SELECT NOT EXISTS (SELECT FROM pgboss.job WHERE state < 'completed')
                    AND (SELECT count(*) FROM pgboss.job WHERE state = 'completed') = {total}""",
    ),
)

FLOOR = Peer(
    name="bare psycopg",
    driver="floor_driver.py",
    language="own",
    settings="INSERT with pg_notify in one statement; LISTEN, then one claiming UPDATE on a second connection",
    finished="SELECT true",
)
"""The floor of the pickup latency, not a peer."""

NODE = "24.21.0"
"""Of the npm package, where the PATH has no Node.js that the peers support."""
NODE_MIN = (22, 18)
