"""Proves that the stored graph is the code's, stays so when files come and go, and answers questions."""

from __future__ import annotations

import importlib
from pathlib import Path

import grimp
import pytest
from knowledge_hands import FILES, build_graph, write

from cogo import Database, errors
from cogo.knowledge import graph
from cogo.knowledge.graph import queries as graph_queries


async def edges(db: Database, repo: int, kind: str = "imports") -> set[tuple[str, str]]:
    found = await db.fetch(
        "SELECT s.qualname AS one, d.qualname AS other FROM cogo.kg_edges e JOIN cogo.kg_nodes s ON s.id = e.src"
        " JOIN cogo.kg_nodes d ON d.id = e.dst WHERE e.repo_id = %s AND e.kind = %s",
        (repo, kind),
    )
    return {(row["one"], row["other"]) for row in found}


@pytest.mark.parametrize("name", ["litestar", "anyio", "rich", "opentelemetry"])
async def test_stored_import_edges_equal_grimps(database: Database, name: str) -> None:
    repo, _ = await build_graph(database, Path(next(iter(importlib.import_module(name).__path__))))
    theirs = grimp.build_graph(name, cache_dir=None)
    wanted = {(m, i) for m in theirs.modules for i in theirs.find_modules_directly_imported_by(m)}
    stored = await database.fetch(graph_queries.IMPORTS_ALL, {"repo": repo})
    assert {(row["importer"], row["imported"]) for row in stored if row["exact"]} == wanted


async def test_the_graph_of_a_small_package(database: Database, tmp_path: Path) -> None:
    repo, built = await build_graph(database, write(tmp_path / "harbour"))
    assert built.changed == 4  # three modules and the README
    assert await edges(database, repo) == {("harbour", "harbour.ledger"), ("harbour.fees", "harbour")}
    assert await edges(database, repo, "inherits") == {("harbour.fees.Special", "harbour.ledger.Ledger")}
    assert ("harbour.ledger.Ledger", "harbour.ledger.Ledger.settle") in await edges(database, repo, "defines")
    report = await graph.report(database, repo)
    assert report.nodes == {"package": 1, "module": 2, "class": 2, "function": 2, "section": 3}
    assert (report.edges["imports"], report.cycles) == (2, [])
    assert report.most_imported[0] == ("harbour", 1)


async def test_a_changed_file_repairs_the_edges_that_lead_into_it(database: Database, tmp_path: Path) -> None:
    root = write(tmp_path / "harbour")
    repo, _ = await build_graph(database, root)
    whole = await edges(database, repo), await edges(database, repo, "inherits")
    ledger = root / "harbour/ledger.py"
    ledger.unlink()
    _, built = await build_graph(database, root)
    assert (built.changed, built.removed) == (0, 1)
    assert await edges(database, repo) == {("harbour.fees", "harbour")}
    assert await edges(database, repo, "inherits") == set()
    ledger.write_text("\n\n" + FILES["harbour/ledger.py"])
    await build_graph(database, root)
    assert (await edges(database, repo), await edges(database, repo, "inherits")) == whole
    assert (await build_graph(database, root))[1] == graph.Built()


async def test_a_new_init_file_renames_what_is_below(database: Database, tmp_path: Path) -> None:
    root = write(tmp_path / "repo", {"app/a.py": "import app.b\n", "app/b.py": "from . import a\n"})
    repo, _ = await build_graph(database, root)
    assert await edges(database, repo) == {("app.a", "app.b"), ("app.b", "app.a")}
    assert {r["confidence"] for r in await graph.imports(database, repo, "app.a")} == {"bound"}
    (root / "app/__init__.py").touch()
    await build_graph(database, root)
    assert {r["confidence"] for r in await graph.imports(database, repo, "app.a")} == {"exact"}


async def test_scripts_import_their_neighbours_and_src_is_no_name(database: Database, tmp_path: Path) -> None:
    files = {
        "src/pkg/__init__.py": "", "src/pkg/core.py": "", "scripts/run.py": "import helpers\nfrom pkg import core\n",
        "scripts/helpers.py": "import os\n", "tests/test_x.py": "from src.pkg.core import thing\n",
    }  # fmt: skip
    repo, _ = await build_graph(database, write(tmp_path / "repo", files))
    assert await edges(database, repo) == {
        ("scripts.run", "scripts.helpers"),
        ("scripts.run", "pkg.core"),
        ("tests.test_x", "pkg.core"),
    }


async def test_bases_are_followed_through_star_imports(database: Database, tmp_path: Path) -> None:
    files = {
        "p/__init__.py": "from .api import *\n", "p/api.py": "from .impl import Base as Public\n",
        "p/impl.py": "class Base: ...\n", "p/use.py": "import p\nclass Mine(p.Public): ...\n",
        "p/loop.py": "from .loop2 import X\nclass L(X): ...\n", "p/loop2.py": "from .loop import X\n",
    }  # fmt: skip
    repo, _ = await build_graph(database, write(tmp_path / "repo", files))
    assert await edges(database, repo, "inherits") == {("p.use.Mine", "p.impl.Base")}


async def test_two_packages_of_one_name_keep_to_their_own(database: Database, tmp_path: Path) -> None:
    one = {"a/app/__init__.py": "", "a/app/x.py": "import app.y\n", "a/app/y.py": ""}
    root = write(tmp_path / "repo", one | {path.replace("a/", "b/", 1): text for path, text in one.items()})
    repo, _ = await build_graph(database, root)
    found = await database.fetch(
        "SELECT sf.path AS one, df.path AS other FROM cogo.kg_edges e"
        " JOIN cogo.kg_files sf ON sf.id = e.file_id JOIN cogo.kg_nodes d ON d.id = e.dst"
        " JOIN cogo.kg_files df ON df.id = d.file_id WHERE e.kind = 'imports' AND e.repo_id = %s ORDER BY 1",
        (repo,),
    )
    assert [(row["one"], row["other"]) for row in found] == [
        ("a/app/x.py", "a/app/y.py"),
        ("b/app/x.py", "b/app/y.py"),
    ]


async def test_who_imports_what(database: Database, tmp_path: Path) -> None:
    repo, _ = await build_graph(database, write(tmp_path / "harbour"))
    where = {"name": "harbour.fees", "kind": "module", "path": "harbour/fees.py", "line": 3}
    wanted = [{**where, "confidence": "exact"}]
    for name in ("harbour", "harbour/__init__.py"):
        assert await graph.importers(database, repo, name) == wanted
    assert [row["name"] for row in await graph.imports(database, repo, "harbour.fees.nightly_fee")] == [
        "harbour"
    ]
    way = await graph.path(database, repo, "harbour.fees", "harbour.ledger")
    assert [step["name"] for step in way] == ["harbour.fees", "harbour", "harbour.ledger"]
    assert await graph.path(database, repo, "harbour.ledger", "harbour.fees") == []
    with pytest.raises(errors.NotFound):
        await graph.importers(database, repo, "harbour.nothing")


def test_cycles_are_the_strongly_connected_groups() -> None:
    found = graph.cycles({"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": ["e"], "e": ["d"], "f": ["f", "a"]})
    assert found == [["a", "b", "c"], ["d", "e"]]
    ring = {str(i): [str((i + 1) % 5_000)] for i in range(5_000)}
    assert [len(group) for group in graph.cycles(ring)] == [5_000]
