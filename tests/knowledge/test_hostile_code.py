"""Proves that no file can stop a graph: not by its depth, its names or its bytes; and no question can stop a process."""

from __future__ import annotations

import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from knowledge_hands import build_graph, index_all, write

from cogo import Database, errors
from cogo.knowledge import apart, graph, graph_answers
from cogo.knowledge.graph import export

HOSTILE = {
    "deep.py": "x" + ".a()" * 60_000 + "\n\n\ndef after(): ...\n",
    "brackets.py": "(" * 30_000 + "\n",
    "deep.ts": "a" + ".b()" * 60_000 + "\n",
    "unclosed.ts": "a<" * 30_000 + "\n",
    "long.py": f"def {'a' * 5_000}(): ...\nimport {'b' * 5_000}\n",
    "control.md": "# Hello\x1eWorld\x1f\n\nUse `ok.f`.\n",
    "control.js": "class A { 'x\x1ey'() {} }\n",
    "image.md": f"# ![x](data:image/png;base64,{'QUJD' * 800})\n" + "word\n" * 20,
    "ok.py": "def f(): ...\n",
}


async def test_what_is_hostile_is_read_as_far_as_it_can_be(database: Database, tmp_path: Path) -> None:
    root = write(tmp_path / "repo", HOSTILE)
    repo, built = await build_graph(database, root)
    assert built.changed == len(HOSTILE)
    assert "unclosed" in built.notes["unclosed.ts"]
    assert (await graph.find(database, repo, "deep.after"))["line"] == 4
    write(root, {"ok.py": "def f(): ...\ndef g(): f()\n"})
    await build_graph(database, root)
    assert [row["name"] for row in await graph.callers(database, repo, "ok.f")] == ["ok.g"]
    ET.fromstring("".join([piece async for piece in export.graphml(database, repo)]))
    ET.fromstring(await graph.picture(database, repo, "hostile"))


@pytest.mark.parametrize(
    "question",
    ["who calls" + " " * 4_000 + "a/" * 1_900 + "é", "a_" * 4_000, "what breaks if " + "a." * 3_000, "who calls " + "a-" * 140],
)  # fmt: skip
def test_no_question_takes_long_to_be_understood(question: str) -> None:
    began = time.process_time()
    graph_answers.parse(question)
    assert time.process_time() - began < 2  # it took hours


async def test_a_file_that_stops_a_parser_costs_a_worker_process_and_no_more(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Java's parser takes a time that grows with the square of this: hours for a megabyte."""
    monkeypatch.setattr(apart, "CPU_S", 0.5)
    files = {
        "Slow.java": "a=>\n" * 20_000,
        "Good.java": "class Good { void run() {} }\n" * 100,
        "ok.py": "x = 1\n",
    }
    root = write(tmp_path / "repo", files)
    report = await index_all(database, root)
    assert report.notes == {"Slow.java": "parsing it took too long: cut into windows"}
    assert report.files == 3
    repo, built = await build_graph(database, root)
    assert built.notes == {"Slow.java": "reading it took too long"}
    assert (await graph.find(database, repo, "Good.Good.run"))["path"] == "Good.java"
    _, again = await build_graph(database, root)
    assert again.changed == 0


async def test_what_is_read_is_never_run(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even when the folder is the current one, and its files are called like modules that a worker imports."""
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    names = ("pickle.py", "subprocess.py", "signal.py", "anyio/__init__.py", "cogo/__init__.py", "main.py")
    root = write(tmp_path / "repo", dict.fromkeys(names, trap + "x = 1\n" * 1000))
    monkeypatch.chdir(root)
    _, built = await build_graph(database, root)
    assert built.changed == len(names)
    assert not built.notes
    assert not (tmp_path / "ran").exists()


async def test_a_path_is_its_own_file_and_a_name_of_two_files_is_none(
    database: Database, tmp_path: Path
) -> None:
    files = {
        f"{side}/src/{name}.py": text
        for side in "ab"
        for name, text in {"app": "", f"uses_{side}": "import app\n"}.items()
    }
    root = write(tmp_path / "repo", files)
    await index_all(database, root)
    repo, _ = await build_graph(database, root)
    found = await graph.importers(database, repo, "b/src/app.py")
    assert [row["path"] for row in found] == ["b/src/uses_b.py"]
    with pytest.raises(errors.Invalid, match=r"app \(a/src/app.py\), app \(b/src/app.py\)"):
        await graph.importers(database, repo, "app")


async def test_a_name_of_two_repositories_is_not_answered_from_the_first(
    database: Database, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        root = write(tmp_path / name, {"m.py": "def pay(): ...\n\n\ndef run():\n    pay()\n"})
        await index_all(database, root)
        await build_graph(database, root)
    assert await graph_answers.answer(database, "acme", "Who calls pay?") is None
    told = await graph_answers.answer(database, "acme", "Who calls pay?", repo="two")
    assert told is not None
    assert {each.repo for each in told.citations} == {"two"}
