"""The main job's figures: start, memory, idle CPU, and how long a question takes.

    python benchmarks/main_job/run.py [--repo PATH] [--questions N] [--idle-s S] [--json]

Starts `cogo serve` processes of its own on a fresh embedded database in a temporary data home. Reads
/proc, so Linux only. Times of hops are the database's own: created_at -> claimed_at of each message.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

import cogo
from cogo.core.settings import load, local_keys

TICKS = os.sysconf("SC_CLK_TCK")
CALL = {"Content-Type": "application/json"}


def announced(home: Path, pid: int) -> dict[str, Any] | None:
    file = home / "servers" / f"{pid}.json"
    return json.loads(file.read_text()) if file.exists() else None


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def serving(home: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], str, float]]:
    """A `cogo serve`; the process, its URL, and seconds from exec to /readyz = 200."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COGO_", "DATABASE_"))}
    environment |= {"COGO_DATA_DIR": str(home), "COGO_LOG_LEVEL": "warning"}
    started = time.monotonic()
    command = [sys.executable, "-m", "cogo", "serve", "--port", "0", *flags]
    process = subprocess.Popen(command, env=environment)
    try:
        while not ((found := announced(home, process.pid)) and is_ready(found["url"])):
            if process.poll() is not None or time.monotonic() - started > 60:
                raise SystemExit(f"cogo serve did not become ready: exit {process.poll()}")
            time.sleep(0.01)
        yield process, found["url"], time.monotonic() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError(pid)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def idle(pid: int, seconds: float) -> dict[str, float]:
    before = cpu_s(pid)
    time.sleep(seconds)
    return {"rss_mb": rss_mb(pid), "cpu_percent": round(100 * (cpu_s(pid) - before) / seconds, 2)}


def post(url: str, body: Any, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), CALL | headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


async def index(home: Path, repo: Path) -> dict[str, Any]:
    """Index through the bus; seconds, and the number of chunks."""
    async with cogo.connect(settings=load(flags={"data_dir": home}, environ={}).settings) as bus:
        started = time.monotonic()
        id = await bus.enqueue("rag/embed/0@demo", {"root": str(repo), "repo": repo.name})
        trace = (await bus.result(id, timeout_s=60)).trace_id
        alive = "SELECT count(*) FROM public.agent_messages WHERE trace_id = %s AND status IN ('queued','claimed','waiting')"
        while await bus.db.fetch_value(alive, (trace,)):  # noqa: ASYNC110 (a client looks from outside)
            await anyio.sleep(0.05)
        chunks = await bus.db.fetch_value("SELECT count(*) FROM cogo.kb_chunks")
        return {"seconds": round(time.monotonic() - started, 2), "chunks": chunks}


async def ask(home: Path, url: str, repo: Path, questions: int) -> dict[str, Any]:
    """POST at the ingress, wait for the id's end; milliseconds of the whole and of the three pickups."""
    settings = load(flags={"data_dir": home}, environ={}).settings
    headers = {"apikey": local_keys(settings).publishable_key}
    total_ms, hops_ms = [], []
    async with cogo.connect(settings=settings) as bus:
        for number in range(questions):
            body = {
                "tenant": "demo",
                "intent": "chat",
                "payload": {
                    "question": f"Which part reads the configuration file number {number}?",
                    "repo": repo.name,
                },
            }
            started = time.perf_counter()
            answer = await anyio.to_thread.run_sync(
                post, f"{url}/functions/v1/orchestrator-chat", body, headers
            )
            result = await bus.result(answer["id"], timeout_s=30)
            total_ms.append((time.perf_counter() - started) * 1000)
            hops_ms.append(
                await bus.db.fetch_value(
                    "SELECT sum(extract(epoch FROM claimed_at - created_at) * 1000)::float8"
                    " FROM public.agent_messages WHERE trace_id = %s",
                    (result.trace_id,),
                )
            )
    return {
        name: {"p50": round(statistics.median(values), 1), "max": round(max(values), 1)}
        for name, values in (("question_ms", total_ms), ("three_pickups_ms", hops_ms))
    }


def measure(repo: Path, questions: int, idle_s: float) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="cogo-bench-"))
    folder.chmod(0o711)
    home = folder / "home"
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load": round(os.getloadavg()[0], 1),
    }
    try:
        with serving(home) as (_, _, seconds):
            found["cold_start_s"] = round(seconds, 2)
        with serving(home) as (process, url, seconds):
            found["warm_start_s"] = round(seconds, 2)
            found["all_roles_idle"] = idle(process.pid, idle_s)
            found["index"] = anyio.run(index, home, repo)
            found |= anyio.run(ask, home, url, repo, questions)
        with serving(home, "--roles", "orchestrator,executor") as (process, _, _):
            found["orchestrator_executor_idle"] = idle(process.pid, idle_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repo", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--idle-s", type=float, default=15.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.repo.resolve(), args.questions, args.idle_s)
    print(json.dumps(found, indent=None if args.json else 2))


if __name__ == "__main__":
    main()
