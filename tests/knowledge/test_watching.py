"""Proves that a watched folder tells of what changed, came and went, and of nothing that a scan leaves out."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from knowledge_hands import write

from cogo.knowledge import watching


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture(params=["checkout", "folder"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A git checkout, and a folder that is none."""
    made = write(tmp_path.resolve() / "repo")
    if request.param == "checkout":
        git(made, "init", "-q")
        git(made, "add", ".")
        git(made, "commit", "-qm", "first")
    return made


async def gathered(found: watching.Watched, wanted: set[str]) -> set[str]:
    """Paths of as many batches as it takes until these are among them: the system may tell in pieces."""
    seen: set[str] = set()
    with anyio.fail_after(10):
        async with aclosing(_batches(found)) as batches:
            async for batch in batches:
                seen.update(batch.paths or ["*"])
                if wanted <= seen:
                    break
    return seen


async def _batches(found: watching.Watched) -> AsyncIterator[watching.Batch]:
    async for batch in found.batches():
        yield batch


async def test_edits_files_that_come_and_files_that_go(root: Path) -> None:
    async with watching.watched(root) as found:
        (root / "harbour/fees.py").write_text("RATE = 3\n")
        (root / "new.py").write_text("x = 1\n")
        (root / "README.md").unlink()
        wanted = {"harbour/fees.py", "new.py", "README.md"}
        assert await gathered(found, wanted) == wanted


async def test_a_renamed_folder_tells_of_all_its_files(root: Path) -> None:
    async with watching.watched(root) as found:
        (root / "harbour").rename(root / "port")
        names = ("__init__.py", "fees.py", "ledger.py")
        wanted = {f"{folder}/{name}" for folder in ("harbour", "port") for name in names}
        assert await gathered(found, wanted) == wanted
        shutil.rmtree(root / "port")
        assert await gathered(found, {f"port/{name}" for name in names})


async def test_what_a_scan_leaves_out_is_not_told(root: Path) -> None:
    """Swap files, bytecode and environments; in a checkout what git ignores, until it doesn't."""
    checkout = (root / ".git").exists()
    if checkout:
        (root / ".gitignore").write_text("*.log\n")
    async with watching.watched(root) as found:
        for name in (
            ".fees.py.swp",
            "fees.py~",
            "harbour/__pycache__/fees.cpython-311.pyc",
            "node_modules/a/index.js",
        ):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("x\n")
        if checkout:
            (root / ".gitignore").write_text("*.log\nnode_modules\n*~\n*.swp\n__pycache__\n")
            (root / "server.log").write_text("x\n")
        (root / "last.py").write_text("x = 1\n")
        seen = await gathered(found, {"last.py"})
        assert seen - {".gitignore"} == {"last.py"}
        if checkout:
            (root / ".gitignore").write_text("node_modules\n*~\n*.swp\n__pycache__\n")
            assert await gathered(found, {"server.log"}) == {"server.log", ".gitignore"}


async def test_ten_edits_are_one_batch(root: Path) -> None:
    """Those that came while nobody asked, and those that came while one was worked off."""
    async with watching.watched(root) as found:
        batches = found.batches()
        for n in range(10):
            (root / "README.md").write_text(f"# {n}\n")
        with anyio.fail_after(10):
            assert await anext(batches) == watching.Batch(["README.md"])
        found.touch(["README.md", "harbour/fees.py"])
        found.touch(["README.md"])
        assert await anext(batches) == watching.Batch(["README.md", "harbour/fees.py"])
        await batches.aclose()  # type: ignore[attr-defined]


async def test_another_branch_is_one_scan(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MANY", 3)
    async with watching.watched(root) as found:
        for n in range(9):
            (root / f"m{n}.py").write_text("x = 1\n")
        assert await gathered(found, {"*"}) == {"*"}
