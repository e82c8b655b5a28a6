"""A fresh `cogo serve --roles orchestrator --simulation`, and a client of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

COGO = [sys.executable, "-m", "cogo"]


@contextmanager
def served(scratch: Path) -> Iterator[httpx.Client]:
    """Until the block ends; its database is made in `scratch`."""
    env = os.environ | {"COGO_DATA_DIR": f"{scratch}/home"}
    command = [*COGO, "serve", "--roles", "orchestrator", "--simulation", "--port", "0", "--json"]
    server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        token = subprocess.run(
            [*COGO, "token", "--role", "admin", "--json"], env=env, check=True, capture_output=True, text=True
        ).stdout
        headers = {"Authorization": f"Bearer {json.loads(token)['token']}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            yield client
    finally:
        server.terminate()
        server.wait(30)
