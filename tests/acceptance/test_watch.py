"""Proves that `cogo watch` keeps an index as its folder is, sends bursts once, and that git's hooks do the same."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from binary import Binary
from helpers import eventually
from small_repo import write

from cogo.commands.watch import HOOKS

pytestmark = pytest.mark.timeout(60)

ROLES = "rag-embed,kg-builder"


class Watching:
    """A `cogo watch --json` and the lines that it has printed."""

    def __init__(self, binary: Binary, folder: Path) -> None:
        self.binary = binary
        self._log = binary.cwd / f"{len(binary.started)}.log"
        self.process = binary.start("watch", str(folder), "--json")
        self._read = 0
        self.next()  # the scan

    def next(self) -> dict[str, Any]:
        """The next batch that was worked off."""

        def line() -> Any:
            lines = self._log.read_text().splitlines(keepends=True)[self._read :]
            return lines[0] if lines and lines[0].endswith("\n") else None

        found: dict[str, Any] = msgspec.json.decode(eventually(line, 20))
        self._read += 1
        assert found["failed"] is None
        return found

    def until(self, paths: set[str]) -> None:
        """Return when all of these were in a batch, and nothing else was."""
        seen: set[str] = set()
        while seen != paths:
            seen.update(self.next()["paths"])
            assert seen <= paths


def git(root: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, env=env)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = write(tmp_path.resolve() / "repo")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def found(binary: Binary, text: str) -> list[str]:
    """Paths of the spans that a search finds."""
    ran = binary.run("search", text, "--json")
    return [hit["path"] for hit in msgspec.json.decode(ran.stdout)["hits"]] if ran.stdout else []


def test_the_index_follows_the_folder(binary: Binary, checkout: Path) -> None:
    binary.serve("--roles", ROLES)
    watching = Watching(binary, checkout)
    assert "README.md" in found(binary, "hold the boat until the debt is settled")
    (checkout / "storm.py").write_text('def warn() -> None:\n    """Hoist the tempestuous pennant."""\n')
    watching.until({"storm.py"})
    assert found(binary, "tempestuous pennant") == ["storm.py"]
    (checkout / "storm.py").rename(checkout / "gale.py")
    watching.until({"storm.py", "gale.py"})
    assert found(binary, "tempestuous pennant") == ["gale.py"]
    (checkout / ".env").write_text("PENNANT=tempestuous\n")
    watching.until({".env"})  # looked at, and left out
    (checkout / "gale.py").unlink()
    watching.until({"gale.py"})
    assert found(binary, "tempestuous pennant") == []
    watching.process.send_signal(signal.SIGTERM)
    assert watching.process.wait(10) == 0, binary.logs()


def test_a_burst_of_edits_is_one_embed_and_one_build(binary: Binary, checkout: Path) -> None:
    binary.serve("--roles", ROLES)
    watching = Watching(binary, checkout)
    newest = "SELECT coalesce(max(id), 0) FROM public.agent_messages"
    with psycopg.connect(binary.dsn(), autocommit=True) as conn:
        before = conn.execute(newest).fetchone()
        for n in range(10):
            (checkout / "README.md").write_text(f"# Harbour {n}\n")
            (checkout / "harbour" / "fees.py").write_text(f"RATE = {n}\n")
        watching.until({"README.md", "harbour/fees.py"})
        rows = conn.execute(
            "SELECT service, payload -> 'paths' FROM public.agent_messages WHERE id > %s ORDER BY 1", before
        ).fetchall()
    paths = ["README.md", "harbour/fees.py"]
    assert rows == [("kg", paths), ("rag", paths)], "neither looks through the whole folder"


def test_another_branch_is_one_scan(binary: Binary, checkout: Path) -> None:
    git(checkout, "checkout", "-qb", "wide")
    for n in range(450):
        (checkout / f"m{n:03}.py").write_text(f"def pennant_{n}(): pass\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "many")
    git(checkout, "checkout", "-q", "-")
    binary.serve("--roles", ROLES)
    watching = Watching(binary, checkout)
    git(checkout, "checkout", "-q", "wide")
    assert watching.next()["paths"] is None
    files = eventually(lambda: binary.json("search", "pennant", "-k", "1000")["hits"], 20)
    assert len({hit["path"] for hit in files}) == 450


def test_ctrl_c_ends_it(binary: Binary, checkout: Path) -> None:
    binary.serve("--roles", ROLES)
    watching = Watching(binary, checkout)
    watching.process.send_signal(signal.SIGINT)
    assert watching.process.wait(10) == 0, binary.logs()
    assert "Traceback" not in binary.logs()


def test_it_needs_a_server(binary: Binary, checkout: Path) -> None:
    ran = binary.run("watch", str(checkout))
    assert ran.returncode == 78
    assert "error[no_server]" in ran.stderr


def test_a_commit_indexes_by_the_hook(binary: Binary, checkout: Path) -> None:
    written = binary.json("watch", str(checkout), "--install-hook")
    assert [Path(file).name for file in written["written"]] == list(HOOKS)
    assert binary.json("watch", str(checkout), "--install-hook") == written, "its own it writes again"
    binary.serve("--roles", ROLES)
    (checkout / "storm.md").write_text("# Storm\n\nHoist the tempestuous pennant.\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "second", env=binary.env)
    assert eventually(lambda: found(binary, "tempestuous pennant"), 20) == ["storm.md"]


def test_a_rebase_is_indexed_once(binary: Binary, checkout: Path) -> None:
    """Not once for each of its commits."""
    git(checkout, "checkout", "-qb", "topic")
    for n in range(6):
        (checkout / f"m{n}.md").write_text(f"# Pennant {n}\n")
        git(checkout, "add", ".")
        git(checkout, "commit", "-qm", f"commit {n}")
    git(checkout, "checkout", "-q", "-")
    (checkout / "other.md").write_text("# Other\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "meanwhile")
    git(checkout, "checkout", "-q", "topic")
    binary.json("watch", str(checkout), "--install-hook")
    binary.serve("--roles", ROLES)
    git(checkout, "rebase", "-q", "@{-1}", env=binary.env)
    assert eventually(lambda: "other.md" in found(binary, "other"), 20)
    scans = "SELECT count(*) FROM public.agent_messages WHERE service = 'rag' AND NOT payload ? 'paths'"
    with psycopg.connect(binary.dsn(), autocommit=True) as conn:
        assert conn.execute(scans).fetchone() == (1,)


def test_a_foreign_hook_is_left_alone(binary: Binary, checkout: Path) -> None:
    foreign = checkout / ".git/hooks/post-commit"
    foreign.write_text("#!/bin/sh\necho mine\n")
    ran = binary.run("watch", str(checkout), "--install-hook")
    assert ran.returncode == 1
    assert foreign.read_text() == "#!/bin/sh\necho mine\n"
    assert "Add this line" in ran.stderr
    assert f"-m cogo index {checkout}" in ran.stderr
    assert "post-merge written" in ran.stdout
    assert binary.run("watch", str(binary.cwd), "--install-hook").returncode == 2
