"""Proves which calls and uses the graph knows: what Python's and JavaScript's scopes say, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from knowledge_hands import build_graph, write

from cogo import Database, errors
from cogo.knowledge import graph

PYTHON = {
    "pkg/__init__.py": "from .impl import Base, make as build\nfrom .more import *\n",
    "pkg/impl.py": (
        "class Base:\n"
        "    def __init__(self, n): self.n = n\n"
        "    def run(self): return self.step()\n"
        "    def step(self): ...\n"
        "    @classmethod\n"
        "    def new(cls): return cls(1)\n"
        "def make(): return Base(1)\n"
    ),
    "pkg/more.py": "import os\ndef starred(): os.getcwd()\n_hidden = 1\nalias = starred\n",
    "pkg/use.py": (
        "import pkg\nimport pkg.impl as impl\nfrom pkg import Base, build, starred\nfrom pkg.more import alias\n"
        "class Child(Base):\n"
        "    def step(self): super().step(); self.run(); self.unknown()\n"
        "def by_name(): build(); starred(); alias()\n"
        "def by_module(): pkg.build(); impl.make()\n"
        "def made():\n    thing = Child(1)\n    thing.run()\n    thing.step()\n"
        "def told(thing: Child | None, other: 'Base'): thing.step(); other.run()\n"
        "def hidden(build): build()\n"
        "def inner():\n    def build(): ...\n    build()\n"
        "def passed(call=make_later): return sorted([], key=impl.make)\n"
        "def guessed(value): value.step(); value.append(1)\n"
        "class Holder:\n    build = 3\n    def method(self): build()\n"
    ),
}


async def links(db: Database, kind: str) -> set[tuple[str, str]]:
    rows = await db.fetch(
        "SELECT s.qualname AS one, d.qualname AS other FROM cogo.kg_edges e JOIN cogo.kg_nodes s ON s.id = e.src"
        " JOIN cogo.kg_nodes d ON d.id = e.dst WHERE e.kind = %s",
        (kind,),
    )
    return {(row["one"], row["other"]) for row in rows}


async def test_calls_in_python(database: Database, tmp_path: Path) -> None:
    await build_graph(database, write(tmp_path / "repo", PYTHON))
    assert await links(database, "calls") == {
        ("pkg.impl.Base.run", "pkg.impl.Base.step"),
        ("pkg.impl.make", "pkg.impl.Base"),
        ("pkg.use.Child.step", "pkg.impl.Base.step"),
        ("pkg.use.Child.step", "pkg.impl.Base.run"),
        ("pkg.use.by_name", "pkg.impl.make"),
        ("pkg.use.by_name", "pkg.more.starred"),
        ("pkg.use.by_module", "pkg.impl.make"),
        ("pkg.use.made", "pkg.use.Child"),
        ("pkg.use.made", "pkg.impl.Base.run"),
        ("pkg.use.made", "pkg.use.Child.step"),
        ("pkg.use.told", "pkg.use.Child.step"),
        ("pkg.use.told", "pkg.impl.Base.run"),
        ("pkg.use.inner", "pkg.use.inner.build"),
        ("pkg.use.Holder.method", "pkg.impl.make"),
    }
    assert ("pkg.use.passed", "pkg.impl.make") in await links(database, "references")


async def test_attributes_have_the_type_that_the_class_tells(database: Database, tmp_path: Path) -> None:
    files = {
        "shop/__init__.py": "",
        "shop/till.py": "class Till:\n    def count(self): ...\nclass Box:\n    def count(self): ...\n",
        "shop/desk.py": (
            "from shop.till import Box, Till\n"
            "class Desk:\n"
            "    field: Till\n"
            "    def __init__(self, till: Till, other, either: Till):\n"
            "        self.told = till\n        self.made = Box()\n        self.later: Till | None = None\n"
            "        self.unknown = other\n        self.either = either\n"
            "    def change(self): self.either = Box()\n"
            "    def one(self): self.told.count()\n"
            "    def two(self): self.made.count()\n"
            "    def three(self): self.later.count(); self.field.count()\n"
            "    def none(self): self.unknown.count(); self.either.count(); self.told.drawer.count()\n"
        ),
    }
    await build_graph(database, write(tmp_path / "repo", files))
    assert {pair for pair in await links(database, "calls") if pair[1].endswith("count")} == {
        ("shop.desk.Desk.one", "shop.till.Till.count"),
        ("shop.desk.Desk.two", "shop.till.Box.count"),
        ("shop.desk.Desk.three", "shop.till.Till.count"),
    }


async def test_guesses_are_made_only_when_asked_for(database: Database, tmp_path: Path) -> None:
    files = {
        "a.py": "class A:\n    def settle(self): ...\n    def get(self): ...\n",
        "b.py": "def pay(x): x.settle(); x.get()\n",
    }
    repo, _ = await build_graph(database, write(tmp_path / "repo", files))
    assert await graph.callers(database, repo, "A.settle") == []
    (guess,) = await graph.callers(database, repo, "settle", guesses=True)
    assert (guess["name"], guess["path"], guess["line"], guess["confidence"]) == ("b.pay", "b.py", 1, "guess")
    assert await graph.callers(database, repo, "A.get", guesses=True) == []  # every dict has one
    write(tmp_path / "repo", {"c.py": "def settle(): ...\n"})
    await build_graph(database, tmp_path / "repo")
    assert await graph.callers(database, repo, "A.settle", guesses=True) == []


async def test_tests_and_documents_lead_to_what_they_are_about(database: Database, tmp_path: Path) -> None:
    files = {
        **PYTHON,
        "tests/test_impl.py": "from pkg import build\ndef helper(): ...\ndef test_it():\n    helper()\n    build()\n",
        "docs/guide.md": "# Guide\n\nNothing.\n\n## Making\n\nCall `pkg.make()`... or `impl.make()`; `Base.run` runs.\n",
    }
    repo, _ = await build_graph(database, write(tmp_path / "repo", files))
    assert ("tests.test_impl.test_it", "pkg.impl.make") in await links(database, "tests")
    assert not [pair for pair in await links(database, "tests") if pair[1].startswith("tests.")]
    making = "docs/guide.md#Guide > Making"
    assert await links(database, "documents") == {(making, "pkg.impl.make"), (making, "pkg.impl.Base.run")}
    (told,) = await graph.uses(database, repo, "impl.make", ["documents"])
    assert (told["name"], told["path"], told["line"]) == (making, "docs/guide.md", 7)


async def test_what_breaks_is_found_through_calls_and_heirs(database: Database, tmp_path: Path) -> None:
    repo, _ = await build_graph(database, write(tmp_path / "repo", PYTHON))
    found = {row["name"]: row["depth"] for row in await graph.impact(database, repo, "Base.step")}
    assert found["pkg.impl.Base.run"] == 1
    assert found["pkg.use.made"] == 2
    way = await graph.path(database, repo, "use.made", "Base.step")
    assert [step["name"] for step in way] == ["pkg.use.made", "pkg.impl.Base.run", "pkg.impl.Base.step"]
    with pytest.raises(errors.Invalid, match="the name of 2 things"):
        await graph.callers(database, repo, "step")
    with pytest.raises(errors.NotFound):
        await graph.callers(database, repo, "nowhere")


SCRIPT = {
    "package.json": '{"name": "top"}',
    "packages/core/package.json": '{"name": "@acme/core"}',
    "packages/core/src/index.ts": 'export * from "./shape.js"\nexport { area as size } from "./shape"\n',
    "packages/core/src/shape.ts": (
        "export interface Shape { area(): number }\n"
        "export class Square implements Shape {\n  area() { return side() }\n  twice() { return this.area() * 2 }\n}\n"
        "export const area = (s: Shape): number => s.area()\nfunction side() { return 2 }\n"
    ),
    "packages/app/main.tsx": (
        'import { size, Square } from "@acme/core"\nimport * as core from "@acme/core"\nimport old from "./old"\n'
        "class Big extends Square {}\n"
        "export function main() { size(new Square()); core.area(null); old.render() }\n"
        "function hidden(size) { size() }\nconst view = () => <Big />\n"
        'const later = () => import("./old")\n'
    ),
    "packages/app/old.js": 'const { side } = require("../core/src/shape")\nexports.render = function () { side() }\n',
}


async def test_calls_and_imports_in_javascript_and_typescript(database: Database, tmp_path: Path) -> None:
    await build_graph(database, write(tmp_path / "repo", SCRIPT))
    core, app = "packages/core/src/", "packages/app/"
    assert await links(database, "imports") == {
        (f"{core}index", f"{core}shape"),
        (f"{app}main", f"{core}index"),
        (f"{app}main", f"{app}old"),
        (f"{app}old", f"{core}shape"),
    }
    assert await links(database, "calls") == {
        (f"{core}shape.Square.area", f"{core}shape.side"),
        (f"{core}shape.Square.twice", f"{core}shape.Square.area"),
        (f"{app}main.main", f"{core}shape.area"),
        (f"{app}main.main", f"{core}shape.Square"),
        (f"{app}main.view", f"{app}main.Big"),
        (f"{app}old.render", f"{core}shape.side"),
    }
    assert await links(database, "inherits") == {
        (f"{core}shape.Square", f"{core}shape.Shape"),
        (f"{app}main.Big", f"{core}shape.Square"),
    }


async def test_of_two_imports_of_one_name_the_first_binds(database: Database, tmp_path: Path) -> None:
    """The order of the text, which the parser's driver does not keep: 20 names would not all come out right by chance."""
    files = {"pkg/__init__.py": "", "pkg/a.py": "", "pkg/b.py": "", "pkg/use.py": ""}
    for n in range(20):
        files["pkg/a.py"] += f"def f{n}(): ...\n"
        files["pkg/b.py"] += f"def f{n}(): ...\n"
        files["pkg/use.py"] += f"from pkg.a import f{n}\nfrom pkg.b import f{n}\ndef g{n}(): f{n}()\n"
    repo, _ = await build_graph(database, write(tmp_path / "repo", files))
    for n in range(20):
        called = await graph.callees(database, repo, f"pkg.use.g{n}")
        assert [row["name"] for row in called] == [f"pkg.a.f{n}"]
