"""How many bytes of WAL a job costs over its whole life, from the bulk enqueue to its completion."""

from __future__ import annotations

import re
import subprocess

from bench import Bench, Gate, Reading, at_most, own, until_finished
from drive import Failed
from roster import Peer

WARM = 500
"""Jobs before the count begins: a new database's catalogs log whole pages when they are first read."""


def wal(bench: Bench, peer: Peer) -> Reading:
    count = bench.count(peer, 0.5)
    with bench.database(peer) as dsn:
        bench.enqueue(peer, dsn, WARM)
        bench.drain(peer, dsn, WARM)
        bench.cluster.admin.execute("CHECKPOINT")
        begin = _position(bench)
        bench.enqueue(peer, dsn, count)
        with bench.runner(peer).worker(dsn, count) as worker:
            until_finished(peer, dsn, WARM + count, worker)
        end = _position(bench)
        size = bench.cluster.value(f"SELECT pg_wal_lsn_diff('{end}', '{begin}')::float8")
        records, images = _dumped(bench, begin, end)
    return {"bytes": size / count, "plain_bytes": (size - images) / count, "records": records / count}


def _position(bench: Bench) -> str:
    return str(bench.cluster.value("SELECT pg_current_wal_insert_lsn()::text"))


def _dumped(bench: Bench, begin: str, end: str) -> tuple[int, int]:
    """Records between two positions, and the bytes of their full-page images: pg_waldump's "Total" line."""
    bench.cluster.admin.execute("SELECT pg_switch_wal()")  # so that it is all on disk
    folder = bench.cluster.home.cluster / "pg_wal"
    command = [bench.cluster.bin / "pg_waldump", "--stats", "-p", folder, "-s", begin, "-e", end]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    total = re.search(r"^Total\s+(\d+)\s+\d+ \[\S+\]\s+(\d+) ", ran.stdout, re.MULTILINE)
    if total is None:
        raise Failed(f"pg_waldump says nothing of {begin}..{end}: {ran.stderr.strip()}")
    return int(total[1]), int(total[2])


WAL = Gate(
    name="wal",
    title="WAL bytes a job over its life: bulk enqueue, claim, completion, after 500 jobs that warm the database",
    columns={
        "bytes": "bytes",
        "plain_bytes": "without full-page images",
        "records": "records",
    },
    bar="at most 1,300 bytes with the row kept",
    measure=wal,
    judge=lambda medians: at_most("bytes a message", own(medians, "bytes"), 1300),
)
