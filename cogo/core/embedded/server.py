"""The server as a child process: made by initdb, started, stopped, and never left behind."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from cogo.core.errors import EmbeddedFailed

from .binaries import Account, Binaries, find, service_account
from .home import PORT, Home

if TYPE_CHECKING:
    from cogo.core.settings import Settings

log = logging.getLogger("cogo.embedded")

LOG_MAX: Final = 10_000_000
"""Bytes of postgres.log at which it is emptied, at the next start."""
SLOW_S: Final = 10.0
STOPS: Final = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
"""Fast shutdown, then immediate, then none: each signal and the seconds it is given."""

FLAGS: Final = {
    "listen_addresses": "",  # only the unix socket, in a folder of 0700
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "max_connections": "100",
    # Nobody decodes this WAL, and `logical` would make every update write more of it.
    # `replica` costs little over `minimal` and keeps pg_basebackup possible.
    "wal_level": "replica",
    "jit": "off",  # it costs more than the bus's short statements take
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "cluster_name": "cogo",
}

ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
"""All that the server gets to see: no PG* variable, no key."""


class Means(msgspec.Struct, frozen=True):
    """What a server is started with."""

    binaries: Binaries
    account: Account


def prepare(home: Home, settings: Settings) -> Means:
    """Put the data home in order and find the binaries; blocking file work, we hold the lock.

    Raises NoPostgres, EmbeddedFailed, DataHomeForeign, DataHomeVersion, OSError.
    """
    account = service_account()
    home.clear(account.uid)
    home.make_run(account.uid, account.gid)
    return Means(find(home, settings, account), account)


async def initdb(home: Home, means: Means, lock: int) -> None:
    """Make the cluster: complete or not at all. Raises EmbeddedFailed."""
    home.draft.mkdir(mode=0o700)
    os.chown(home.draft, means.account.uid, means.account.gid)
    with _names(means.account, home.draft) as ((draft,), fds), _log(home) as output:
        argv = [str(means.binaries.folder / "initdb"), "-D", draft, "-U", "cogo", "--encoding=UTF8"]
        argv += ["--auth-local=trust", "--auth-host=reject", "--no-instructions", *_locale(means.binaries)]
        child = _spawn(argv, means.account, output, (lock, *fds))
    try:
        await _end(child)
    finally:
        if child.poll() is None:  # cancelled
            child.kill()
            child.wait()
    if child.returncode:
        raise EmbeddedFailed(f"initdb failed: {_tail(home)}")
    home.draft.rename(home.cluster)
    folder = os.open(home.path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)  # a draft is thrown away at the next start: the new name must outlive a power cut
    os.close(folder)


def _locale(binaries: Binaries) -> list[str]:
    """Unicode that sorts by code point, the same on every machine and in every library version."""
    if binaries.major >= 17:
        return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    return ["--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C"]


class Server:
    """A running `postgres`, our child. Make it on the thread that lives as long as the process."""

    def __init__(self, home: Home, means: Means, lock: int) -> None:
        self._home = home
        self._born = time.monotonic()
        with (
            _names(means.account, home.cluster, home.socket_dir) as ((cluster, run), fds),
            _log(home) as output,
        ):
            argv = [str(means.binaries.folder / "postgres"), "-D", cluster, "-k", run, "-p", str(PORT)]
            argv += [f"--{name}={value}" for name, value in FLAGS.items()]
            self._child = _spawn(argv, means.account, output, (lock, *fds))

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._born

    def last_words(self) -> str:
        """How it ended and the end of its log."""
        return f"exit code {self._child.poll()}: {_tail(self._home)}"

    async def ready(self) -> None:
        """Return when it accepts connections. Recovery may take long: it is waited for while it lives.

        Raises EmbeddedFailed when it ends instead.
        """
        told = False
        while not self._home.ready():
            if not self.running:
                raise EmbeddedFailed(f"the embedded postgres did not start, {self.last_words()}")
            if not told and self.age_s > SLOW_S:
                told = True
                log.warning("the embedded postgres is not ready yet: %s", _tail(self._home))
            await anyio.sleep(0.02)

    async def stop(self) -> None:
        """End it and wait for that; every committed row stays."""
        for number, seconds in STOPS:
            if not self.running:
                return
            self._child.send_signal(number)
            with anyio.move_on_after(seconds):
                await _end(self._child)


async def _end(child: subprocess.Popen[bytes]) -> None:
    """Return when the child has ended. Asking is the one way that works with every loop and system."""
    while child.poll() is None:  # noqa: ASYNC110
        await anyio.sleep(0.01)


# -- starting a child --------------------------------------------------------------------------


@contextmanager
def _names(account: Account, *folders: Path) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """What the account calls these folders, and the descriptors that the child needs for it.

    Another account may not pass through folders above the data home (root's 0700), and opening those
    is not our business. A descriptor is the folder itself, so /proc/self/fd/N works in the server and
    in all that it forks.
    """
    if not account.drop or not Path("/proc/self/fd").is_dir():
        yield tuple(str(folder) for folder in folders), ()
        return
    fds = tuple(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for folder in folders)
    try:
        yield tuple(f"/proc/self/fd/{fd}" for fd in fds), fds
    finally:
        for fd in fds:
            os.close(fd)


@contextmanager
def _log(home: Home) -> Iterator[int]:
    fd = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size > LOG_MAX:
            os.truncate(fd, 0)
        yield fd
    finally:
        os.close(fd)


def _tail(home: Home, lines: int = 4) -> str:
    """The last lines of postgres.log as one."""
    try:
        with home.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            text = file.read().decode(errors="replace")
    except OSError:
        return "there is no log"
    return " | ".join(text.strip().splitlines()[-lines:])


def _spawn(argv: list[str], account: Account, output: int, fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own (Ctrl-C is ours to handle) that ends when we end."""
    options: dict[str, Any] = {**account.popen(), "preexec_fn": _tied()}
    with warnings.catch_warnings():
        # Python 3.12 warns of fork beside threads. What runs in the child before exec takes no lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen(
            argv,
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=fds,
            **options,
        )


def _tied() -> Callable[[], None] | None:
    """What makes Linux send the child a SIGINT (fast shutdown) when we die, even by SIGKILL.

    It runs in the child after the change of user, which would undo it. If we died before, no signal
    comes any more: then the child has another parent, and ends itself.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = _prctl(), os.getpid()

    def tie() -> None:
        if prctl(1, signal.SIGINT, 0, 0, 0) != 0 or os.getppid() != parent:  # 1 = PR_SET_PDEATHSIG
            os._exit(71)

    return tie


@functools.cache
def _prctl() -> Callable[..., int]:
    found = ctypes.CDLL(None, use_errno=True).prctl
    found.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    found.restype = ctypes.c_int
    return found
