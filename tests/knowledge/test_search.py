"""Proves that the search ranks as BM25 does, within its scope, on any query."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import rich
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from knowledge_hands import index_all, write

from cogo import Database, errors
from cogo.knowledge import chunking, index, scan, search, tokens

QUERIES = [
    "split text into lines that fit a width",
    "progress bar column with the time that remains",
    "render a table with borders",
    "highlight a regular expression in text",
    "export console output as html",
]


def by_hand(root: Path, query: str, k: int) -> list[tuple[str, int, float]]:
    """The same formula over the same files in plain Python, every word of every span counted."""
    weights: dict[str, list[tuple[str, int, float]]] = {}
    total = 0
    for path in scan.list_files(root):
        prepared = index.prepare(path, scan.read_file(root, path))
        total += len(prepared.chunks)
        for term, (ords, values) in prepared.postings.items():
            spots = [(path, prepared.chunks[o].start, w) for o, w in zip(ords, values, strict=True)]
            weights.setdefault(term, []).extend(spots)
    scores: Counter[tuple[str, int]] = Counter()
    for term, n in Counter(tokens.terms(query)).items():
        found = weights.get(term, [])
        idf = math.log(1 + (total - len(found) + 0.5) / (len(found) + 0.5))
        for path, start, weight in found:
            scores[path, start] += n * idf * weight  # type: ignore[assignment]
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
    return [(path, start, score) for (path, start), score in ranked]


@pytest.mark.parametrize(("budget", "same"), [(search.BUDGET, 10), (50, 5)], ids=["usual", "few candidates"])
async def test_the_statement_ranks_as_the_formula(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int, same: int
) -> None:
    """Where the rare words choose the candidates, spans with only frequent ones may be missed, not the best."""
    monkeypatch.setattr(search, "BUDGET", budget)
    files = {p.name: p.read_text("utf-8") for p in Path(rich.__file__).parent.glob("[a-t]*.py")}
    root = write(tmp_path / "rich", files)
    await index_all(database, root)
    found = await search.search(database, "acme", QUERIES, same)
    for query, hits in zip(QUERIES, found, strict=True):
        wanted = by_hand(root, query, same)
        scores = [hit.score for hit in hits]
        assert scores == pytest.approx([score for *_, score in wanted], rel=1e-3)
        assert scores == sorted(scores, reverse=True)
        assert {(h.path, h.start) for h in hits[:3]} == {(path, start) for path, start, _ in wanted[:3]}


async def test_the_scope_narrows(database: Database, tmp_path: Path) -> None:
    text = "def walrus(): pass\n\n\nclass Walrus: pass\n"
    await index_all(database, write(tmp_path / "one", {"a.py": text, "pkg/b.py": text, "pkgs/c.py": text}))
    await index_all(database, write(tmp_path / "two", {"d.py": text}))

    async def paths(**scope: object) -> set[tuple[str, str]]:
        (hits,) = await search.search(database, "acme", ["walrus"], 20, search.Scope(**scope))  # type: ignore[arg-type]
        return {(hit.path, hit.kind) for hit in hits}

    assert {p for p, _ in await paths()} == {"a.py", "pkg/b.py", "pkgs/c.py", "d.py"}
    assert {p for p, _ in await paths(repo="two")} == {"d.py"}
    assert {p for p, _ in await paths(paths=("pkg",))} == {"pkg/b.py"}
    assert await paths(paths=("pkg/", "a.py"), kinds=("class",)) == {("pkg/b.py", "class"), ("a.py", "class")}
    assert await paths(kinds=()) == set()


async def test_coverage_counts_words_that_nobody_wrote(database: Database, tmp_path: Path) -> None:
    await index_all(
        database, write(tmp_path / "one", {"a.py": "def walrus(): pass\n", "b.py": "def seal(): pass\n"})
    )
    ((hit,), (half, *_)) = await search.search(database, "acme", ["walrus", "walrus xylophone"])
    assert hit.coverage == 1.0
    assert 0.2 < half.coverage < 0.5
    assert hit.scores.lexical == hit.score
    assert hit.scores.dense is None


async def test_impossible_requests_are_refused(database: Database) -> None:
    for texts, k in ((["x"] * 1_001, 1), (["x"], 0), (["x"], 1_001)):
        with pytest.raises(errors.Invalid):
            await search.search(database, "acme", texts, k)


@pytest.fixture
async def shelf(database: Database, tmp_path: Path) -> Database:
    files = {"a.py": "def walrus(): pass\n", "ko.md": "# 장부\n\n장부는 매일 밤 두 번째 디스크로 복사된다.\n"}
    await index_all(database, write(tmp_path / "one", files))
    return database


@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_no_query_breaks_it(shelf: Database, texts: list[str]) -> None:
    found = await search.search(shelf, "acme", texts)
    assert len(found) == len(texts)


async def test_a_korean_question_finds_its_section(shelf: Database) -> None:
    (hits,) = await search.search(shelf, "acme", ["장부를 언제 복사하나요?"])
    assert [hit.path for hit in hits] == ["ko.md"]
    assert chunking.language(hits[0].path) == "markdown"


async def test_a_batch_answers_in_order(shelf: Database) -> None:
    found = await search.search(shelf, "acme", ["walrus", "", "nothing", "walrus"] * 250)
    assert [len(hits) for hits in found] == [1, 0, 0, 1] * 250
