"""Proves that a graph that followed a hundred edits is the one that a fresh build makes, edge for edge."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from knowledge_hands import write

from cogo import Database
from cogo.knowledge import graph, index, scan

# Lines that files are put together from: what is defined in one is re-exported, inherited or called in others.
LINES = [
    "def alpha(): beta()\n", "def beta(): ...\n", "class Base:\n    def run(self): self.step()\n",
    "class Base:\n    def step(self): ...\n", "class Heir(Base):\n    def go(self): super().run(); self.step()\n",
    "from .b import alpha as gamma\n", "from .c import *\n", "from . import a, b\n", "from pkg.a import Base\n",
    "from .b import Heir\n", "import pkg.c as c\n", "def use():\n    x = Heir()\n    x.run(); x.step()\n    gamma(); c.beta()\n",
    "def more(): a.alpha(); b.Heir().go(); b.Base.step(None)\n", "Other = Base\n", "from .c import Other as Base\n",
    "@alpha\ndef decorated(value: Base): value.step()\n",
]  # fmt: skip
NAMES = [
    "pkg/a.py",
    "pkg/b.py",
    "pkg/c.py",
    "pkg/sub/__init__.py",
    "pkg/sub/d.py",
    "tests/test_a.py",
    "doc.md",
]
DOCUMENT = "# Doc\n\nUse `alpha()`, `pkg.a.beta`, `Base.step` and `c.beta`.\n"


async def edges(db: Database, repo: int) -> list[Any]:
    rows = await db.fetch(
        "SELECT sf.path AS file, s.qualname AS one, e.kind, e.names, e.line, e.confidence, df.path, d.qualname AS other,"
        " d.start_line FROM cogo.kg_edges e JOIN cogo.kg_files sf ON sf.id = e.file_id JOIN cogo.kg_nodes s ON s.id = e.src"
        " LEFT JOIN cogo.kg_nodes d ON d.id = e.dst LEFT JOIN cogo.kg_files df ON df.id = d.file_id"
        " WHERE e.repo_id = %s",
        (repo,),
    )
    return sorted(rows, key=repr)


def edit(root: Path, draw: random.Random) -> list[str]:
    """Change, make or remove a file or two; the paths."""
    paths = draw.sample(NAMES, draw.choice([1, 1, 1, 2]))
    for path in paths:
        if draw.random() < 0.2:
            (root / path).unlink(missing_ok=True)
        elif path == "doc.md":
            write(root, {path: DOCUMENT * draw.choice([1, 1, 2])})
        else:
            write(root, {path: "".join(draw.sample(LINES, draw.randint(0, 6)))})
    return paths


@pytest.mark.parametrize("seed", range(6))
async def test_edits_lead_where_a_fresh_build_leads(database: Database, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    root = scan.open_root(
        str(write(tmp_path / "repo", {"pkg/__init__.py": "from .a import *\n", "doc.md": DOCUMENT}))
    )
    followed = await index.open_repo(database, "acme", "followed", str(root))
    await graph.build(database, followed, root)
    most = 0
    for step in range(25):
        paths = edit(root, draw)
        await graph.build(database, followed, root, paths if draw.random() < 0.7 else None)
        if step % 3 == 0:
            fresh = await index.open_repo(database, "acme", f"fresh-{step}", str(root))
            await graph.build(database, fresh, root)
            found = await edges(database, followed.id)
            assert found == await edges(database, fresh.id), step
            most = max(most, len(found))
    assert most > 20
