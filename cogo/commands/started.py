"""A server for a command that needs one: those that run are used, what they lack is started beside them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec
from anyio import to_thread

from cogo.commands import local
from cogo.commands.local import Server
from cogo.core import errors

if TYPE_CHECKING:
    from cogo.core.settings import Settings

READY_MAX_S = 90.0
STOP_MAX_S = 30.0
POLL_S = 0.05
_ERROR = re.compile(r"^error\[(\w+)\]: (.*)\n  hint: (.*)$", re.MULTILINE)


class Started(msgspec.Struct):
    """The server to talk to, and the process if this command started one."""

    server: Server
    process: subprocess.Popen[bytes] | None
    log: Path


@asynccontextmanager
async def serving(
    settings: Settings, roles: Sequence[str], *, route: str, keep: bool
) -> AsyncIterator[Started]:
    """Live, ready servers of this data home that have all of these roles between them.

    Starts one `cogo serve` with what is missing and stops it afterwards unless `keep`. Gives the
    server whose routes include those of role `route`. Raises what the new server ended with.
    """
    from cogo.core.settings import make_data_home

    log = make_data_home(settings) / "serve.log"
    there = {role for server in local.servers(settings) for role in server.roles}
    missing = [role for role in roles if role not in there]
    written = size_of(log)
    process = start(settings, missing, log) if missing else None
    try:
        await until_ready(settings, process, log, written)
        server = local.with_route(settings, route)
        if server is None:
            raise errors.NoServer(f"no server of this data home has the routes of role {route!r}")
        yield Started(server, process, log)
    finally:
        if process is not None and not keep:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(stop, process)


def start(settings: Settings, roles: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """`cogo serve` with these roles in a session of its own, so that Ctrl-C ends it only through us."""
    command = [sys.executable, "-m", "cogo", "serve", "--roles", ",".join(roles)]
    if not free(settings.host, settings.port):
        command += ["--port", "0"]
    log.touch(mode=0o600)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
            env=os.environ | {"COGO_DATA_DIR": str(settings.data_dir)},
        )


def size_of(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def free(host: str, port: int) -> bool:
    """Whether the port can be listened on now."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


async def until_ready(
    settings: Settings, process: subprocess.Popen[bytes] | None, log: Path, written: int
) -> None:
    """Return when the new process, or else every live one, answers that it is ready."""
    deadline = time.monotonic() + READY_MAX_S
    while True:
        if process is not None and process.poll() is not None:
            raise ended(process.returncode, log, written)
        waited_for = [s for s in local.servers(settings) if process is None or s.pid == process.pid]
        if waited_for and all([await to_thread.run_sync(is_ready, settings, s.pid) for s in waited_for]):
            return
        if time.monotonic() > deadline:
            raise errors.NoServer(f"no server was ready within {READY_MAX_S:g} s", hint=f"Read {log}.")
        await anyio.sleep(POLL_S)


def is_ready(settings: Settings, pid: int) -> bool:
    from http import HTTPStatus

    from cogo.http.probe import probe
    from cogo.http.unix import socket_path

    try:
        return probe(socket_path(settings.data_dir, pid))[0] == HTTPStatus.OK
    except OSError:
        return False


def ended(code: int, log: Path, since: int) -> errors.CogoError:
    """The error that a server printed before it ended, as the error it was."""
    text = log.read_bytes()[since:].decode(errors="replace")
    if found := _ERROR.findall(text):
        name, detail, hint = found[-1]
        return errors.CODES.get(name, errors.CogoError)(detail, hint=hint)
    last = text.strip().splitlines()[-1:] or ["it wrote nothing"]
    return errors.NoServer(f"`cogo serve` ended with exit code {code}: {last[0]}", hint=f"Read {log}.")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL when it does not drain in time."""
    process.terminate()
    try:
        process.wait(STOP_MAX_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
