"""The `cogo` binary on a data home of its own, as the acceptance tests run it: real processes throughout."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from helpers import eventually

from cogo.commands.local import Server, alive, read
from cogo.core.embedded import running_dsn
from cogo.core.settings import load
from cogo.http.probe import probe
from cogo.http.unix import socket_path

DROPPED = (
    "COGO_",
    "SUPABASE_",
    "AGENT_",
    "BUS_",
    "INGRESS_",
    "METRICS_",
    "HOLDER_",
    "DATABASE_URL",
    "PYTHON",
)
READY_S = 15.0


# A message that names files is past the scan: some are indexed, others wait.
BATCH_AT_WORK = "SELECT 1 FROM public.agent_messages WHERE status = 'claimed' AND payload ? 'paths'"


def indexing(conn: psycopg.Connection[Any]) -> None:
    """Return at a moment when a folder is half indexed."""
    eventually(lambda: conn.execute(BATCH_AT_WORK).fetchone(), 15, every_s=0.01)


class Binary:
    """One data home, and the processes that a test started on it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.cwd = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        self.env = kept | {"COGO_DATA_DIR": str(self.home), "METRICS_PORT": "0", "COGO_BEAT_MS": "300",
                           "COGO_LEASE_MS": "1500", "BUS_POLL_MS": "2000", "COGO_GRACE_S": "5"}  # fmt: skip
        self.started: list[subprocess.Popen[bytes]] = []

    def run(
        self, *arguments: str, timeout_s: float = 18, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "cogo", *arguments], env=self.env, cwd=cwd or self.cwd,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def json(self, *arguments: str, timeout_s: float = 18, cwd: Path | None = None) -> Any:
        """The object that a command prints; it must succeed and say nothing else on stdout."""
        ran = self.run(*arguments, "--json", timeout_s=timeout_s, cwd=cwd)
        assert ran.returncode == 0, ran.stderr
        return msgspec.json.decode(ran.stdout)

    def start(self, *arguments: str, holder: str | None = None) -> subprocess.Popen[bytes]:
        """Start a command in the background; its output goes to a file of the data home's parent."""
        env = self.env | ({"HOLDER_ID": holder} if holder else {})
        with (self.cwd / f"{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cogo", *arguments], env=env, cwd=self.cwd,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def serve(self, *arguments: str, holder: str | None = None) -> subprocess.Popen[bytes]:
        """Start `cogo serve` and wait until it says that it is ready."""
        process = self.start("serve", *arguments, holder=holder)
        eventually(lambda: self.ready(process) or self.refuse_dead(process), READY_S)
        return process

    def ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the process answers /readyz with 200 on its own socket."""
        try:
            return probe(socket_path(self.home, process.pid))[0] == HTTPStatus.OK
        except OSError:
            return False

    def server(self, process: subprocess.Popen[bytes]) -> Server | None:
        """How a live process describes itself in the data home."""
        return read(self.home / "servers" / f"{process.pid}.json")

    def refuse_dead(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            raise RuntimeError(f"cogo ended with {process.returncode}:\n{self.logs()}")

    def dsn(self) -> str:
        """The embedded database of this data home; a server must run."""
        return running_dsn(load(environ=self.env).settings)

    def logs(self) -> str:
        """What all processes have written, for the text of a failure."""
        return "\n".join(f"-- {path.name}\n{path.read_text()}" for path in sorted(self.cwd.glob("*.log")))

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL, and wait until it is gone."""
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def close(self) -> None:
        """End whatever still runs, and see that the embedded server went with it."""
        for process in self.started:
            if process.poll() is None:
                process.terminate()
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill(process)
        eventually(lambda: not self.postgres_runs(), 10)

    def postgres_runs(self) -> bool:
        try:
            pid = int((self.home / "pg" / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return False
        return alive(pid)


@pytest.fixture(name="binary")
def binary_fixture() -> Iterator[Binary]:
    """A data home that does not exist yet, with a short path, and the binary that uses it."""
    folder = Path(tempfile.mkdtemp(prefix="cogo-"))
    found = Binary(folder)
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(folder)
