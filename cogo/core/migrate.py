"""The schema: numbered migrations in lines, and functions that are re-applied when they change.

The line `cogo` is sql/migrations with sql/functions beside it; a plugin brings a line of its own.
Migrations only go up. One advisory lock lets many processes call `apply` at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .._version import __version__
from .db import connect
from .errors import SchemaAhead, SchemaBehind

if TYPE_CHECKING:
    import psycopg

MAIN_LINE = "cogo"
_LOCK = 4_702_111_234_202_611  # any constant that nobody else uses
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_MIN_CODE = re.compile(r"^-- min-code: *(\S+)", re.MULTILINE)

_BOOTSTRAP = """
CREATE SCHEMA IF NOT EXISTS cogo;
CREATE TABLE IF NOT EXISTS cogo.migrations (
  line text NOT NULL, number integer NOT NULL, name text NOT NULL, checksum text NOT NULL,
  min_code text, applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (line, number));
CREATE TABLE IF NOT EXISTS cogo.functions (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton), checksum text NOT NULL, version text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now());
"""


class Migration(msgspec.Struct, frozen=True, order=True):
    """One up-only step of a line."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def min_code(self) -> str | None:
        """The oldest COGO that may run on the schema after this step."""
        found = _MIN_CODE.search(self.sql)
        return found[1] if found else None


def sql_root() -> Traversable:
    """sql/ as the wheel carries it (cogo/sql), or of the checkout for an editable install."""
    packaged = files("cogo").joinpath("sql")
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql"


def read_line(folder: Traversable) -> list[Migration]:
    """The migrations of a folder in order of their numbers; other files are ignored."""
    return sorted(
        Migration(int(match[1]), entry.name, entry.read_text("utf-8"))
        for entry in folder.iterdir()
        if (match := _NAME.fullmatch(entry.name))
    )


def read_functions() -> list[str]:
    """The texts of sql/functions/*.sql by file name."""
    entries = sorted(sql_root().joinpath("functions").iterdir(), key=lambda entry: entry.name)
    return [entry.read_text("utf-8") for entry in entries if entry.name.endswith(".sql")]


def lines(plugins: Mapping[str, Traversable] | None = None) -> dict[str, list[Migration]]:
    """Every line by its name, ours first."""
    found = {MAIN_LINE: read_line(sql_root().joinpath("migrations"))}
    found.update({name: read_line(folder) for name, folder in (plugins or {}).items()})
    return found


async def apply(dsn: str, plugins: Mapping[str, Traversable] | None = None) -> list[str]:
    """Bring the database to the newest schema; the names of what was applied.

    Each migration is a transaction of its own, so a failure leaves the earlier ones in place.
    """
    done: list[str] = []
    async with await connect(dsn, "cogo:migrate") as conn:
        await conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        await conn.execute("SET client_min_messages = warning")
        await conn.execute(_BOOTSTRAP)
        for line, steps in lines(plugins).items():
            for step in await _missing(conn, line, steps):
                await _apply_one(conn, line, step)
                done.append(f"{line}/{step.name}")
        done += await _apply_functions(conn)
    return done


async def check(conn: psycopg.AsyncConnection[Any], plugins: Mapping[str, Traversable] | None = None) -> None:
    """Raise SchemaBehind or SchemaAhead when this code cannot run on that schema."""
    row = await (await conn.execute("SELECT to_regclass('cogo.migrations') IS NOT NULL")).fetchone()
    if row is None or not row[0]:
        raise SchemaBehind("this database has no COGO schema yet")
    for line, steps in lines(plugins).items():
        missing = await _missing(conn, line, steps)
        if missing:
            raise SchemaBehind(
                f"{len(missing)} migration(s) are not applied, the first is {line}/{missing[0].name}"
            )
    await _refuse_newer(conn)
    if await _functions_differ(conn):
        raise SchemaBehind("the functions in schema cogo are older than this version's")


async def _missing(conn: psycopg.AsyncConnection[Any], line: str, steps: list[Migration]) -> list[Migration]:
    rows = await conn.execute("SELECT number FROM cogo.migrations WHERE line = %s", (line,))
    applied = {row[0] for row in await rows.fetchall()}
    return [step for step in steps if step.number not in applied]


async def _apply_one(conn: psycopg.AsyncConnection[Any], line: str, step: Migration) -> None:
    async with conn.transaction():
        await conn.execute(step.sql.encode())
        await conn.execute(
            "INSERT INTO cogo.migrations (line, number, name, checksum, min_code) VALUES (%s, %s, %s, %s, %s)",
            (line, step.number, step.name, step.checksum, step.min_code),
        )


def functions_checksum() -> str:
    return hashlib.sha256("\0".join(read_functions()).encode()).hexdigest()


async def _functions_differ(conn: psycopg.AsyncConnection[Any]) -> bool:
    """True when ours are newer. A newer COGO's functions stay: it keeps old callers working."""
    row = await (await conn.execute("SELECT checksum, version FROM cogo.functions")).fetchone()
    if row is None:
        return True
    return bool(row[0] != functions_checksum() and _version(row[1]) <= _version(__version__))


async def _apply_functions(conn: psycopg.AsyncConnection[Any]) -> list[str]:
    if not await _functions_differ(conn):
        return []
    async with conn.transaction():
        for text in read_functions():
            await conn.execute(text.encode())
        await conn.execute(
            "INSERT INTO cogo.functions (checksum, version) VALUES (%s, %s) ON CONFLICT (singleton) DO UPDATE"
            " SET checksum = excluded.checksum, version = excluded.version, applied_at = now()",
            (functions_checksum(), __version__),
        )
    return ["cogo/functions"]


async def _refuse_newer(conn: psycopg.AsyncConnection[Any]) -> None:
    rows = await conn.execute("SELECT min_code, name FROM cogo.migrations WHERE min_code IS NOT NULL")
    for needed, name in await rows.fetchall():
        if _version(needed) > _version(__version__):
            raise SchemaAhead(f"{name} needs COGO {needed} or newer; this is {__version__}")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
