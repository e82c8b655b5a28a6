"""The peers' packages in an environment of the benchmark's own; they are no dependencies of COGO."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import baselines

HERE = Path(__file__).parent
HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cogo-bench-routing"
GRADED = "paretobandit==0.1.1"


def environment() -> Path:
    """The interpreter that has the peers, installed the first time."""
    python = HOME / "bin" / "python"
    done = HOME / "installed.json"
    if done.is_file() and json.loads(done.read_text()) == list(baselines.PACKAGES):
        return python
    venv.create(HOME, with_pip=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *baselines.PACKAGES], check=True)
    done.write_text(json.dumps(baselines.PACKAGES))
    return python


def wheel(into: Path) -> Path:
    """The wheel whose graded prompts are the replay."""
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(into), GRADED,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return next(into.glob("paretobandit-*.whl"))


def readings(
    routers: list[str], names: list[str], seeds: list[int], tasks: int, graded: Path | None
) -> Iterator[dict[str, Any]]:
    """Of peers, each a row as `baselines.main` prints it, as they come."""
    about = [
        json.dumps(one) for one in (routers, names, seeds, tasks, None if graded is None else str(graded))
    ]
    command = [str(environment()), str(HERE / "baselines.py"), *about]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise RuntimeError(f"the peers' process ended with {process.returncode}")
