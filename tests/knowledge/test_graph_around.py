"""Proves what stands near a file in the graph: importers and imported files, two steps far, with weights that sum to 1."""

from __future__ import annotations

from pathlib import Path

import pytest
from knowledge_hands import build_graph, index_all, write

from cogo import Database
from cogo.knowledge.graph.around import around

FILES = {
    "till/__init__.py": "",
    "till/money.py": "def cents(): ...\n",
    "till/ledger.py": "from till.money import cents\n",
    "till/desk.py": "from till.ledger import cents\n",
    "till/shop.py": "from till.desk import cents\n",
    "till/alone.py": "x = 1\n",
}


@pytest.fixture
async def till(database: Database, tmp_path: Path) -> Database:
    root = write(tmp_path / "till", FILES)
    await index_all(database, root)
    await build_graph(database, root)
    return database


async def test_weights_go_to_neighbours_two_steps_far(till: Database) -> None:
    found = await around(till, "acme", ["till/money.py"])
    assert sum(found.values()) == pytest.approx(1)
    by_path = {name.partition(":")[2]: weight for name, weight in found.items()}
    assert by_path["till/money.py"] > by_path["till/ledger.py"] > by_path["till/desk.py"] > 0
    assert "till/shop.py" not in by_path, "three steps away"
    assert "till/alone.py" not in by_path


async def test_a_file_without_neighbours_keeps_its_weight(till: Database) -> None:
    assert list((await around(till, "acme", ["till/alone.py"])).values()) == [1.0]


async def test_other_tenants_and_unknown_paths_have_nothing(till: Database) -> None:
    assert await around(till, "other", ["till/money.py"]) == {}
    assert await around(till, "acme", ["nothing.py"]) == {}
