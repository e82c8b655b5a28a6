"""What a run is made of: a Postgres that can be killed, processes of COGO, and the links between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psycopg
from chaos.recorder import Lines, install
from chaos.roles import EXIT_CODE, passes
from proxy import Proxy, proxied_tcp

from cogo.core import migrate
from cogo.core.embedded import running_dsn
from cogo.core.errors import CogoError
from cogo.core.settings import load

HERE = Path(__file__).parent
SERVER = HERE.parent / "acceptance" / "embedded_process.py"

CLOCKS = {
    "COGO_LEASE_MS": "2500", "COGO_BEAT_MS": "400", "BUS_POLL_MS": "800", "RECLAIM_AFTER_MS": "4000",
    "COGO_GRACE_S": "2",
}  # fmt: skip
"""Short, so that what waits for a clock in production happens many times in a run."""
LEASE_S = 2.5
RECLAIM_AFTER_S = 4.0
DROPPED = ("COGO_", "SUPABASE_", "AGENT_", "BUS_", "INGRESS_", "METRICS_", "HOLDER_", "DATABASE_URL", "PG")
_FAKETIME = "usr/lib/*/faketime/libfaketime.so.1"


def faketime() -> Path | None:
    """The library that lets a process's clock jump, where it is installed."""
    return next(Path("/").glob(_FAKETIME), None)


def environment() -> dict[str, str]:
    """Ours, without any setting of COGO or libpq."""
    return {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}


class Postgres:
    """The embedded server, in a process of its own that starts it again when it dies."""

    def __init__(self, folder: Path) -> None:
        self._home = folder / "pg"
        self._log = folder / "postgres-owner.log"
        self._owner: subprocess.Popen[bytes] | None = None

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, str(SERVER), str(self._home)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment(), start_new_session=True,
            )  # fmt: skip

    async def start(self) -> str:
        """Start it and return its DSN when it is ready."""
        self._owner = self._spawn()
        with anyio.fail_after(60):
            while b"ready" not in self._log.read_bytes():
                assert self._owner.poll() is None, self._log.read_text()
                await passes(0.02)
        return self.dsn

    @property
    def dsn(self) -> str:
        return running_dsn(load(environ={}, flags={"data_dir": self._home}).settings)

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        return int((self._home / "pg" / "postmaster.pid").read_text().split("\n", 1)[0])

    async def kill(self, down_s: float) -> None:
        """SIGKILL to the postmaster; its owner starts it again `down_s` later, and it recovers."""
        assert self._owner is not None
        self._owner.send_signal(signal.SIGSTOP)
        try:
            os.kill(self.pid, signal.SIGKILL)
            await passes(down_s)
        finally:
            self._owner.send_signal(signal.SIGCONT)
        await self.ready()

    async def ready(self) -> None:
        """Return when it takes connections."""
        with anyio.fail_after(60):
            while True:
                try:
                    conn = await psycopg.AsyncConnection.connect(self.dsn, connect_timeout=2)
                except (psycopg.OperationalError, CogoError):
                    await passes(0.05)
                else:
                    await conn.close()
                    return

    def stop(self) -> None:
        if self._owner is not None:
            self._owner.terminate()
            try:
                self._owner.wait(15)
            except subprocess.TimeoutExpired:
                self._owner.kill()
                self._owner.wait()


