"""Proves that `cogo doctor` says which vectors answer, what is lacking and why, and which tables can't be read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from embedding_hands import FakeServer
from knowledge_hands import index_all, write

from cogo.commands.doctor import of_tables, of_vectors
from cogo.core.bus import Bus
from cogo.core.settings import Settings
from cogo.knowledge import sources, vectors
from cogo.knowledge.embedding import Model
from cogo.plugins import rag_embed
from cogo.testing import run_role

ROLE = rag_embed.cogo_role()


@pytest.fixture
async def server(bus: Bus, tmp_path: Path) -> AsyncIterator[FakeServer]:
    async with FakeServer().running() as found:
        attached = vectors.attach(bus.db, tmp_path / "home")
        yield found
        await attached.aclose()


def settings(tmp_path: Path, model: Model | None) -> Settings:
    tables = {"rag-embed": {"embedder": msgspec.to_builtins(model)}} if model else {}
    return Settings(data_dir=tmp_path / "home", plugins=tables)


async def test_the_vectors_from_nothing_to_trouble(bus: Bus, server: FakeServer, tmp_path: Path) -> None:
    model = server.model()
    own = rag_embed.RagEmbedSettings(embedder=model)
    nothing = await of_vectors(bus, settings(tmp_path, None))
    assert (nothing.state, nothing.detail) == ("ok", "words alone answer")
    await index_all(bus.db, write(tmp_path / "harbour"))
    await rag_embed.decide(bus.db, own)
    lacking = await of_vectors(bus, settings(tmp_path, model))
    assert (lacking.state, lacking.detail) == (
        "warning",
        "words alone answer; 9 spans lack the vectors of hashes",
    )
    await run_role(ROLE, {"vectors": True}, tenant="acme", db=bus.db, settings=own)
    await run_role(ROLE, {"vectors": True}, tenant="acme", db=bus.db, settings=own)
    assert (await of_vectors(bus, settings(tmp_path, model))).detail == "hashes answers"
    other = await of_vectors(bus, settings(tmp_path, None))
    assert other.detail == "hashes answers; the settings here ask for no model, the database for hashes"
    server.answers = [(401, {})]
    await bus.db.execute(
        "UPDATE public.agent_messages SET status = 'failed', error = 'model_unavailable: x', last_error_at = now()"
    )
    trouble = await of_vectors(bus, settings(tmp_path, model))
    assert trouble.state == "warning"
    assert "answered by words alone: ModelUnavailable: http://127.0.0.1" in trouble.detail
    assert "messages for vectors failed: 1 (model_unavailable: x)" in trouble.detail


async def test_a_table_that_lost_its_column(bus: Bus) -> None:
    await bus.db.execute("CREATE TABLE public.notes (id bigint PRIMARY KEY, body text)")
    await sources.follow(bus.db, [sources.Source("public.notes", "id", "body")])
    assert (await of_tables(bus)).detail == "1 are followed"
    await bus.db.execute("ALTER TABLE public.notes DROP COLUMN body")
    broken = await of_tables(bus)
    assert (broken.state, broken.detail) == ("wrong", "public.notes has no column body")


async def test_settings_that_do_not_read(bus: Bus, tmp_path: Path) -> None:
    wrong = Settings(data_dir=tmp_path, plugins={"rag-embed": {"embedder": "nothing"}})
    assert (await of_vectors(bus, wrong)).state == "wrong"
