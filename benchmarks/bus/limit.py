"""What the SQL alone can do here: the same statements on a bare table, driven by pgbench.

No client work, no audit, no policy: an upper bound for anybody who keeps jobs as rows of one table.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from bench import Bench, Reading
from drive import Failed

SCHEMA = """
CREATE SEQUENCE fence;
CREATE TABLE job (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  lane text NOT NULL, payload jsonb NOT NULL, status text NOT NULL DEFAULT 'queued',
  fence bigint NOT NULL DEFAULT 0, attempts integer NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL DEFAULT now(), claimed_at timestamptz, done_at timestamptz
);
CREATE INDEX job_ready ON job (lane, id) WHERE status = 'queued';
"""
BULK = "INSERT INTO job (lane, payload) SELECT 'noop', jsonb_build_object('n', g) FROM generate_series(1, 500) g;"
SINGLE = "INSERT INTO job (lane, payload) VALUES ('noop', '{\"n\": 1}');"
DRAIN = """
WITH c AS MATERIALIZED (
  SELECT id FROM job WHERE lane = 'noop' AND status = 'queued' AND id > :seen
  ORDER BY lane, id LIMIT 500 FOR UPDATE SKIP LOCKED
), u AS (
  UPDATE job SET status = 'claimed', fence = nextval('fence'), claimed_at = now(), attempts = attempts + 1
  FROM c WHERE job.id = c.id RETURNING job.id, job.fence
)
SELECT coalesce(array_agg(id), '{}') AS ids, coalesce(array_agg(fence), '{}') AS fences,
  coalesce(max(id), :seen) AS seen FROM u \\gset
UPDATE job SET status = 'done', fence = 0, done_at = now()
FROM unnest(:ids::bigint[], :fences::bigint[]) AS u(id, fence) WHERE job.id = u.id AND job.fence = u.fence;
"""
CLIENTS = 3


def bulk(bench: Bench) -> Reading:
    count = bench.options.messages // 500
    return {"per_s": _measure(bench, BULK, clients=1, each=count) * 500}


def single(bench: Bench) -> Reading:
    return {"per_s": _measure(bench, SINGLE, clients=8, each=bench.options.messages // 20)}


def drain(bench: Bench) -> Reading:
    """Claims and fenced finishes of 500, three connections; none looks twice at what it has passed."""
    each = -(-bench.options.messages // 500 // CLIENTS)
    return {"per_s": _measure(bench, DRAIN, clients=CLIENTS, each=each, rows=each * CLIENTS * 500) * 500}


def _measure(bench: Bench, script: str, *, clients: int, each: int, rows: int = 0) -> float:
    """Scripts a second, in a database of its own."""
    name = "bare"
    try:
        dsn = bench.cluster.create(name)
        with psycopg.connect(make_conninfo(dsn), autocommit=True) as conn:
            conn.execute(SCHEMA.encode())
            for _ in range(0, rows, 500):
                conn.execute(BULK.encode())
            conn.execute("VACUUM ANALYZE job")
        bench.cluster.admin.execute("CHECKPOINT")
        return pgbench(bench, dsn, {"script": script}, clients=clients, transactions=each)
    finally:
        bench.cluster.drop(name)


def pgbench(
    bench: Bench,
    dsn: str,
    scripts: dict[str, str],
    *,
    clients: int,
    transactions: int | None = None,
    seconds: int | None = None,
) -> float:
    """Transactions a second without the time to connect. Raises Failed."""
    program = bench.cluster.bin / "pgbench"
    if not program.exists():
        raise Failed("there is no pgbench beside the server's binaries")
    amount = ["-t", str(transactions)] if transactions else ["-T", str(seconds)]
    with tempfile.TemporaryDirectory() as folder:
        files: list[str] = []
        for name, text in scripts.items():
            path = Path(folder) / name
            path.write_text(" ".join(text.split()).replace("\\gset ", "\\gset\n"))
            files += ["-f", str(path)]
        command = [
            str(program),
            "-n",
            "-M",
            "prepared",
            "-c",
            str(clients),
            "-j",
            "2",
            "-D",
            "seen=0",
            *amount,
            *files,
            dsn,
        ]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    found = re.search(r"tps = ([\d.]+) \(without", ran.stdout)
    if not found:
        raise Failed(f"pgbench: {' '.join(ran.stderr.split())[-300:]}")
    return float(found[1])
