"""Proves that questions about the graph are answered by it, each line cited, and that others are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from knowledge_hands import build_graph, index_all, write

from cogo import Database
from cogo.knowledge import answers, graph_answers
from cogo.plugins import gateway
from cogo.testing import run_role

FILES = {
    "till/__init__.py": "",
    "till/ledger.py": "class Ledger:\n    def settle(self): ...\n\n\ndef open_ledger():\n    return Ledger()\n",
    "till/desk.py": (
        "from till.ledger import Ledger, open_ledger\n\n\nclass Desk(Ledger):\n    def close(self):\n        self.settle()\n"
        "\n\ndef run():\n    open_ledger().settle()\n    Desk().close()\n"
    ),
    "tests/test_desk.py": "from till.desk import run\n\n\ndef test_run():\n    run()\n",
    "guide.md": "# Guide\n\nA day ends with `Desk.close()`.\n",
}


@pytest.fixture
async def till(database: Database, tmp_path: Path) -> Database:
    root = write(tmp_path / "till", FILES)
    await index_all(database, root)
    await build_graph(database, root)
    return database


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("Who calls open_ledger?", ["till.desk.run"]),
        ("who calls `Ledger.settle()`", ["till.desk.Desk.close"]),
        ("What imports till.ledger?", ["till.desk"]),
        ("which modules import till/ledger.py?", ["till.desk"]),
        ("Which classes inherit from the class Ledger?", ["till.desk.Desk"]),
        ("what tests run?", ["tests.test_desk", "tests.test_desk.test_run"]),
        ("What documents Desk.close?", ["guide.md#Guide"]),
        ("What does the function run call?", ["till.desk.Desk", "till.desk.Desk.close", "till.ledger.open_ledger"]),
        ("open_ledger를 호출하는 곳은 어디입니까?", ["till.desk.run"]),
        ("Who calls test_run?", []),
    ],
)  # fmt: skip
async def test_questions_of_the_graph(till: Database, question: str, names: list[str]) -> None:
    found = await graph_answers.answer(till, "acme", question)
    assert found is not None
    assert [each.qualname for each in found.citations[1:]] == names
    for citation in found.citations:
        lines = FILES[citation.path].split("\n")
        assert citation.quote == lines[citation.line - 1].strip()
        assert citation.place in found.answer


async def test_what_breaks_is_named_nearest_first(till: Database) -> None:
    found = await graph_answers.answer(till, "acme", "What breaks if Ledger.settle changes?")
    assert found is not None
    named = [each.qualname for each in found.citations[1:]]
    assert named == ["till.desk.Desk.close", "till.desk.run", "tests.test_desk", "tests.test_desk.test_run"]


@pytest.mark.parametrize(
    "question",
    ["Who calls nothing_like_this?", "who calls it?", "How is a ledger settled?", "What uses the most memory?", "who?", ""],
)  # fmt: skip
async def test_other_questions_are_left_alone(till: Database, question: str) -> None:
    assert await graph_answers.answer(till, "acme", question) is None


async def test_the_gateway_asks_the_graph_first(till: Database) -> None:
    found = await run_role(
        gateway.cogo_role(), {"question": "Who calls open_ledger?"}, tenant="acme", db=till
    )
    assert isinstance(found, answers.Answer)
    assert (found.confidence, found.citations[1].place) == (1.0, "till/desk.py:10-10")
    other = await run_role(
        gateway.cogo_role(), {"question": "Who calls open_ledger?"}, tenant="other", db=till
    )
    assert not other.found
