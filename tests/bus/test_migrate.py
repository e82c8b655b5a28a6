"""Proves that the schema is the same whichever way a database came to it, and that code checks it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

from cogo.core import migrate, model
from cogo.core.db import connect
from cogo.core.errors import BusUnavailable, SchemaAhead, SchemaBehind

FINGERPRINT = """
SELECT 'column', c.oid::regclass::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull::text,
       pg_get_expr(d.adbin, d.adrelid), a.attidentity::text || a.attgenerated::text
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
  WHERE c.relnamespace = ANY (%(ours)s::regnamespace[]) AND c.relkind IN ('r', 'v')
UNION ALL SELECT 'table', oid::regclass::text, relkind::text, relpersistence::text, relrowsecurity::text,
       array_to_string(reloptions, ','), array_to_string(relacl, ',')
  FROM pg_class WHERE relnamespace = ANY (%(ours)s::regnamespace[]) AND relkind <> 't'
UNION ALL SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid), '', '', '', ''
  FROM pg_index WHERE indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = ANY (%(ours)s::regnamespace[]))
UNION ALL SELECT 'constraint', conrelid::regclass::text, conname::text, pg_get_constraintdef(oid), '', '', ''
  FROM pg_constraint WHERE connamespace = ANY (%(ours)s::regnamespace[])
UNION ALL SELECT 'function', oid::regprocedure::text, pg_get_functiondef(oid), array_to_string(proacl, ','), '', '', ''
  FROM pg_proc WHERE pronamespace = ANY (%(ours)s::regnamespace[])
UNION ALL SELECT 'trigger', tgrelid::regclass::text, pg_get_triggerdef(oid), '', '', '', ''
  FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'policy', polrelid::regclass::text, polname::text, polcmd::text, pg_get_expr(polqual, polrelid),
       pg_get_expr(polwithcheck, polrelid), polroles::regrole[]::text FROM pg_policy
