"""COGO as it is served: processes of the binary on one data home, and a router that asks them over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import driving
import httpx
import worlds

API = "/api/orchestrator"
REFUSED = 402
DROPPED = ("COGO_", "SUPABASE_", "AGENT_", "BUS_", "INGRESS_", "METRICS_", "HOLDER_", "DATABASE_URL")
READY = "ready"


class Site:
    """A data home with an embedded Postgres, and the processes on it. The first one owns the database server."""

    def __init__(self, folder: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        self.env = kept | {"COGO_DATA_DIR": str(folder / "home")}
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self._token: str | None = None

    def serve(self, roles: str = "orchestrator") -> tuple[subprocess.Popen[str], str]:
        """A further process and its URL."""
        command = [
            sys.executable, "-m", "cogo", "serve", "--roles", roles, "--simulation", "--port", "0", "--json",
        ]  # fmt: skip
        process = self.start(command)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {process.wait(30)}; its log is in {self.folder}")
        return process, json.loads(line)["url"]

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """A program in this home; what it says on stderr is kept beside the home."""
        with (self.folder / f"{len(self.started)}.log").open("w") as log:
            process = subprocess.Popen(
                command, env=self.env, cwd=self.folder, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.started.append(process)
        return process

    def run(self, *arguments: str) -> Any:
        """The JSON of a command that has one; its exit code says what the JSON says."""
        ran = subprocess.run(
            [sys.executable, "-m", "cogo", *arguments, "--json"], env=self.env, cwd=self.folder, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        if not ran.stdout:
            raise RuntimeError(ran.stderr)
        return json.loads(ran.stdout)

    @property
    def headers(self) -> dict[str, str]:
        """Of an administrator."""
        if self._token is None:
            self._token = self.run("token", "--role", "admin")["token"]
        return {"Authorization": f"Bearer {self._token}"}

    def client(self, url: str) -> httpx.Client:
        return httpx.Client(base_url=url, headers=self.headers, timeout=60)

    def close(self) -> None:
        """End what was started here, the owner of the database last."""
        for process in reversed(self.started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    folder.mkdir(parents=True, exist_ok=True)
    found = Site(folder)
    try:
        yield found
    finally:
        found.close()


def ends_in_order() -> None:
    """SIGTERM ends this program as Ctrl-C does, so that it ends what it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextmanager
def served(folder: Path) -> Iterator[httpx.Client]:
    """A client of one process on a fresh database."""
    with site(folder) as found, found.client(found.serve()[1]) as client:
        yield client


class Cogo:
    """The router of `driving` that asks COGO."""

    ledger = True

    def __init__(self, client: httpx.Client, tenant: str, world: worlds.World) -> None:
        self.client, self.tenant = client, tenant
        self.decisions: dict[int, int] = {}
        # A world's clock begins with the epoch. Outcomes of 1970 would be past their 90 days, and removed.
        self.since_ms = int(time.time() * 1000)
        self.answers: list[dict[str, Any]] = []
        """Everything that was decided, if it is `kept`."""
        self.kept = False
        limit = getattr(world, "limit_usd", None)
        if limit is not None:
            body = {"limit_usd": limit, "window_s": 30 * 86_400, "expected_tasks": world.tasks}
            client.put(f"{API}/budgets/{tenant}", json=body).raise_for_status()

    def choose(self, task: worlds.Task) -> int:
        body = {
            "tenant": self.tenant, "intent": task.intent, "features": task.features, "objective": worlds.OBJECTIVE,
            "now_ms": self.since_ms + task.now_ms, "candidates": [vars(arm) for arm in task.arms],
        }  # fmt: skip
        answer = self.client.post(f"{API}/decide", json=body)
        if answer.status_code == REFUSED:
            raise driving.Refused
        answer.raise_for_status()
        found = answer.json()
        if self.kept:
            self.answers.append(found)
        self.decisions[task.n] = found["decision_id"]
        return [arm.agent_id for arm in task.arms].index(found["arm"]["agent_id"])

    def learn(self, task: worlds.Task, index: int, outcome: worlds.Outcome, now_ms: int) -> None:  # noqa: ARG002
        body = {
            "decision_id": self.decisions.pop(task.n), "ok": outcome.ok, "reward": outcome.reward,
            "cost_usd": outcome.cost_usd, "latency_ms": outcome.latency_ms, "now_ms": self.since_ms + now_ms,
        }  # fmt: skip
        self.client.post(f"{API}/feedback", json=body).raise_for_status()


def drive(client: httpx.Client, world: worlds.World, tenant: str) -> driving.Reading:
    """COGO through a world."""
    return driving.drive(world, Cogo(client, tenant, world))
