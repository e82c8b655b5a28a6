"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cogo
from drive import Runner
from roster import PEERS


def describe(runners: dict[str, Runner]) -> dict[str, Any]:
    """Taken before the first measurement: the load is that of others."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) / 1024**2),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "node": _node(runners),
        "cogo": cogo.__version__,
        "psycopg": version("psycopg"),
        "uvloop": version("uvloop"),
    }


def _field(file: str, name: str) -> str | None:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _node(runners: dict[str, Runner]) -> str | None:
    for peer in PEERS:
        if peer.language == "node" and peer.name in runners:
            return interpreter(runners[peer.name])
    return None


def interpreter(runner: Runner) -> str:
    """Version of what runs a driver."""
    command = [str(runner.interpreter), "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    name = ran.stdout.strip().removeprefix("Python ")
    return name or f"{sys.implementation.name}"