ORDER BY 1, 2, 3
"""


async def fingerprint(dsn: str) -> list[Any]:
    """All that makes up the schema: tables, indexes, constraints, functions, triggers, policies, grants."""
    async with await connect(dsn, "test") as conn:
        cursor = await conn.execute(FINGERPRINT, {"ours": ["public", "cogo"]})
        return await cursor.fetchall()


async def execute(dsn: str, sql: str) -> None:
    async with await connect(dsn, "test") as conn:
        await conn.execute(sql.encode())


async def check(dsn: str, plugins: Any = None) -> None:
    async with await connect(dsn, "test") as conn:
        await migrate.check(conn, plugins)


async def test_applying_again_changes_nothing(empty_dsn: str) -> None:
    first = await migrate.apply(empty_dsn)
    assert first[0] == "cogo/0001_bus.sql"
    assert first[-1] == "cogo/functions"
    fresh = await fingerprint(empty_dsn)
    assert len(fresh) > 100
    assert await migrate.apply(empty_dsn) == []
    await execute(empty_dsn, "UPDATE cogo.functions SET checksum = 'of an older version', version = '0.0.1'")
    assert await migrate.apply(empty_dsn) == ["cogo/functions"]
    assert await fingerprint(empty_dsn) == fresh
    await check(empty_dsn)


async def test_many_processes_migrate_at_once(empty_dsn: str, dsn: str) -> None:
    done: list[str] = []

    async def apply() -> None:
        done.extend(await migrate.apply(empty_dsn))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(apply)
    assert len(done) == len(set(done)) == len(migrate.lines()["cogo"]) + 1
    assert await fingerprint(empty_dsn) == await fingerprint(dsn)


async def test_code_refuses_a_schema_that_is_behind(empty_dsn: str, dsn: str) -> None:
    with pytest.raises(SchemaBehind, match="no COGO schema yet"):
        await check(empty_dsn)
    await check(dsn)
    await execute(dsn, "UPDATE cogo.functions SET checksum = 'older', version = '0.0.1'")
    with pytest.raises(SchemaBehind, match="functions"):
        await check(dsn)
    await execute(dsn, "DELETE FROM cogo.migrations WHERE number = 1")
    with pytest.raises(
        SchemaBehind, match=r"1 migration\(s\) are not applied, the first is cogo/0001_bus.sql"
    ):
        await check(dsn)


async def test_code_runs_on_a_newer_schema_unless_that_says_no(dsn: str) -> None:
    newer = "INSERT INTO cogo.migrations (line, number, name, checksum, min_code) VALUES ('cogo', 9001, '9001_new.sql', 'x', {})"
    await execute(dsn, newer.format("NULL"))
    await execute(dsn, "UPDATE cogo.functions SET checksum = 'newer', version = '999.0.0'")
    await check(dsn)
    before = await fingerprint(dsn)
    assert await migrate.apply(dsn) == [], "newer functions keep old callers working; they stay"
    assert await fingerprint(dsn) == before
    await execute(dsn, "UPDATE cogo.migrations SET min_code = '999.1' WHERE number = 9001")
    with pytest.raises(SchemaAhead, match=r"9001_new.sql needs COGO 999.1"):
        await check(dsn)


async def test_plugins_bring_lines_of_their_own(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "0001_first.sql").write_text("-- Why.\n-- min-code: 0.0.1\nCREATE TABLE public.one (id int);")
    (tmp_path / "0002_second.sql").write_text("-- Why.\nCREATE TABLE public.two (id int); SELECT 1/0;")
    (tmp_path / "notes.txt").write_text("not a migration")
    plugins = {"mine": tmp_path}
    with pytest.raises(
        SchemaBehind, match=r"2 migration\(s\) are not applied, the first is mine/0001_first.sql"
    ):
        await check(dsn, plugins)
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate.apply(dsn, plugins)
    with pytest.raises(SchemaBehind, match=r"mine/0002_second\.sql"):  # whole or not at all, and in order
        await check(dsn, plugins)
    assert not [entry for entry in await fingerprint(dsn) if entry[1] == "two"]
    (tmp_path / "0002_second.sql").write_text("-- Why.\nCREATE TABLE public.two (id int);")
    assert await migrate.apply(dsn, plugins) == ["mine/0002_second.sql"]
    await check(dsn, plugins)


async def test_a_database_that_is_away_has_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(BusUnavailable):
        await migrate.apply(f"host={tmp_path} dbname=x")


async def test_python_and_postgres_agree_on_names(dsn: str) -> None:
    """The patterns of model.py are those of the insert trigger, and the states those of the CHECK."""
    found = {entry[2]: entry[3] for entry in await fingerprint(dsn) if entry[0] == "constraint"}
    assert set(re.findall(r"'(\w+)'::text", found["agent_messages_status"])) == set(model.STATUSES)
    (rules,) = [text for text in migrate.read_functions() if "FUNCTION cogo.unsound" in text]
    # Postgres is slow at bounded repetition: there the length stands apart.
    names = (("service", model.NAME_PATTERN), ("role", model.NAME_PATTERN), ("tenant", model.TENANT_PATTERN))
    for column, ours in names:
        theirs = ours.replace("{0,62}", "*")
        assert f"WHEN p_{column} !~ '{theirs}' OR length(p_{column}) > 63 THEN" in rules
    assert f"p_shard NOT BETWEEN 0 AND {model.SHARD_MAX}" in rules
    whole = model._KEY.pattern
    assert whole.count(model.NAME_PATTERN.strip("^$")) == 2
    assert model.TENANT_PATTERN.strip("^$") in whole


async def test_indexes_name_no_column_that_a_claim_or_a_finish_changes(dsn: str) -> None:
    """Except in their predicates: dispatch must not touch the entries of rows that are done.

    `inflight` is ordered by fence: its entries live exactly as long as one.
    """
    changing = {"claimed_at", "done_at", "error", "attempts", "result_snippet", "result_url", "fence",
                "holder_epoch", "deadline_at", "awaits", "status"}  # fmt: skip
    for entry in await fingerprint(dsn):
        if entry[0] == "index" and "agent_messages" in entry[1] and "agent_messages_inflight" not in entry[2]:
            keys = re.findall(r"USING \w+ \(([^)]*)\)", entry[2])[0]
            assert not changing & set(re.findall(r"\w+", keys)), entry[2]
