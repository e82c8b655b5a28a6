"""Proves that the demo's questions come from the prose, don't name what answers them, and are the same each time."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from knowledge_hands import write

from cogo.knowledge import questions, scan, tokens


def test_statements_become_questions_that_people_ask(tmp_path: Path) -> None:
    files = {
        "README.md": "# Backups\n\nThe ledger is copied to a second disk every night. It is safe.\n\n- the list is no prose at all, here.\n",
        "a.py": 'def settle(x):\n    """Take a payment and write the amount into a book.\n\n    More."""\n',
        "b.py": 'class Crane:\n    def lift(self):\n        """Raise a boat and carry the boat over the quay."""\n',
    }  # fmt: skip
    root = write(tmp_path / "repo", files)
    assert sorted(questions.answerable(root, 3)) == [
        "Is the ledger copied to a second disk every night?",
        "Which function takes a payment and writes the amount into a book?",
        "Which method raises a boat and carry the boat over the quay?",
    ]


def test_a_sentence_with_the_name_in_it_is_not_asked(tmp_path: Path) -> None:
    text = 'def take_payments(x):\n    """Take a payment for the boat at the quay."""\n'
    root = write(tmp_path / "repo", {"a.py": text})
    assert not [q for q in questions.answerable(root) if q.startswith("Which")]


def test_other_languages_and_bare_comments_are_quoted(tmp_path: Path) -> None:
    files = {
        "README.md": "장부는 매일 밤 두 번째 디스크로 복사된다.\n",
        "a.js": "// sends the letter to every subscriber\nf()\n",
    }
    root = write(tmp_path / "repo", files)
    assert sorted(questions.answerable(root)) == [
        "Where does it say “sends the letter to every subscriber”?",
        "Where does it say “장부는 매일 밤 두 번째 디스크로 복사된다”?",
    ]


def test_an_empty_folder_has_no_questions_but_one_that_it_cannot_answer(tmp_path: Path) -> None:
    assert questions.answerable(tmp_path) == []
    assert questions.unanswerable(tmp_path).endswith("?")


def test_a_topic_that_the_folder_knows_is_not_asked(tmp_path: Path) -> None:
    first = questions.unanswerable(tmp_path)
    root = write(tmp_path / "repo", {"a.md": first})
    assert questions.unanswerable(root) != first


@pytest.mark.parametrize("name", ["litestar", "rich", "anyio", "cogo"])
def test_the_questions_of_a_real_package(name: str) -> None:
    root = Path(next(iter(importlib.import_module(name).__path__)))
    asked = questions.answerable(root, 5)
    assert asked == questions.answerable(root, 5)
    assert len(set(asked)) == 5
    assert all(question[0].isupper() and question.endswith("?") for question in asked)
    unanswerable = questions.unanswerable(root)
    texts = " ".join(text for _, text in questions._texts(root))
    known = set(tokens.terms(texts))
    strange = [term for term in tokens.terms(unanswerable) if term not in known]
    assert len(strange) >= 2, "COGO's own package holds its topics in rot13 only"


def test_it_reads_a_folder_safely(tmp_path: Path) -> None:
    root = write(tmp_path / "repo", {"a.py": "x = 1\n"})
    (root / "secret.md").symlink_to("/etc/passwd")
    assert [path for path, _ in questions._texts(root)] == ["a.py"]
    assert scan.list_files(root) == ["a.py", "secret.md"]
