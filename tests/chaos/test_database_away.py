"""Proves that the main job goes on by itself after the database was away for half a minute."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest
from binary import Binary, indexing
from small_repo import check, write_many

from cogo.core.embedded import running_dsn
from cogo.core.settings import load

AWAY_S = 30
SCRIPT = Path(__file__).parents[1] / "acceptance" / "embedded_process.py"

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(150)]


class Postgres:
    """A server in a process of its own, which can be stopped and started on the same socket."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start it and return its DSN."""
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(self.home)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return running_dsn(load(environ={}, flags={"data_dir": self.home}).settings)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(15)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@pytest.fixture
def postgres(binary: Binary) -> Iterator[Postgres]:
    server = Postgres(binary.cwd / "pg")
    yield server
    binary.close()
    server.stop()


def test_the_demo_survives_a_database_that_is_away_for_30_s(
    binary: Binary, postgres: Postgres, tmp_path: Path
):
    """Stopped while the demo works and started 30 s later: every question is answered, every citation true."""
    repository = write_many(tmp_path / "harbour", 400)
    binary.env["DATABASE_URL"] = postgres.start()
    assert binary.run("migrate").returncode == 0
    binary.serve()
    output = binary.cwd / "demo.json"
    with output.open("wb") as stdout:
        demo = subprocess.Popen(
            [sys.executable, "-m", "cogo", "demo", str(repository), "--json"], env=binary.env, stdout=stdout
        )
    binary.started.append(demo)
    with psycopg.connect(binary.env["DATABASE_URL"], autocommit=True) as conn:
        indexing(conn)
    postgres.stop()
    assert demo.poll() is None, "it ended before the database went away"
    threading.Event().wait(AWAY_S)
    assert demo.poll() is None, "it gave up"
    postgres.start()
    assert demo.wait(60) == 0, binary.logs()
    check(repository, msgspec.json.decode(output.read_bytes()))
