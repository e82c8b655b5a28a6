"""What COGO's statements read, by pg_stat_statements: buffers of claims and of finishes."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import make_conninfo

CLAIM = r"cogo\.claim|FOR (NO KEY )?UPDATE (OF \w+ )?SKIP LOCKED"
FINISH = r"cogo\.finish|fence = 0"

RESET = "SELECT pg_stat_statements_reset()"
SUM = """
SELECT coalesce(sum(shared_blks_hit + shared_blks_read), 0)::float8, coalesce(sum(calls), 0)::float8
FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
WHERE d.datname = current_database() AND s.toplevel AND s.query ~ %s AND s.query !~ 'pg_stat_statements'
"""


def track(dsn: str) -> None:
    """Count the statements of this database from now on, with what the functions in them do."""
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(make_conninfo(dsn), autocommit=True) as conn:
        conn.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        conn.execute(f"ALTER DATABASE {name} SET pg_stat_statements.track = 'all'".encode())


def reset(dsn: str) -> None:
    with psycopg.connect(make_conninfo(dsn), autocommit=True) as conn:
        conn.execute(RESET)


def buffers(dsn: str, pattern: str) -> tuple[float, float]:
    """Shared buffers that the statements of this pattern touched, and how often they were called.

    Only statements at the top level are added up: they contain what functions do inside.
    """
    with psycopg.connect(make_conninfo(dsn), autocommit=True) as conn:
        row = conn.execute(SUM.encode(), (pattern,)).fetchone()
    if row is None or not row[1]:
        raise RuntimeError(f"pg_stat_statements saw no statement like {pattern}")
    return row
