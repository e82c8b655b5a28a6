"""Records what happens: a trigger that commits with each change, and JSON lines of those who take part.

The trigger is the truth of what was accepted: a refused or rolled-back statement leaves nothing. It runs AFTER
each row, writes to a table of its own, takes no lock on the bus's rows and changes none, so the product does
what it does without it. Its name sorts before those of the product: what an outsider wrote is recorded before
the triggers of the product put it right.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg
from chaos.history import read
from psycopg.rows import dict_row

SCHEMA = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.history (
  n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL, began timestamptz NOT NULL, tx bigint NOT NULL,
  id bigint NOT NULL, was text, now text, fence_was bigint, fence bigint, by_was text, by text,
  epoch_was bigint, epoch bigint, claimed_at_was timestamptz, deadline_was timestamptz, expires_at timestamptz,
  attempts integer, awaits bigint, reply_to bigint,
  snippet_was text, snippet text, error_was text, error text, application text NOT NULL, door text);
-- What each holder's lease was, and from when on.
CREATE TABLE chaos.leases (epoch bigint NOT NULL, at timestamptz NOT NULL, lease_until timestamptz NOT NULL);
-- Effects of handlers. Unique on purpose of nothing: the checker counts.
CREATE TABLE chaos.effects (message_id bigint NOT NULL, fence bigint NOT NULL, key text NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp());
-- What producers write in the transaction in which they enqueue.
CREATE TABLE chaos.orders (uid text NOT NULL);

CREATE FUNCTION chaos.record() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  o public.agent_messages; m public.agent_messages;
BEGIN
  IF TG_OP <> 'INSERT' THEN o := OLD; END IF;
  IF TG_OP <> 'DELETE' THEN m := NEW; END IF;
  INSERT INTO chaos.history (at, began, tx, id, was, now, fence_was, fence, by_was, by, epoch_was, epoch,
    claimed_at_was, deadline_was, expires_at, attempts, awaits, reply_to,
    snippet_was, snippet, error_was, error, application, door)
  VALUES (clock_timestamp(), now(), pg_current_xact_id()::text::bigint, coalesce(m.id, o.id), o.status, m.status,
    o.fence, m.fence, o.claimed_by, m.claimed_by, o.holder_epoch, m.holder_epoch, o.claimed_at, o.deadline_at,
    coalesce(o.expires_at, m.expires_at), m.attempts, m.awaits, m.reply_to,
    o.result_snippet, m.result_snippet, o.error, m.error, current_setting('application_name'),
    substring(current_query() FROM 'cogo\\.(\\w+)\\('));
  RETURN NULL;
END $$;
CREATE TRIGGER aa_chaos_record AFTER INSERT OR UPDATE OR DELETE ON public.agent_messages
  FOR EACH ROW EXECUTE FUNCTION chaos.record();

CREATE FUNCTION chaos.record_lease() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  INSERT INTO chaos.leases VALUES (NEW.epoch, clock_timestamp(), NEW.lease_until);
  RETURN NULL;
END $$;
CREATE TRIGGER aa_chaos_record AFTER INSERT OR UPDATE ON cogo.bus_holders
  FOR EACH ROW EXECUTE FUNCTION chaos.record_lease();
"""

_TIMES = ("at", "began", "claimed_at_was", "deadline_was", "expires_at")
_COLUMNS = """n, tx, id, was, now, fence_was, fence, by_was, by, epoch_was, epoch, attempts, awaits, reply_to,
  snippet_was, snippet, error_was, error, application, door"""
_SECONDS = ", ".join(f"extract(epoch FROM {name})::float8 AS {name}" for name in _TIMES)
HISTORY = f"SELECT {_COLUMNS}, {_SECONDS} FROM chaos.history ORDER BY n"
LEASES = """SELECT epoch, extract(epoch FROM at)::float8 AS at, extract(epoch FROM lease_until)::float8 AS lease_until
  FROM chaos.leases ORDER BY at"""

TABLES = {
    "messages": """SELECT id, service, role, shard, tenant, payload, status, claimed_by, error, attempts, fence,
        result_snippet, idempotency_key, ordering_key, root_id, reply_to, reply_fence, awaits FROM public.agent_messages""",
    "events": "SELECT id, kind, message_id, tenant, detail FROM public.bus_events",
    "effects": "SELECT message_id, fence, key FROM chaos.effects",
    "holds": """SELECT root_id, tenant, max_cost_usd::float8, spent_cost_usd::float8 FROM cogo.budget_holds""",
    "counts": "SELECT status, sum(n)::bigint AS n FROM cogo.bus_counts GROUP BY status",
}


def install(dsn: str) -> None:
    """Make the tables and the trigger in a database that has the bus."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(SCHEMA.encode())


class Lines:
    """One writer's file of JSON lines. Each line is one write: a kill leaves whole lines, or none."""

    def __init__(self, file: Path, who: str) -> None:
        self.who = who
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, type: str, /, **fields: Any) -> dict[str, Any]:
        """Append a line with the machine's monotonic time, which no jump of a clock touches."""
        line = {"type": type, "t": time.clock_gettime(time.CLOCK_MONOTONIC), "who": self.who, **fields}
        os.write(self._fd, json.dumps(line, ensure_ascii=False).encode() + b"\n")
        return line

    def close(self) -> None:
        os.close(self._fd)


def collect(folder: Path, dsn: str) -> None:
    """Write history.jsonl and tables.jsonl of a run: what its writers wrote, and what the database holds."""
    with psycopg.connect(dsn, row_factory=dict_row) as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")  # history and rows of one moment
        changes = conn.execute(HISTORY.encode()).fetchall()
        leases = conn.execute(LEASES.encode()).fetchall()
        tables = [
            {"table": name, **row}
            for name, sql in TABLES.items()
            for row in conn.execute(sql.encode()).fetchall()
        ]
        offset_s = _wall_offset_s(conn)
    lines = [line for file in sorted((folder / "events").glob("*.jsonl")) for line in read(file)]
    for line in lines:
        line["w"] = line["t"] + offset_s
    lines += [
        {"type": "change", "t": row["at"] - offset_s, "who": row["application"], **row} for row in changes
    ]
    lines += [{"type": "lease", "t": row["at"] - offset_s, **row} for row in leases]
    _dump(folder / "history.jsonl", sorted(lines, key=lambda line: line["t"]))
    _dump(folder / "tables.jsonl", tables)


def _wall_offset_s(conn: psycopg.Connection[Any]) -> float:
    """What to add to monotonic seconds for the database's clock: both run on this machine."""
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    row = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8 AS now").fetchone()
    after = time.clock_gettime(time.CLOCK_MONOTONIC)
    assert row is not None
    return float(row["now"] - (before + after) / 2)


def _dump(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
