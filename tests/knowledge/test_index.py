"""Proves that the index says exactly what the files say, whoever writes it, how often, and at the same time."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from knowledge_hands import FILES, index_all, rows, write

from cogo import Database, errors
from cogo.knowledge import index, scan, search


async def test_chunks_are_exactly_the_lines_of_the_files(database: Database, tmp_path: Path) -> None:
    report = await index_all(database, write(tmp_path / "harbour"))
    assert report.files == len(FILES)
    found = await rows(database)
    assert report.chunks == len(found["chunks"]) > 6
    for chunk in found["chunks"]:
        lines = FILES[chunk["path"]].split("\n")[chunk["start_line"] - 1 : chunk["end_line"]]
        assert chunk["text"] == "\n".join(lines)
    assert {c["qualname"] for c in found["chunks"]} >= {
        "Ledger.settle",
        "nightly_fee",
        "Harbour > Mooring fees",
    }


async def test_an_unchanged_folder_is_nothing_to_do(database: Database, tmp_path: Path) -> None:
    root = write(tmp_path / "harbour")
    await index_all(database, root)
    before = await rows(database)
    repo = await index.open_repo(database, "acme", "harbour", str(root))
    assert (await index.plan(database, repo, root)).changed == []
    again = await index.index_paths(database, repo, root, list(FILES))
    assert (again.files, again.skipped) == (0, {"unchanged": len(FILES)})
    assert await rows(database) == before


async def test_changes_deletes_and_renames_end_like_a_fresh_index(database: Database, tmp_path: Path) -> None:
    root = write(tmp_path / "harbour")
    await index_all(database, root)
    (root / "harbour/fees.py").rename(root / "harbour/prices.py")
    (root / "README.md").unlink()
    write(root, {"harbour/ledger.py": "class Ledger:\n    pass\n", "new.md": "# New\n\ntext\n"})
    report = await index_all(database, root)
    assert (report.files, report.removed) == (3, 2)
    changed = await rows(database)
    await database.execute("DELETE FROM cogo.kb_repos")
    await index_all(database, root)
    assert await rows(database) == changed
    assert {c["path"] for c in changed["chunks"]} == {
        "harbour/__init__.py", "harbour/ledger.py", "harbour/prices.py", "new.md",
    }  # fmt: skip


async def test_two_workers_on_one_file_leave_one_whole_file(database: Database, tmp_path: Path) -> None:
    """Each content is read under the file's lock, so whoever is last has written the newest."""
    root = write(tmp_path / "repo", {"a.py": "def one(): pass\n"})
    repo = await index.open_repo(database, "acme", "repo", str(root))
    async with anyio.create_task_group() as tasks:
        for n in range(6):
            (root / "a.py").write_text(f"def one{n}(): pass\n")
            tasks.start_soon(index.index_paths, database, repo, root, ["a.py"])
    found = (await rows(database))["chunks"]
    assert [c["text"] for c in found] == ["def one5(): pass"]


async def test_a_slow_worker_does_not_write_what_is_old(database: Database) -> None:
    """The second writer waits for the first one's commit and then reads the content anew."""
    repo = await index.open_repo(database, "acme", "repo", "/nowhere")
    content, reading, go = ["old"], anyio.Event(), anyio.Event()

    async def slow(_conn: object) -> scan.Read:
        read = scan.read_text(content[0].encode())
        reading.set()
        await go.wait()
        return read

    async def fast(_conn: object) -> scan.Read:
        return scan.read_text(content[0].encode())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(index.put_file, database, repo, "a.txt", slow)
        await reading.wait()
        content[0] = "new"
        tasks.start_soon(index.put_file, database, repo, "a.txt", fast)
        go.set()
    assert [c["text"] for c in (await rows(database))["chunks"]] == ["new"]


async def test_a_write_that_is_cut_off_leaves_the_old_file(database: Database, tmp_path: Path) -> None:
    root = write(tmp_path / "repo", {"a.py": "def old(): pass\n"})
    await index_all(database, root)
    before = await rows(database)
    repo = await index.open_repo(database, "acme", "repo", str(root))

    async def breaks(_conn: object) -> scan.Read:
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError):
        await index.put_file(database, repo, "a.py", breaks)
    assert await rows(database) == before


