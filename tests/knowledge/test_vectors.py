"""Proves that every span gets its vector once, that searches use them, and that a new model takes over whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from embedding_hands import MINILM, FakeServer, models_home
from knowledge_hands import index_all, write

from cogo import Database
from cogo.knowledge import answers, scan, search, vectors
from cogo.knowledge.embedding import Embedder, Model
from cogo.plugins import rag_embed
from cogo.testing import Recorder, run_role

pytestmark = pytest.mark.timeout(240)  # the first test of a fresh environment installs the model

BERTH = "what it costs to leave a ship over night"
NO_PGVECTOR = """
CREATE OR REPLACE FUNCTION cogo.pgvector_schema() RETURNS text LANGUAGE sql AS 'SELECT NULL::text'
"""


@pytest.fixture(autouse=True)
async def closed(database: Database) -> AsyncIterator[None]:
    yield
    if attached := vectors.of(database):
        await attached.aclose()


@pytest.fixture(params=["pgvector", "matrix"])
async def vectored(request: pytest.FixtureRequest, database: Database) -> vectors.Vectors:
    """With pgvector and without it: the same must come out."""
    if request.param == "matrix":
        await database.execute(NO_PGVECTOR)
    return vectors.attach(database, models_home())


async def filled(db: Database, name: str, model: Model = MINILM) -> int:
    """Give all of a repository its vectors; how many were made."""
    attached = vectors.of(db)
    assert attached is not None
    table = await vectors.table_of(db, model)
    (repo_id,) = await search.repo_ids(db, "acme", name)
    paths = await vectors.lacking(db, table, repo_id)
    made, done = await vectors.fill(db, table, attached.embedder(model), repo_id, paths)
    assert done
    return made


async def held(db: Database, table: vectors.Table) -> list[tuple[str, bytes]]:
    rows = await db.fetch(
        f"SELECT f.path, v.digest FROM {table.name} v JOIN cogo.kb_files f ON f.id = v.file_id"
    )
    return sorted((row["path"], bytes(row["digest"])) for row in rows)


async def chunks(db: Database) -> list[tuple[str, bytes]]:
    sql = "SELECT DISTINCT f.path, c.digest FROM cogo.kb_chunks c JOIN cogo.kb_files f ON f.id = c.file_id"
    return sorted((row["path"], bytes(row["digest"])) for row in await db.fetch(sql))


async def test_a_question_in_other_words_finds_the_span(
    database: Database, vectored: vectors.Vectors, tmp_path: Path
) -> None:
    await index_all(database, write(tmp_path / "harbour"))
    (by_words,) = await search.search(database, "acme", [BERTH], 3)
    assert all(hit.scores.dense is None for hit in by_words)
    assert await filled(database, "harbour") == len(await chunks(database))
    (hits,) = await search.search(database, "acme", [BERTH], 3)
    assert {hit.qualname for hit in hits[:2]} == {"nightly_fee", "Harbour > Mooring fees"}
    assert hits[0].scores.dense is not None
    assert hits[0].scores.dense > 0.3
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert 0 <= hits[-1].score <= hits[0].score <= 1
    assert vectored.unavailable is None


async def test_a_scope_narrows_what_is_near(
    database: Database, vectored: vectors.Vectors, tmp_path: Path
) -> None:
    await index_all(database, write(tmp_path / "harbour"))
    await filled(database, "harbour")
    for scope, found in (
        (search.Scope(paths=("README.md",)), {"README.md"}),
        (search.Scope(kinds=("class",)), {"harbour/ledger.py", "harbour/fees.py"}),
        (search.Scope(paths=("harbour",), kinds=("function",)), {"harbour/fees.py"}),
    ):
        (hits,) = await search.search(database, "acme", [BERTH], 10, scope)
        assert {hit.path for hit in hits} == found
    (others,) = await search.search(database, "other", [BERTH], 10)
    assert others == []


async def test_an_edit_embeds_what_was_edited_alone(
    database: Database, vectored: vectors.Vectors, tmp_path: Path
) -> None:
    root = write(tmp_path / "harbour")
    await index_all(database, root)
    await filled(database, "harbour")
    table = await vectors.table_of(database, MINILM)
    assert await held(database, table) == await chunks(database)
    fees = root / "harbour" / "fees.py"
    fees.write_text(
        "# A line at the top\n" + fees.read_text().replace("length_m * RATE", "length_m * RATE * 2")
    )
    await index_all(database, root)
    (repo_id,) = await search.repo_ids(database, "acme", "harbour")
    assert await vectors.lacking(database, table, repo_id) == ["harbour/fees.py"]
    assert await filled(database, "harbour") == 2  # the function, and the head that has a line more
    assert await held(database, table) == await chunks(database)
    fees.unlink()
    await index_all(database, root)
    assert await filled(database, "harbour") == 0
    assert await held(database, table) == await chunks(database)
    (hits,) = await search.search(database, "acme", [BERTH], 10)
    assert "harbour/fees.py" not in {hit.path for hit in hits}


class Fails:
    """An embedder that is cut off after some batches."""

    def __init__(self, real: Embedder, batches: int) -> None:
        self.model = real.model
        self._real = real
        self._left = batches
        self.seen: list[str] = []

    async def embed(self, texts: Sequence[str]) -> Any:
        if self._left == 0:
            raise ConnectionError
        self._left -= 1
        self.seen += texts
        return await self._real.embed(texts)


async def test_work_that_was_cut_off_goes_on_where_it_was(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "BATCH", 3)
    attached = vectors.attach(database, models_home())
    await index_all(database, write(tmp_path / "many", {f"m{i}.py": f"def f{i}(): pass\n" for i in range(8)}))
    (repo_id,) = await search.repo_ids(database, "acme", "many")
    table = await vectors.table_of(database, MINILM)
    paths = await vectors.lacking(database, table, repo_id)
    first = Fails(attached.embedder(MINILM), 2)
    with pytest.raises(ConnectionError):
        await vectors.fill(database, table, first, repo_id, paths)
    assert len(await held(database, table)) == 6
    second = Fails(attached.embedder(MINILM), 9)
    async with anyio.create_task_group() as tasks:  # two at once do no harm
        tasks.start_soon(vectors.fill, database, table, second, repo_id, paths)
        tasks.start_soon(vectors.fill, database, table, attached.embedder(MINILM), repo_id, paths)
    assert len(second.seen) <= 4  # two spans, each by its text and by its name
    assert await held(database, table) == await chunks(database)


async def test_a_vector_of_code_hears_its_name_too(database: Database) -> None:
    embedder = vectors.attach(database, models_home()).embedder(MINILM)
    code = {
        "path": "a/port.py",
        "kind": "method",
        "qualname": "Port.berth",
        "text": "def berth(self):\n    pass",
    }
    head = {"path": "a/port.py", "kind": "module", "qualname": "", "text": "import os"}
    page = {"path": "a.md", "kind": "section", "qualname": "Port > Berth", "text": "# Berth\nOne a ship."}
    found = await vectors.embed_chunks(embedder, [code, head, page])
    texts = ["a port port berth\ndef berth(self):\n    pass", "port berth", "a port\nimport os", "port"]
    whole, name, module, file, section = await embedder.embed([*texts, "Port > Berth\n# Berth\nOne a ship."])
    for vector, text, named in ((found[0], whole, name), (found[1], module, file)):
        mean = text + vectors.NAME * named
        assert vector @ mean == pytest.approx((mean @ mean) ** 0.5, abs=5e-3)
        assert vector @ vector == pytest.approx(1, abs=1e-5)
        assert vector @ named > text @ named
    assert found[2] @ section == pytest.approx(1, abs=5e-3)


async def test_a_score_is_what_its_parts_come_to(
    vectored: vectors.Vectors, database: Database, tmp_path: Path
) -> None:
    files = {
        "port.py": "FEES = 'berth fee of a ship'\n\ndef berth_fee(ship):\n    return ship.length\n",
        "guide.md": "# Berth\nThe fee of a berth for a ship.\n\n# Weather\nRain and wind.\n",
        "other.md": "# Fee\nNobody pays a fee.\n",
    }
    await index_all(database, write(tmp_path / "port", files))
    (repo_id,) = await search.repo_ids(database, "acme", "port")
    table = await vectors.table_of(database, MINILM)
    paths = await vectors.lacking(database, table, repo_id)
    await vectors.fill(database, table, vectored.embedder(MINILM), repo_id, paths)
    (hits,) = await search.search(database, "acme", ["the fee of a berth"], 100)
    assert {hit.kind for hit in hits} == {"module", "function", "section"}
    assert len(hits) == 5
    likeness = [hit.scores.dense or 0.0 for hit in hits]
    words, low, high = max(hit.scores.lexical for hit in hits), min(likeness), max(likeness)
    own = {}
    for hit, like in zip(hits, likeness, strict=True):
        weight = vectors.WEIGHT_SECTION if hit.kind == "section" else vectors.WEIGHT
        score = weight * (like - low) / (high - low) + (1 - weight) * hit.scores.lexical / words
        own[hit.path, hit.start] = score * (search.MODULE if hit.kind == "module" else 1)
    for hit in hits:
        score, page = own[hit.path, hit.start], max(own[at] for at in own if at[0] == hit.path)
        if hit.kind == "section":
            score = (score + search.FILE * page) / (1 + search.FILE)
        assert hit.score == pytest.approx(score, abs=2e-3)


@pytest.mark.parametrize("scope", [search.Scope(paths=()), search.Scope(kinds=())], ids=["paths", "kinds"])
async def test_an_empty_scope_finds_nothing(
    database: Database, vectored: vectors.Vectors, tmp_path: Path, scope: search.Scope
) -> None:
    await index_all(database, write(tmp_path / "harbour"))
    await filled(database, "harbour")
    assert await search.search(database, "acme", [BERTH, "???"], 3, scope) == [[], []]


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer().running() as found:
        yield found


async def test_a_new_model_fills_while_the_old_one_answers(
    database: Database, server: FakeServer, tmp_path: Path
) -> None:
    attached = vectors.attach(database, models_home())
    for name in ("one", "two"):
        await index_all(database, write(tmp_path / name))
    old, new = server.model("old"), server.model("new")
    for name in ("one", "two"):
        await filled(database, name, old)
    await vectors.table_of(database, new, change=True)
    await filled(database, "one", new)
    serving = await attached.serving()
    assert serving is not None
    assert serving.model == old  # of the second repository nothing is embedded anew
    (hits,) = await search.search(database, "acme", [BERTH], 3)
    assert hits[0].scores.dense is not None
    await filled(database, "two", new)
    serving = await attached.serving()
    assert serving is not None
    assert serving.model == new
    aged = "UPDATE cogo.kb_models SET retired_at = now() - interval '2 minutes' WHERE NOT serving"
    for model in (old, new):  # back again, though the old one could have gone by now
        await vectors.table_of(database, model, change=True)
        for name in ("one", "two"):
            await database.execute(aged)
            await filled(database, name, model)
        serving = await attached.serving()
        assert serving is not None
        assert serving.model == model
    await database.execute(
        "UPDATE cogo.kb_models SET retired_at = now() - interval '2 minutes' WHERE NOT serving"
    )
    await filled(database, "two", new)
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'cogo' AND tablename LIKE 'kb\\_vectors\\_%%'"
    assert await database.fetch_value(tables) == 1
    assert await database.fetch_value("SELECT count(*) FROM cogo.kb_models") == 1


async def test_words_answer_when_the_model_does_not(
    database: Database, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "PATIENCE_S", 0.5)
    attached = vectors.attach(database, models_home())
    await index_all(database, write(tmp_path / "harbour"))
    await filled(database, "harbour", server.model())
    server.answers = [(500, {})] * 20
    (hits,) = await search.search(database, "acme", ["one night at the pontoon"], 3)
    assert hits[0].qualname == "nightly_fee"
    assert hits[0].scores.dense is None
    assert attached.unavailable


async def test_a_span_without_a_vector_is_not_behind_those_that_have_one(
    database: Database, vectored: vectors.Vectors, tmp_path: Path
) -> None:
    """A second repository has just been indexed: its vectors are still to come."""
    await index_all(
        database, write(tmp_path / "other", {f"m{i}.py": f"def boat_{i}(): pass\n" for i in range(20)})
    )
    await filled(database, "other")
    await index_all(database, write(tmp_path / "harbour"))
    (hits,) = await search.search(database, "acme", ["take a payment for a boat"], 3)
    assert hits[0].qualname == "Ledger.settle"
    assert (hits[0].scores.dense, hits[0].by_vectors) == (None, True)


# -- the role ---------------------------------------------------------------------------------


async def test_words_come_first_and_vectors_after(database: Database, tmp_path: Path) -> None:
    vectors.attach(database, models_home())
    role, root = rag_embed.cogo_role(), write(tmp_path / "harbour")
    sent = Recorder()
    await run_role(role, {"root": str(root)}, tenant="acme", db=database, into=sent)
    ((_, batch),) = sent.sent
    await run_role(role, batch, tenant="acme", db=database, into=sent)
    _, (lane, task) = sent.sent
    assert (lane, task["vectors"], task["repo"]) == ("rag/embed/0@acme", True, "harbour")
    done = await run_role(role, task, tenant="acme", db=database)
    assert done == {"repo": "harbour", "vectors": len(await chunks(database))}
    again = await run_role(role, task, tenant="acme", db=database)
    assert again["vectors"] == 0


async def test_vectors_make_way_after_a_turn(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest leaves in another message, behind whatever is to be indexed."""
    monkeypatch.setattr(rag_embed, "TURN_S", 0.0)
    monkeypatch.setattr(vectors, "BATCH", 2)
    vectors.attach(database, models_home())
    await index_all(database, write(tmp_path / "harbour"))
    task: Any = {"vectors": True, "repo": "harbour", "paths": scan.list_files(tmp_path / "harbour")}
    made, messages = 0, 0
    while task:
        sent = Recorder()
        done = await run_role(rag_embed.cogo_role(), task, tenant="acme", db=database, into=sent)
        made, messages = made + done["vectors"], messages + 1
        task = sent.sent[0][1] if sent.sent else None
        assert messages < 20
    assert made == len(await chunks(database))
    assert messages > 1


