"""How many bytes of WAL a job costs over its whole life, from the bulk enqueue to its completion."""

from __future__ import annotations

import re
import subprocess

from bench import Bench, Gate, Reading, at_most, own
from roster import Peer


def wal(bench: Bench, peer: Peer) -> Reading:
    count = bench.count(peer, 0.5)
    with bench.database(peer) as dsn:
        bench.cluster.admin.execute("CHECKPOINT")
        begin, records = _position(bench)
        bench.enqueue(peer, dsn, count)
        bench.drain(peer, dsn, count)
        end, records_after = _position(bench)
        size = bench.cluster.value(f"SELECT pg_wal_lsn_diff('{end}', '{begin}')::float8")
        plain = size - _page_images(bench, begin, end)
    return {
        "bytes": size / count,
        "plain_bytes": plain / count,
        "records": (records_after - records) / count,
    }


def _position(bench: Bench) -> tuple[str, int]:
    row = bench.cluster.admin.execute(
        "SELECT pg_current_wal_insert_lsn()::text, wal_records FROM pg_stat_wal"
    ).fetchone()
    assert row is not None
    return row


def _page_images(bench: Bench, begin: str, end: str) -> int:
    """Bytes of full-page images between two positions, by pg_waldump (its "Total" line)."""
    bench.cluster.admin.execute("SELECT pg_switch_wal()")  # so that it is all on disk
    folder = bench.cluster.home.cluster / "pg_wal"
    command = [bench.cluster.bin / "pg_waldump", "--stats", "-p", folder, "-s", begin, "-e", end]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    total = re.search(r"^Total\s+\d+\s+(\d+) \[\S+\]\s+(\d+) ", ran.stdout, re.MULTILINE)
    return int(total[2]) if total else 0


WAL = Gate(
    name="wal",
    title="WAL bytes a job over its life: bulk enqueue, claim, completion",
    columns={
        "bytes": "bytes",
        "plain_bytes": "without full-page images",
        "records": "records",
    },
    bar="at most 1,300 bytes with the row kept",
    measure=wal,
    judge=lambda medians: at_most("bytes a message", own(medians, "bytes"), 1300),
)
