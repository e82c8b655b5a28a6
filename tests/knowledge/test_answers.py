"""Proves that answers quote what stands at the lines they cite, and that nothing is found where nothing is."""

from __future__ import annotations

import codecs
import importlib
from pathlib import Path

import pytest
from knowledge_hands import build_graph, index_all, write

from cogo import Database, errors
from cogo.knowledge import answers, questions

# In rot13: COGO's own repository is asked such questions too, and must not hold them.
ELSEWHERE = [
    "Jung vf gur pncvgny bs Senapr?",
    "Ubj ybat zhfg oernq evfr orsber bar chgf vg vagb gur bira?",
    "Jub jba gur sbbgonyy punzcvbafuvc va 1998?",
    "Juvpu zrqvpvar urycf ntnvafg unl srire?",
    "Ubj qbrf n junyr fyrrc?",
    "Jura qb gur ghyvcf oybbz va Ubyynaq?",
]


def check(root: Path, citation: answers.Citation) -> None:
    """As a reader would: open the file, go to the lines, find the quote."""
    lines = (root / citation.path).read_text("utf-8").split("\n")[citation.line - 1 : citation.end]
    assert citation.quote
    assert citation.quote in "\n".join(lines), citation


async def test_an_answer_names_the_symbol_its_words_and_who_uses_it(
    database: Database, tmp_path: Path
) -> None:
    root = write(tmp_path / "harbour")
    await index_all(database, root)
    await build_graph(database, root)
    found = await answers.answer(database, "acme", "How does one take payments for a vessel?", repo="harbour")
    assert (found.found, found.mode) == (True, "extractive")
    assert "method `Ledger.settle` [harbour/ledger.py:7-9]" in found.answer
    assert "says [harbour/ledger.py:8-8]: Take a payment for a vessel." in found.answer
    assert "`harbour.ledger` is imported by `harbour` [harbour/__init__.py:3-3]" in found.answer
    assert found.confidence > 0.7
    for citation in found.citations:
        check(root, citation)
        assert citation.place in found.answer
        assert citation.repo == "harbour"
    assert found.citations[0].quote.startswith("def settle(self, boat: str")


@pytest.mark.parametrize("name", ["anyio", "click", "rich"])
async def test_a_packages_own_prose_is_found_and_nothing_else(database: Database, name: str) -> None:
    root = Path(next(iter(importlib.import_module(name).__path__)))
    await index_all(database, root)
    await build_graph(database, root)
    asked = questions.answerable(root, 8)
    assert len(asked) == 8
    for question in asked:
        found = await answers.answer(database, "acme", question, repo=name)
        assert found.found, (question, found.confidence)
        assert found.citations
        for citation in found.citations:
            check(root, citation)
    elsewhere = [codecs.decode(text, "rot13") for text in ELSEWHERE]
    for question in [
        *elsewhere,
        questions.unanswerable(root),
        "프랑스의 수도는 어디입니까?",
        "的",
        "?",
        "what is it",
    ]:
        found = await answers.answer(database, "acme", question, repo=name)
        assert not found.found, (question, found.answer)
        assert (found.answer, found.citations) == ("not found", [])


async def test_copies_are_cited_once(database: Database, tmp_path: Path) -> None:
    text = 'def sail():\n    """Hoist the spinnaker at dawn."""\n'
    root = write(tmp_path / "repo", {"a.py": text, "copy/a.py": text, "b.py": "def other(): pass\n"})
    await index_all(database, root)
    found = await answers.answer(database, "acme", "When is the spinnaker hoisted?")
    assert found.answer.count("spinnaker") == 1


async def test_documents_in_any_language_are_quoted(database: Database, tmp_path: Path) -> None:
    text = "# 항구\n\n## 백업\n\n장부는 매일 밤 세 시에\n두 번째 디스크로 복사된다.\n"
    root = write(tmp_path / "repo", {"문서/안내.md": text, "a.md": "# Other\n\nSome words.\n"})
    await index_all(database, root)
    found = await answers.answer(database, "acme", "장부는 어디로 복사됩니까?")
    assert found.found
    (citation,) = found.citations
    check(root, citation)
    assert (citation.path, citation.line, citation.end) == ("문서/안내.md", 5, 6)


@pytest.mark.parametrize(
    "text",
    ["x = [\n", 'def f(a="):", b=\'"""\'):\n    """Zebra `stripes`."""\n', "zebra " * 3_000, "# zebra\n\n|zebra|\n", "\x0czebra\x0c\nzebra"],
)  # fmt: skip
async def test_odd_files_are_quoted_exactly(database: Database, tmp_path: Path, text: str) -> None:
    files = {
        "a.py": text,
        "b.md": f"zebra\n\n{text}",
        "c.md": "nothing\n",
        "d.md": "else\n",
        "e.md": "here\n",
    }
    root = write(tmp_path / "repo", files)
    await index_all(database, root)
    found = await answers.answer(database, "acme", "zebra stripes of a zebra")
    for citation in found.citations:
        check(root, citation)
        assert len(citation.quote) <= answers.QUOTE_MAX


async def test_an_unknown_repository_is_an_error_and_an_empty_index_is_not(database: Database) -> None:
    assert not (await answers.answer(database, "acme", "anything here")).found
    with pytest.raises(errors.NotFound):
        await answers.answer(database, "acme", "anything here", repo="nothing")


def test_the_words_of_asking_are_no_evidence() -> None:
    assert answers.essence("Where does the code retry_after a lost claim?") == "the retry_after a lost claim"
    assert answers.essence("What is it?") == "it"
    assert answers.essence("where") == "where"
