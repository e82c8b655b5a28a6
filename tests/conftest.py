"""One throw-away Postgres for the session, one fresh migrated database for each test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import anyio
import psycopg
import pytest
from anyio.from_thread import start_blocking_portal
from databases import Databases, create, drop
from psycopg.conninfo import make_conninfo

from cogo.core import migrate
from cogo.core.bus import Bus
from cogo.core.db import Database
from cogo.core.embedded import own_or_share
from cogo.core.listener import Listener, NotifyTransport
from cogo.core.settings import Settings

TEMPLATE = f"cogo_template_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What was logged goes from the workers to the terminal as UTF-8, also where a test logs half a character."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> None:
    """No setting of the developer's shell reaches a test."""
    for name in list(os.environ):
        if name.startswith(("COGO_", "SUPABASE_", "AGENT_", "BUS_", "INGRESS_")) and "TEST" not in name:
            del os.environ[name]
    os.environ.pop("DATABASE_URL", None)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server_dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A superuser's DSN: COGO_TEST_DATABASE_URL, or the embedded Postgres (COGO_TEST_PG_BIN) in a temp folder."""
    if given := os.environ.get("COGO_TEST_DATABASE_URL"):
        yield given
        return
    home = tmp_path_factory.mktemp("postgres")
    for folder in (home, *home.parents):
        if folder.owner() == home.owner() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)  # ours alone: pytest makes them 0700
    pg_bin = os.environ.get("COGO_TEST_PG_BIN")
    settings = Settings(data_dir=home / "home", pg_bin=Path(pg_bin) if pg_bin else None)
    with start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(own_or_share(settings)) as embedded:
            with psycopg.connect(embedded.dsn, autocommit=True) as conn:
                for setting in ("fsync", "full_page_writes"):  # nobody pulls the plug on a throw-away
                    conn.execute(f"ALTER SYSTEM SET {setting} = off")
                conn.execute("SELECT pg_reload_conf()")
            yield embedded.dsn


@pytest.fixture(scope="session")
def template(server_dsn: str) -> str:
    """A migrated database that is only ever copied."""
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")
        conn.execute(f"CREATE DATABASE {TEMPLATE}")
        conn.execute(f"ALTER DATABASE {TEMPLATE} SET search_path = public")
    anyio.run(migrate.apply, make_conninfo(server_dsn, dbname=TEMPLATE))
    return TEMPLATE


@pytest.fixture
def empty_dsn(server_dsn: str) -> Iterator[str]:
    """A database without a schema."""
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        name = create(conn, "template1")
        yield make_conninfo(server_dsn, dbname=name)
        drop(conn, name)


@pytest.fixture(scope="session")
def databases(server_dsn: str, template: str) -> Iterator[Databases]:
    with Databases(server_dsn, template).open() as found:
        yield found


@pytest.fixture
def dsn(databases: Databases) -> Iterator[str]:
    """A fresh migrated database."""
    name, found = databases.take()
    yield found
    databases.give_back(name)


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    db = Database(dsn, application="test")
    await db.open()
    yield db
    await db.close()


@pytest.fixture
async def bus(database: Database) -> Bus:
    """A bus without a listener: it polls."""
    return Bus(database, poll_s=0.02)


@pytest.fixture
async def listener(dsn: str) -> Listener:
    """Not running yet: start `listener.run` in the test's own task group."""
    return Listener(NotifyTransport(dsn, "test:listener"))