class Member:
    """A place for a process: whoever runs there has a name of its own, `p1.1`, and after it `p1.2`."""

    def __init__(
        self,
        name: str,
        dsn: str,
        folder: Path,
        log: Lines,
        options: tuple[str, ...],
        clocks: Mapping[str, str],
    ) -> None:
        self.name = name
        self._dsn = dsn
        self._folder = folder
        self._log = log
        self._options = options
        self._clocks = dict(clocks)
        self._turn = 0
        self.wanted = True
        """Whether somebody starts it again when it ends."""
        self.popen: subprocess.Popen[bytes] | None = None
        self.started: list[subprocess.Popen[bytes]] = []

    @property
    def holder(self) -> str:
        return f"{self.name}.{self._turn}"

    @property
    def clock(self) -> Path:
        return self._folder / f"{self.name}.clock"

    def start(self) -> None:
        self._turn += 1
        env = environment() | CLOCKS | self._clocks
        argv = [
            sys.executable,
            str(HERE / "process.py"),
            self._dsn,
            self.holder,
            str(self._folder),
            *self._options,
        ]
        if (library := faketime()) is not None:
            self.clock.write_text("+0")
            env |= {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self.clock), "FAKETIME_NO_CACHE": "1",
                    "DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
        else:
            argv += ["--clock", str(self.clock)]
        with (self._folder / f"{self.holder}.log").open("wb") as log:
            self.popen = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder,
                start_new_session=True,
            )  # fmt: skip
        self.started.append(self.popen)
        self._log.write("process", stage="started", holder=self.holder, pid=self.popen.pid)

    def jump(self, seconds: float) -> None:
        """Move the wall clock of whoever runs here by so much."""
        draft = self.clock.with_suffix(".draft")
        draft.write_text(f"{seconds:+g}")
        draft.replace(self.clock)

    def signal(self, number: int) -> None:
        if self.popen is not None and self.popen.poll() is None:
            self.popen.send_signal(number)

    def memory_kb(self) -> int | None:
        """What it has in memory; None when nobody runs here."""
        try:
            pages = int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]) if self.popen else None
        except (OSError, IndexError):
            return None
        return None if pages is None else pages * os.sysconf("SC_PAGE_SIZE") // 1024

    async def ended(self, *codes: int) -> None:
        """Wait until it has ended, and record that; one of these exit codes was to be expected."""
        assert self.popen is not None
        while (code := self.popen.poll()) is None:
            await passes(0.02)
        expected = code in codes or not self.is_ready()
        self._log.write(
            "process", stage="exited", holder=self.holder, pid=self.popen.pid, code=code, expected=expected
        )

    async def kill(self) -> None:
        self.wanted = False
        self.signal(signal.SIGKILL)
        await self.ended(-signal.SIGKILL, EXIT_CODE, 0)

    async def leave(self, within_s: float = 20.0, *, hard: bool = False) -> None:
        """SIGTERM, and the drain. One that hangs is killed; `hard`: as any operator would, without blame."""
        self.wanted = False
        self.signal(signal.SIGTERM)
        with anyio.move_on_after(within_s) as scope:
            await self.ended(0, EXIT_CODE, -signal.SIGKILL)
        if scope.cancelled_caught:
            assert self.popen is not None
            self.popen.kill()
            self._log.write("process", stage="exited", holder=self.holder, pid=self.popen.pid, code="hung",
                            expected=hard)  # fmt: skip

    def begin(self) -> None:
        """Have a process here, if there is none."""
        self.wanted = True
        if self.popen is None or self.popen.poll() is not None:
            self.start()

    def is_ready(self) -> bool:
        file = self._folder / "events" / f"{self.holder}.jsonl"
        return file.exists() and b'"ready"' in file.read_bytes()

    async def watch(self) -> None:
        """Start it again when it ends by itself, as any supervisor would."""
        while True:
            await passes(0.1)
            if not self.wanted or self.popen is None or self.popen.poll() is None:
                continue
            # At start the database may be away: that it says so and ends is right.
            right = self.popen.returncode == EXIT_CODE or not self.is_ready()
            self._log.write("process", stage="exited", holder=self.holder, pid=self.popen.pid,
                            code=self.popen.returncode, expected=right)  # fmt: skip
            await passes(0.3)
            if self.wanted:
                self.begin()  # unless a fault has put somebody here meanwhile


class World:
    """All of it. `direct` leads to Postgres itself, `far[name]` through the proxy of that name."""

    def __init__(self, folder: Path, postgres: Postgres, log: Lines) -> None:
        self.folder = folder
        self.postgres = postgres
        self.log = log
        self.direct = postgres.dsn
        self.healed = False
        """Nothing goes wrong on purpose any more."""
        self.proxies: dict[str, Proxy] = {}
        self.members: dict[str, Member] = {}

    def handlers_begun(self) -> int:
        """How many handlers all processes together have begun so far."""
        files = (self.folder / "events").glob("p*.jsonl")
        return sum(file.read_bytes().count(b'"stage": "start"') for file in files)

    def connect(self, application: str, **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(
            self.direct, application_name=application, autocommit=True, connect_timeout=5, **options
        )

    async def aconnect(self, application: str) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(
            self.direct, application_name=application, autocommit=True, connect_timeout=5
        )

    async def patient(self, application: str) -> psycopg.AsyncConnection[Any]:
        """A connection for the run itself, which is asked for until there is one."""
        with anyio.fail_after(20):
            while True:
                try:
                    return await self.aconnect(application)
                except psycopg.OperationalError:
                    await passes(0.1)

    async def all_ready(self) -> None:
        with anyio.fail_after(60):
            while not all(member.is_ready() for member in self.members.values()):
                for member in self.members.values():
                    assert member.popen is not None
                    assert member.popen.poll() is None, f"{member.holder} ended at its start: see its log"
                await passes(0.05)


@asynccontextmanager
async def world(
    folder: Path, log: Lines, *, links: Mapping[str, str | None], seed: int = 0, options: tuple[str, ...] = (),
    clocks: Mapping[str, str] | None = None, prepare: Any = None,
) -> AsyncIterator[World]:  # fmt: skip
    """A fresh Postgres with the bus and the recorder, and the processes of `links`: name -> proxy or None.

    `prepare(conn)` may change the database before anybody starts: that is how bugs are planted.
    """
    postgres = Postgres(folder)
    async with AsyncExitStack() as stack:
        stack.callback(postgres.stop)
        dsn = await postgres.start()
        await migrate.apply(dsn)
        install(dsn)
        found = World(folder, postgres, log)
        if prepare is not None:
            with found.connect("chaos:prepare") as conn:
                prepare(conn)
        for number, name in enumerate(sorted({link for link in links.values() if link})):
            found.proxies[name] = await stack.enter_async_context(proxied_tcp(dsn, seed + number))
        for name, link in links.items():
            leads = found.proxies[link].dsn if link else dsn
            found.members[name] = Member(name, leads, folder, log, options, clocks or {})
        stack.callback(_kill_all, found)
        yield found


def _kill_all(found: World) -> None:
    for member in found.members.values():
        for popen in member.started:
            if popen.poll() is None:
                popen.kill()
                popen.wait()
