"""Proves that the code of the last landing works on today's schema, beside a process of today's code.

So a fleet can be upgraded one process after the other. The old code comes out of the repository's own
history; in a copy without history there is nothing to run.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from hands import process

import cogo
from cogo.core.bus import Bus
from cogo.core.model import Role

ROOT = Path(__file__).parents[2]
OLD = "669d9a9"
"""The first landing, version 0.1.0. Move it on when support for it ends (docs/adr/0007)."""


@pytest.fixture(scope="module")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the old package and its SQL."""
    command = ["git", "-C", str(ROOT), "archive", OLD, "cogo", "sql"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip("the repository's history isn't here")
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


async def echo(task: dict[str, Any], _ctx: cogo.Context) -> dict[str, Any]:
    """What the old code delegates to."""
    return {"by": "new", "n": task.get("n")}


@pytest.mark.timeout(60)  # two processes start, and one of them compiles a whole package
async def test_old_code_on_the_new_schema(bus: Bus, dsn: str, old_code: Path) -> None:
    script = Path(__file__).with_name("old_code.py")
    async with process(dsn, [Role("new", "echo", handle=echo)]):
        done = await anyio.run_process(
            [sys.executable, str(script), dsn], env={"PYTHONPATH": str(old_code), "HOME": str(old_code)},
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        found = msgspec.json.decode(done.stdout)
        requeued = await bus.db.fetch("SELECT error FROM public.agent_messages WHERE role = 'refuse'")
    assert found["version"] == "0.1.0" != cogo.__version__
    assert found["retried"] == {"by": "old", "n": None}
    assert found["delegated"] == {"by": "new", "n": 2}
    assert found["keyed"][0] == found["keyed"][1]
    assert found["refused"] == "rejected: no"
    assert (found["requeued"], found["cancelled"]) == ("queued", "cancelled")
    assert found["many"] == list(range(50))
    assert found["chunks"] == [{"at": "work"}]
    assert [row["error"] for row in requeued] == ["rejected: no"]
