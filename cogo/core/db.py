"""Connections to Postgres: one pool per process, and what every statement needs around it."""

from __future__ import annotations

import select
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
import msgspec
import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from .errors import BusUnavailable

Connection: TypeAlias = "psycopg.AsyncConnection[DictRow]"
Params: TypeAlias = "Sequence[Any] | Mapping[str, Any]"

# A half-open link must be noticed in seconds; the kernel's default is two hours.
_KEEPALIVE = "keepalives=1 keepalives_idle=3 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=8000"
_IDLE_CHECK_S = 1.0
_RENEW_EVERY_S = 1.0
_AWAY = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, PoolClosed)
# Server-side conditions that psycopg files under OperationalError, yet the database is there.
_THERE = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.QueryCanceled,
)

set_json_dumps(msgspec.json.encode)
set_json_loads(msgspec.json.decode)


def json(value: Any) -> Jsonb:
    """Mark a Python value as a jsonb parameter."""
    return Jsonb(value)


def conninfo(dsn: str, application: str) -> str:
    """The DSN with our application name (63 bytes at most) and keepalives."""
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    extra: dict[str, Any] = dict(part.split("=") for part in _KEEPALIVE.split())
    extra |= {"application_name": application[:63], "connect_timeout": 10}
    return psycopg.conninfo.make_conninfo("", **(extra | given))


async def connect(dsn: str, application: str) -> psycopg.AsyncConnection[Any]:
    """A connection of its own, in autocommit; raises BusUnavailable."""
    with translated():
        return await psycopg.AsyncConnection.connect(conninfo(dsn, application), autocommit=True)


class translated:  # noqa: N801 (reads as a word in a with statement)
    """Turns the driver's "the database is away" errors into BusUnavailable."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _tb: object) -> None:
        if isinstance(error, _AWAY) and not isinstance(error, _THERE):
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise BusUnavailable(f"the database does not answer: {reason[0]}") from error


class Database:
    """What roles and routes use for SQL. Rows are dicts; jsonb comes decoded by msgspec.

    Every method raises BusUnavailable when the database is away; other database errors pass.
    """

    def __init__(self, dsn: str, *, application: str = "cogo", pool_min: int = 1, pool_max: int = 8) -> None:
        self.dsn = dsn
        self.application = application
        self._idle_since: weakref.WeakKeyDictionary[Connection, float] = weakref.WeakKeyDictionary()
        self._renewed_at = 0.0
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            conninfo(dsn, application),
            kwargs={"autocommit": True, "row_factory": dict_row},
            min_size=pool_min,
            max_size=pool_max,
            max_idle=60.0,
            timeout=10.0,
            reconnect_timeout=0.5,
            reconnect_failed=self._reconnect,
            check=self._check,
            reset=self._note_idle,
            open=False,
            name=application,
        )

    async def open(self) -> None:
        """Open the pool; connections are made as they are needed."""
        await self._pool.open()

    async def close(self) -> None:
        """Close every connection; safe to call twice."""
        await self._pool.close(timeout=5.0)

    async def _note_idle(self, conn: Connection) -> None:
        self._idle_since[conn] = time.monotonic()

    async def _check(self, conn: Connection) -> None:
        # A restart of Postgres leaves dead connections in the pool. A round trip before each use would
        # cost more than the statement, so only those are asked that lay idle, or that have something to
        # say: the server's farewell.
        idle_s = time.monotonic() - self._idle_since.pop(conn, 0.0)
        if idle_s > _IDLE_CHECK_S or _readable(conn):
            try:
                with anyio.fail_after(5.0):
                    await AsyncConnectionPool.check_connection(conn)
            except Exception:
                await self._renew()
                raise

    async def _renew(self) -> None:
        """Where one connection is lost, its siblings are: the pool, left alone, would find them one by
        one, and pause 1, 2, 4 … s after each.
        """
        if time.monotonic() - self._renewed_at > _RENEW_EVERY_S and not self._pool.closed:
            self._renewed_at = time.monotonic()
            await self._pool.drain()

    async def _reconnect(self, pool: AsyncConnectionPool[Connection]) -> None:
        # The pool has given up for now, and would try again when the next client asks; those who wait
        # already would wait in vain.
        if not pool.closed:
            await pool.check()  # lets it grow again

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit."""
        with translated():
            async with self._pool.connection() as conn:
                try:
                    yield conn
                except (psycopg.OperationalError, psycopg.InterfaceError):
                    if conn.broken:
                        await self._renew()
                    raise

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection, None]:
        """A connection inside BEGIN .. COMMIT; an exception rolls back."""
        async with self.connection() as conn, conn.transaction():
            yield conn

    async def fetch(self, sql: str, params: Params = ()) -> list[dict[str, Any]]:
        """All rows."""
        async with self.connection() as conn:
            cursor = await conn.execute(sql, params)
            return await cursor.fetchall()

    async def fetch_one(self, sql: str, params: Params = ()) -> dict[str, Any] | None:
        """The first row, or None."""
        async with self.connection() as conn:
            cursor = await conn.execute(sql, params)
            return await cursor.fetchone()

    async def fetch_value(self, sql: str, params: Params = ()) -> Any:
        """The first column of the first row, or None."""
        row = await self.fetch_one(sql, params)
        return None if row is None else next(iter(row.values()))

    async def execute(self, sql: str, params: Params = ()) -> int:
        """Run a statement; the number of rows it touched."""
        async with self.connection() as conn:
            cursor = await conn.execute(sql, params)
            return cursor.rowcount

    async def copy_in(self, copy_sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """`COPY table (columns) FROM STDIN` with these rows; how many."""
        sent = 0
        async with self.connection() as conn, conn.cursor() as cursor:
            async with cursor.copy(copy_sql) as copy:
                for row in rows:
                    await copy.write_row(row)
                    sent += 1
        return sent


def _readable(conn: Connection) -> bool:
    """True when bytes, or the end, wait to be read on a connection that nobody uses."""
    if conn.closed:
        return True
    poller = select.poll()
    poller.register(conn.fileno(), select.POLLIN)
    return bool(poller.poll(0))
