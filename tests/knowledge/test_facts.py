"""Proves that Python's import edges are grimp's, edge for edge, and that names mean what Python means."""

from __future__ import annotations

import importlib
from pathlib import Path

import grimp
import pytest
from knowledge_hands import write

from cogo.knowledge import scan
from cogo.knowledge.graph import facts, modules, python


def module(root: Path, path: str) -> facts.Module:
    return modules.Modules(root).of(path)


def read_all(root: Path) -> list[facts.Facts]:
    named = modules.Modules(root)
    paths = [path for path in scan.list_files(root) if path.endswith(".py")]
    return [python.read(named.of(p), p, scan.read_file(root, p, as_code=True).text) for p in paths]


def import_edges(found: list[facts.Facts]) -> set[tuple[str, str]]:
    """First name that is a packaged module, as the build resolves it."""
    known = {each.module.name for each in found if each.module.packaged}
    return {
        (each.module.name, target)
        for each in found
        if each.module.packaged
        for ref in each.references
        if ref.kind == "imports" and (target := next((name for name in ref.names if name in known), None))
    }


@pytest.mark.parametrize(
    "name", ["litestar", "anyio", "rich", "click", "psycopg", "opentelemetry", "hypothesis"]
)
def test_import_edges_equal_grimps(name: str) -> None:
    """Relative and star imports, submodules, imports in functions, self-imports, a namespace package."""
    folder = Path(next(iter(importlib.import_module(name).__path__)))
    graph = grimp.build_graph(name, cache_dir=None)
    theirs = {(one, other) for one in graph.modules for other in graph.find_modules_directly_imported_by(one)}
    found = read_all(folder)
    assert import_edges(found) == theirs
    assert len(theirs) > 20


@pytest.mark.parametrize(
    ("files", "path", "name", "packaged"),
    [
        (["pkg/__init__.py"], "pkg/__init__.py", "pkg", True),
        (["pkg/__init__.py"], "pkg/a.py", "pkg.a", True),
        (["src/pkg/__init__.py"], "src/pkg/a.py", "pkg.a", True),
        (["src/ns/pkg/__init__.py"], "src/ns/pkg/a.py", "ns.pkg.a", True),
        ([], "src/single.py", "single", True),
        ([], "scripts/run.py", "scripts.run", False),
        (["pkg/__init__.py"], "pkg/data/orphan.py", "pkg.data.orphan", False),
        (["__init__.py"], "a.py", "root.a", True),
    ],
)
def test_modules_are_named_as_they_are_imported(
    tmp_path: Path, files: list[str], path: str, name: str, packaged: bool
) -> None:
    root = write(tmp_path / "root", dict.fromkeys([*files, path], ""))
    found = module(root, path)
    assert (found.name, found.packaged) == (name, packaged)


def test_a_root_inside_a_package_knows_the_packages_above(tmp_path: Path) -> None:
    write(tmp_path, {"top/__init__.py": "", "top/sub/__init__.py": "", "top/sub/a.py": ""})
    assert module(tmp_path / "top/sub", "a.py").name == "top.sub.a"


def test_no_other_name_is_shorter_than_the_real_one(tmp_path: Path) -> None:
    """`import typing` must not come to mean pkg/typing.py."""
    write(tmp_path, {"pkg/__init__.py": "", "pkg/typing.py": ""})
    assert module(tmp_path / "pkg", "typing.py").other_names == ()
    assert "typing" not in module(tmp_path, "pkg/typing.py").other_names


def test_a_file_that_is_no_python_is_a_module_without_facts() -> None:
    found = python.read(facts.Module("m", True, False, "", ()), "m.py", "def (:\n")
    assert [node.kind for node in found.nodes] == ["module"]
    assert found.note is not None


def test_bases_are_named_through_imports() -> None:
    text = (
        "import a.b as ab\nfrom .c import D as E\nfrom x import *\n"
        "class One(ab.Base[int], E): ...\nclass Two(One, Star, metaclass=M): ...\nclass Three(make()): ...\n"
    )
    found = python.read(facts.Module("pkg.m", True, False, "", ()), "pkg/m.py", text)
    bases = {(found.nodes[r.src].qualname, r.names) for r in found.references if r.kind == "inherits"}
    assert bases == {
        ("pkg.m.One", ("a.b.Base",)),
        ("pkg.m.One", ("pkg.c.D",)),
        ("pkg.m.Two", ("pkg.m.One",)),
        ("pkg.m.Two", ("pkg.m.Star",)),
    }
    assert ("pkg.m.*", "x.*") in found.aliases
