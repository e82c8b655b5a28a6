"""Runs drivers: one process each, JSON lines on its stdout, bounded in time, never left behind."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

DRIVERS = Path(__file__).parent / "drivers"
START_S = 60.0
"""A worker that is not ready by then, or a schema that is not made, counts as failed."""
STOP_S = 10.0


class Failed(Exception):  # noqa: N818 (it says what happened, and is reported as the peer's result)
    """A driver ended badly or took too long; the text is what the table says of the peer."""


class Driver:
    """A running driver process. It ends by itself when our end of its stdin closes."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        # A file, not a pipe: a peer that writes much to stderr must not block on us.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by kill)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,
        )
        self._lines = bytearray()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, event: str, within_s: float) -> dict[str, Any]:
        """The next message of this event. Raises Failed when the driver ends or takes longer."""
        end = time.monotonic() + within_s
        while (message := self.next(end - time.monotonic())) is not None:
            if message["event"] == event:
                return message
        raise Failed(f"no answer ({event}) within {within_s:.0f} s{self._words()}")

    def next(self, within_s: float) -> dict[str, Any] | None:
        """The next message; None when none comes in time. Raises Failed when the driver has ended."""
        end = time.monotonic() + within_s
        pipe = self._process.stdout
        assert pipe is not None
        while b"\n" not in self._lines:
            if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            read = os.read(pipe.fileno(), 1 << 20)
            if not read:
                raise Failed(f"the driver ended with code {self._process.wait()}{self._words()}")
            self._lines += read
        line, _, rest = self._lines.partition(b"\n")
        self._lines = rest
        try:
            found = json.loads(line)
        except ValueError:
            return self.next(end - time.monotonic())  # a library that prints
        return found if isinstance(found, dict) and "event" in found else self.next(end - time.monotonic())

    def stop(self) -> dict[str, Any]:
        """Ask a worker to end; its last message."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        return self.wait("end", STOP_S)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        self._errors.close()

    def _words(self) -> str:
        """The end of its stderr."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {' | '.join(line.strip() for line in lines[-3:])[-400:]}" if lines else ""


class Runner:
    """How to start one peer's driver: its interpreter and its environment."""

    def __init__(self, file: str, interpreter: Path, environment: dict[str, str]) -> None:
        self.interpreter = interpreter
        self._command = [str(interpreter), str(DRIVERS / file)]
        keep = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")
        self._environment = {name: os.environ[name] for name in keep if name in os.environ}
        self._environment |= {"NODE_ENV": "production", **environment}

    @contextmanager
    def start(self, verb: str, dsn: str, **options: Any) -> Iterator[Driver]:
        """A driver at work; killed at the end if it still runs."""
        driver = Driver([*self._command, verb, dsn, json.dumps(options)], self._environment)
        try:
            yield driver
        finally:
            driver.kill()

    @contextmanager
    def worker(self, dsn: str, total: int, **options: Any) -> Iterator[Driver]:
        """A worker that waits for jobs."""
        with self.start("work", dsn, total=total, **options) as driver:
            driver.wait("ready", START_S)
            yield driver

    def call(self, verb: str, dsn: str, within_s: float, **options: Any) -> dict[str, Any]:
        """Run a verb to its end."""
        with self.start(verb, dsn, **options) as driver:
            return driver.wait("end", within_s)