async def test_a_scan_asks_for_vectors_that_are_lacking(database: Database, tmp_path: Path) -> None:
    """The model was installed after the folder was indexed."""
    root = write(tmp_path / "harbour")
    await index_all(database, root)
    vectors.attach(database, models_home())
    sent = Recorder()
    found = await run_role(rag_embed.cogo_role(), {"root": str(root)}, tenant="acme", db=database, into=sent)
    assert found["changed"] == 0
    ((_, task),) = sent.sent
    assert task["vectors"]
    assert sorted(task["paths"]) == sorted(scan.list_files(root))


# -- answers ----------------------------------------------------------------------------------


async def test_an_answer_by_meaning_quotes_lines_that_exist(
    database: Database, vectored: vectors.Vectors, tmp_path: Path
) -> None:
    root = write(tmp_path / "harbour")
    await index_all(database, root)
    await filled(database, "harbour")
    found = await answers.answer(database, "acme", "how expensive is it to park my yacht until tomorrow?")
    assert found.found
    assert found.confidence >= answers.FOUND_FROM
    assert {citation.path for citation in found.citations} & {"harbour/fees.py", "README.md"}
    for citation in found.citations:
        lines = (root / citation.path).read_text("utf-8").split("\n")[citation.line - 1 : citation.end]
        assert citation.quote in "\n".join(lines)
    for question in ("Who painted the Mona Lisa?", "How do vaccines work?", "Where do penguins live?"):
        assert not (await answers.answer(database, "acme", question)).found
