"""The data home on disk: where its parts lie, its lock, and whether a server answers there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from cogo.core.errors import DataHomeForeign, EmbeddedFailed

PORT: Final = 5432
"""Names the socket's file; no TCP port is opened."""
SOCKET: Final = f".s.PGSQL.{PORT}"
SOCKET_PATH_MAX: Final = 100
"""Bytes. Linux takes 107 and macOS 103, each with the closing NUL."""
UNSAFE: Final = frozenset(",\"'\\")
"""Characters that libpq or Postgres read as syntax in a list of folders."""


class Home(msgspec.Struct, frozen=True):
    """The data home's parts by name. Only the owner of the lock changes anything in it."""

    path: Path

    @property
    def cluster(self) -> Path:
        return self.path / "pg"

    @property
    def draft(self) -> Path:
        """Where initdb works; a complete cluster is renamed to `cluster`, half of one never is."""
        return self.path / "pg.new"

    @property
    def run(self) -> Path:
        """The socket's folder, or a link to a short one elsewhere."""
        return self.path / "run"

    @property
    def log(self) -> Path:
        return self.path / "postgres.log"

    @property
    def socket_dir(self) -> Path:
        return self.run.readlink() if self.run.is_symlink() else self.run

    @property
    def dsn(self) -> str:
        return f"postgresql://cogo@/postgres?host={quote(str(self.socket_dir), safe='/')}&port={PORT}"

    def owner_uid(self) -> int | None:
        """Whose data home it is; None when it does not exist."""
        try:
            return self.path.stat().st_uid
        except OSError:
            return None

    # -- the lock ------------------------------------------------------------------------------

    def try_lock(self) -> int | None:
        """A descriptor that holds the lock; None when another process or its server has it."""
        file = self.path / "pg.lock"
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), file.stat()):
                os.truncate(lock, 0)
                os.write(lock, b"%d\n" % os.getpid())
                return lock
        except BlockingIOError:
            pass
        except OSError:
            os.close(lock)
            raise
        # Taken by another, or of a data home that was removed and made anew in between.
        os.close(lock)
        return None

    def owner_pid(self) -> str:
        """The process that took the lock last, for people to read."""
        try:
            return (self.path / "pg.lock").read_text().strip() or "unknown"
        except OSError:
            return "unknown"

    # -- the server ----------------------------------------------------------------------------

    def has_cluster(self) -> bool:
        return (self.cluster / "PG_VERSION").exists()

    def major(self) -> int | None:
        """The major version that made the cluster; None without a cluster."""
        try:
            return int((self.cluster / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise EmbeddedFailed(
                f"{self.cluster / 'PG_VERSION'} holds no version: the cluster is damaged"
            ) from None

    def ready(self) -> bool:
        """Whether a server of this cluster accepts connections: it says so, and its socket answers."""
        return self._status() == "ready" and self._answers()

    def _status(self) -> str:
        """Line 8 of postmaster.pid: starting, ready, stopping; empty without a server."""
        try:
            lines = (self.cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return ""
        return lines[7].strip() if len(lines) > 7 else ""

    def _answers(self) -> bool:
        """A pid may be a zombie's or another's; a socket answers only if a living process listens."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(self.socket_dir / SOCKET))
            except BlockingIOError:  # its backlog is full: somebody listens
                return True
            except OSError:
                return False
            return True

    # -- what the owner prepares ---------------------------------------------------------------

    def clear(self, uid: int) -> None:
        """Remove what a process that was killed left behind. We hold the lock, so nobody uses it.

        Raises DataHomeForeign when the cluster belongs to another account than the server's.
        """
        shutil.rmtree(self.draft, ignore_errors=True)
        if self.cluster.exists():
            owner = self.cluster.stat().st_uid
            if owner != uid:
                raise DataHomeForeign(
                    f"{self.cluster} belongs to uid {owner}, the server would run as uid {uid}"
                )
            if not self.has_cluster() and any(self.cluster.iterdir()):
                raise EmbeddedFailed(
                    f"{self.cluster} is not a Postgres cluster and not empty",
                    hint="Move it away, or choose another folder with COGO_DATA_DIR.",
                )
        for file in (self.cluster / "postmaster.pid", self.socket_dir / f"{SOCKET}.lock"):
            self._clear_pid_file(file)

    def _clear_pid_file(self, file: Path) -> None:
        """Remove a server's pid file if its pid is now a zombie's or another program's.

        Postgres itself removes one whose pid is free, but takes any other of the same account for a
        running server, and does not start. Ours can't be running (the lock), another's could.
        """
        try:
            pid = int(file.read_text().split("\n", 1)[0])
            os.kill(pid, 0)
        except (OSError, ValueError):
            return  # no file, or Postgres sees by itself that nothing of its own has that pid
        proc = Path("/proc", str(pid))
        if not proc.exists():
            return
        try:
            serves = proc.joinpath("cwd").samefile(self.cluster)
        except OSError:  # a zombie has no folder
            serves = False
        if serves:
            raise EmbeddedFailed(
                f"a Postgres that COGO did not start (pid {pid}) runs on {self.cluster}",
                hint="Stop it with `pg_ctl stop`, or give its address as DATABASE_URL.",
            )
        file.unlink(missing_ok=True)

    def make_run(self, uid: int, gid: int) -> None:
        """Make the socket's folder, 0700 of the server's account; a path that once was is kept.

        A path too long for a socket gets a short folder in the temporary directory, found by link:
        its name can't be guessed and does not depend on TMPDIR of whoever looks for it.
        """
        target = self.run.readlink() if self.run.is_symlink() else None
        if target is None and _fits(self.run):
            self.run.mkdir(mode=0o700, exist_ok=True)
            target = self.run
        elif target is None or not self._ours(target, uid):
            self.run.unlink(missing_ok=True)
            target = Path(tempfile.mkdtemp(prefix=f"cogo-{self._mark()}-", dir=_short_temp()))
            self.run.symlink_to(target)
        if target.stat().st_uid != uid:
            os.chown(target, uid, gid)

    def tidy(self) -> None:
        """Remove a short folder outside the data home; the link stays, so the next one has its name."""
        if self.run.is_symlink():
            with contextlib.suppress(OSError):  # not empty: its server was killed; the next start uses it
                self.run.readlink().rmdir()

    def _ours(self, target: Path, uid: int) -> bool:
        """Whether the link's folder is still this home's own, made again if it is gone."""
        if not target.name.startswith(f"cogo-{self._mark()}-"):  # the home was copied or moved here
            return False
        try:
            target.mkdir(mode=0o700)
        except FileExistsError:
            found = target.lstat()
            return not target.is_symlink() and found.st_uid == uid and found.st_mode & 0o077 == 0
        except OSError:
            return False
        return True

    def _mark(self) -> str:
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:10]


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / SOCKET)) <= SOCKET_PATH_MAX and not UNSAFE & set(str(folder))


def _short_temp() -> Path:
    usual = Path(tempfile.gettempdir()).absolute()
    return usual if _fits(usual / "cogo-0123456789-01234567") else Path("/tmp")  # noqa: S108 (mkdtemp's name is random)