async def test_one_bad_file_is_named_and_stops_no_other(database: Database, tmp_path: Path) -> None:
    root = write(tmp_path / "repo", {"a.py": "def a(): pass\n", "b.py": "def broken(:\n"})
    (root / "c.txt").write_bytes(b"caf\xe9\n")
    (root / "d.bin").write_bytes(b"\0")
    repo = await index.open_repo(database, "acme", "repo", str(root))
    report = await index.index_paths(
        database, repo, root, ["a.py", "b.py", "c.txt", "d.bin", "../x", "gone.py"]
    )
    assert report.files == 3
    assert report.skipped == {"binary": 1, "outside": 1, "gone": 1}
    assert set(report.notes) == {"b.py", "c.txt"}


async def test_a_file_that_becomes_unreadable_leaves_the_index(database: Database, tmp_path: Path) -> None:
    root = write(tmp_path / "repo", {"a.py": "def a(): pass\n"})
    await index_all(database, root)
    (root / "a.py").write_bytes(b"\0")
    assert (await index_all(database, root)).removed == 1
    assert (await rows(database))["chunks"] == []


async def test_tenants_see_nothing_of_each_other(database: Database, tmp_path: Path) -> None:
    root = write(tmp_path / "repo", {"a.py": "def unmistakable(): pass\n"})
    await index_all(database, root, tenant="acme")
    assert (await search.search(database, "other", ["unmistakable"]))[0] == []
    with pytest.raises(errors.NotFound):
        await search.search(database, "other", ["unmistakable"], scope=search.Scope(repo="repo"))
    await index_all(database, root, tenant="other")
    (hits,) = await search.search(database, "other", ["unmistakable"])
    assert len(hits) == 1
    assert [r["tenant"] for r in await search.repos(database, ["other"])] == ["other"]


async def test_two_folders_of_one_name_do_not_replace_each_other(database: Database, tmp_path: Path) -> None:
    one, two = (
        write(tmp_path / "1/repo", {"a.py": "a = 1\n"}),
        write(tmp_path / "2/repo", {"b.py": "b = 1\n"}),
    )
    await index_all(database, one)
    with pytest.raises(errors.TaskInvalid, match=r"another `repo` - at `\$\.repo`"):
        await index_all(database, two)
    assert {c["path"] for c in (await rows(database))["chunks"]} == {"a.py"}


async def test_a_folder_that_moved_keeps_its_name(database: Database, tmp_path: Path) -> None:
    """A scan from the new place counts; batches that still name the old one are refused."""
    one = write(tmp_path / "1/repo", {"a.py": "a = 1\n", "b.py": "b = 1\n"})
    await index_all(database, one)
    (tmp_path / "2").mkdir()
    two = one.rename(tmp_path / "2/repo")
    (two / "a.py").unlink()
    report = await index_all(database, two)
    assert (report.files, report.removed) == (0, 1)
    assert {c["path"] for c in (await rows(database))["chunks"]} == {"b.py"}
    with pytest.raises(errors.TaskInvalid):
        await index.open_repo(database, "acme", "repo", str(one))


async def test_a_file_that_fails_is_named_and_the_message_is_tried_again(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "repo", {"a.py": "a = 1\n", "b.py": "b = 1\n"})
    repo = await index.open_repo(database, "acme", "repo", str(root))
    prepare = index.prepare

    def fails_once(path: str, *args: object) -> index.Prepared:
        if path == "a.py":
            raise RuntimeError("no memory")
        return prepare(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "prepare", fails_once)
    with pytest.raises(errors.HandlerFailed, match=r"1 of 2 files failed: a\.py: RuntimeError: no memory"):
        await index.index_paths(database, repo, root, ["a.py", "b.py"])
    monkeypatch.undo()
    report = await index.index_paths(database, repo, root, ["a.py", "b.py"])
    assert (report.files, report.skipped) == (1, {"unchanged": 1})
