"""Proves that what lacks a vector gets it, whoever's it is, and that a model answers only when it has filled the index."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from embedding_hands import FakeServer
from hands import fast_settings
from helpers import eventually_async
from knowledge_hands import index_all, write

from cogo import Database, Retry, errors
from cogo.core.runtime import Runtime, run
from cogo.core.settings import Secret
from cogo.knowledge import search, sources, vectors
from cogo.knowledge.embedding import Model, remote
from cogo.plugins import rag_embed
from cogo.testing import run_role

ROLE = rag_embed.cogo_role()
ANY: dict[str, Any] = {"vectors": True}
WAITING = "SELECT tenant FROM public.agent_messages WHERE payload @> '{\"vectors\": true}' AND status = 'queued' ORDER BY 1"
LACKING = "SELECT count(*) FROM cogo.kb_chunks c WHERE NOT EXISTS (SELECT FROM {} v WHERE (v.file_id, v.digest) = (c.file_id, c.digest))"  # fmt: skip


@pytest.fixture
async def server(database: Database, tmp_path: Path) -> AsyncIterator[FakeServer]:
    async with FakeServer().running() as found:
        attached = vectors.attach(database, tmp_path / "home")
        yield found
        await attached.aclose()


def set_to(model: Model | str) -> rag_embed.RagEmbedSettings:
    return rag_embed.RagEmbedSettings(embedder=model)  # type: ignore[arg-type]


async def waiting(db: Database) -> list[str]:
    return [row["tenant"] for row in await db.fetch(WAITING)]


async def serving(db: Database) -> Model | None:
    attached = vectors.of(db)
    assert attached is not None
    table = await attached.serving()
    return table.model if table else None


async def work_off(db: Database, settings: rag_embed.RagEmbedSettings) -> int:
    """Do what rag/embed would with the messages for vectors until none waits; how many there were."""
    n = 0
    while row := await db.fetch_one(
        "DELETE FROM public.agent_messages WHERE id = (SELECT min(id) FROM public.agent_messages"
        " WHERE payload @> '{\"vectors\": true}') RETURNING tenant, payload"
    ):
        await run_role(ROLE, row["payload"], tenant=row["tenant"], db=db, settings=settings)
        n += 1
        assert n < 200
    return n


async def test_a_new_model_takes_over_without_a_scan(
    database: Database, server: FakeServer, tmp_path: Path
) -> None:
    """Two tenants' folders and the rows of a table get its vectors by messages of their own, and then it answers."""
    old, new = server.model("old"), server.model("new")
    await database.execute("CREATE TABLE public.notes (id bigint PRIMARY KEY, body text, owner text)")
    await database.execute("INSERT INTO public.notes VALUES (1, 'one', 'acme'), (2, 'two', 'third')")
    await sources.follow(database, [sources.Source("public.notes", "id", "body", "owner")])
    for row in await database.fetch("DELETE FROM public.agent_messages RETURNING tenant, payload"):
        await run_role(ROLE, row["payload"], tenant=row["tenant"], db=database)
    await index_all(database, write(tmp_path / "harbour"))
    await index_all(database, write(tmp_path / "harbour"), tenant="other")
    await rag_embed.decide(database, set_to(old))
    assert await waiting(database) == ["acme", "other", "third"]
    await work_off(database, set_to(old))
    assert await serving(database) == old
    await rag_embed.decide(database, set_to(new))
    assert await waiting(database) == ["acme", "other", "third"]
    assert await serving(database) == old
    await work_off(database, set_to(new))
    assert await serving(database) == new
    table = await vectors.table_of(database, new)
    assert await database.fetch_value(LACKING.format(table.name)) == 0


async def test_a_tenants_message_makes_that_tenants_vectors_alone(
    database: Database, server: FakeServer, tmp_path: Path
) -> None:
    for tenant in ("acme", "other"):
        await index_all(database, write(tmp_path / "harbour"), tenant=tenant)
    model = server.model()
    await rag_embed.decide(database, set_to(model))
    assert (await run_role(ROLE, ANY, tenant="acme", db=database, settings=set_to(model)))["vectors"] > 0
    table = await vectors.table_of(database, model)
    rows = await database.fetch(
        f"SELECT DISTINCT r.tenant FROM {table.name} v JOIN cogo.kb_repos r ON r.id = v.repo_id"
    )
    assert [row["tenant"] for row in rows] == ["acme"]
    assert await serving(database) is None, "the other tenant's spans lack theirs"


async def test_many_files_are_many_messages_of_which_one_waits(
    database: Database, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rag_embed, "BATCH", 5)
    await index_all(
        database, write(tmp_path / "many", {f"m{i:02}.py": f"def f{i}(): pass\n" for i in range(23)})
    )
    model = server.model()
    await rag_embed.decide(database, set_to(model))
    for _ in range(3):  # as three processes that start
        await rag_embed.decide(database, set_to(model))
        assert await waiting(database) == ["acme"]
    assert 5 <= await work_off(database, set_to(model)) <= 8
    assert len(server.requests) == 5
    texts = [text for request in server.requests for text in request["input"]]
    assert len(texts) == len(set(texts)) == 2 * 23, "each text and each name, none twice"
    assert await serving(database) == model


async def test_what_is_indexed_while_the_last_one_looks_is_not_forgotten(
    database: Database, server: FakeServer, tmp_path: Path
) -> None:
    """The message that is claimed is no reason to send no other one: it may have looked already."""
    model = server.model()
    await index_all(database, write(tmp_path / "harbour"))
    await rag_embed.decide(database, set_to(model))
    await database.execute("UPDATE public.agent_messages SET status = 'claimed'")
    assert await vectors.ask_for(database, "acme") == 1
    assert await vectors.ask_for(database, "acme") == 0
    await database.execute(
        "UPDATE public.agent_messages SET retry_at = now() + interval '1 hour' WHERE status = 'queued'"
    )
    assert await vectors.ask_for(database, "acme") == 0, "one that was put off will look, too"


async def test_the_first_model_does_not_answer_before_it_is_filled(
    database: Database, server: FakeServer, tmp_path: Path
) -> None:
    """So one with a mistyped name never does."""
    await index_all(database, write(tmp_path / "harbour"))
    wrong = msgspec.structs.replace(server.model(), name="hashs")
    await rag_embed.decide(database, set_to(wrong))
    assert await serving(database) is None
    server.answers = [(404, {})]
    with pytest.raises(errors.ModelUnavailable, match="refuses hashs"):
        await run_role(ROLE, ANY, tenant="acme", db=database, settings=set_to(wrong))
    assert await serving(database) is None
    await rag_embed.decide(database, set_to(server.model()))
    await work_off(database, set_to(server.model()))
    assert await serving(database) == server.model()
    await database.execute(
        "UPDATE cogo.kb_models SET retired_at = now() - interval '2 minutes' WHERE wanted_at IS NULL"
    )
    assert await vectors.serve(database, await vectors.table_of(database, server.model()))
    await run_role(ROLE, ANY, tenant="acme", db=database, settings=set_to(server.model()))
    names = [row["name"] for row in await database.fetch("SELECT name FROM cogo.kb_models")]
    assert names == ["hashes"], "the mistyped one has gone"


async def test_two_workers_with_different_settings_make_the_same_vectors(
    database: Database, server: FakeServer, tmp_path: Path
) -> None:
    """What the process that started last is set to counts for all."""
    first, last = server.model("first"), server.model("last")
    await index_all(database, write(tmp_path / "harbour"))
    for model in (first, last):
        await rag_embed.decide(database, set_to(model))
    for model in (first, last, first, last):
        await run_role(ROLE, ANY, tenant="acme", db=database, settings=set_to(model))
    assert await serving(database) == last
    table = await vectors.table_of(database, first)
    assert await database.fetch_value(f"SELECT count(*) FROM {table.name}") == 0


async def test_no_vectors_are_wanted_any_more(database: Database, server: FakeServer, tmp_path: Path) -> None:
    model = server.model()
    await index_all(database, write(tmp_path / "harbour"))
    await rag_embed.decide(database, set_to(model))
    await work_off(database, set_to(model))
    await rag_embed.decide(database, set_to("none"))
    assert await serving(database) is None
    (hits,) = await search.search(database, "acme", ["one night at the pontoon"], 3)
    assert not hits[0].by_vectors
    left = await run_role(ROLE, ANY, tenant="acme", db=database, settings=set_to("none"))
    assert left["vectors"] == 0, "a message that waited ends, instead of being put off for ever"
    left = await run_role(ROLE, ANY, tenant="acme", db=database, settings=set_to(model))
    assert left["vectors"] == 0, "nor does a process that was started before want them again"
    embedded = len(server.requests)
    await rag_embed.decide(database, set_to(model))  # back again: they are still there
    await run_role(ROLE, ANY, tenant="acme", db=database, settings=set_to(model))
    assert await serving(database) == model
    assert len(server.requests) == embedded


async def test_a_worker_without_the_model_leaves_the_message_to_others(
    database: Database, server: FakeServer, tmp_path: Path
) -> None:
    await index_all(database, write(tmp_path / "harbour"))
    await rag_embed.decide(database, set_to(Model("minilm", 384, "elsewhere")))
    with pytest.raises(Retry, match="minilm elsewhere is not installed here") as raised:
        await run_role(ROLE, ANY, tenant="acme", db=database)
    assert not raised.value.counted
    with pytest.raises(Retry, match="set to make no vectors"):
        await run_role(ROLE, ANY, tenant="acme", db=database, settings=set_to("none"))


# -- on the bus -------------------------------------------------------------------------------


async def started(dsn: str, model: Model, stop: anyio.Event, ready: anyio.Event) -> None:
    """A process that serves rag-embed, until `stop`."""
    settings = msgspec.structs.replace(
        fast_settings().settings, database_url=Secret(dsn), roles=("rag-embed",),
        plugins={"rag-embed": {"embedder": msgspec.to_builtins(model)}},
    )  # fmt: skip

    def began(_: Runtime) -> None:
        ready.set()

    await run(settings, stop=stop, signals=False, ready=began)


async def test_a_process_that_starts_with_a_model_fills_what_is_there(
    dsn: str, database: Database, server: FakeServer, tmp_path: Path
) -> None:
    await index_all(database, write(tmp_path / "harbour"))
    await index_all(database, write(tmp_path / "harbour"), tenant="other")
    model, stop, ready = server.model(), anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(started, dsn, model, stop, ready)
        await ready.wait()

        async def takes_over() -> bool:
            return await serving(database) == model

        await eventually_async(takes_over, timeout_s=15)
        stop.set()


async def test_a_refused_key_ends_as_a_failed_message(
    dsn: str, database: Database, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not put off for ever: after its attempts it is a dead letter, which `cogo doctor` shows."""
    monkeypatch.setattr(remote, "RETRIES", 0)
    await index_all(database, write(tmp_path / "harbour"))
    server.answers = [(401, {})] * 50
    stop, ready = anyio.Event(), anyio.Event()
    failed = "SELECT error, attempts FROM public.agent_messages WHERE status = 'failed'"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(started, dsn, server.model(), stop, ready)
        await ready.wait()

        async def ended() -> Any:
            await database.execute("UPDATE public.agent_messages SET retry_at = now() WHERE retry_at > now()")
            return await database.fetch_one(failed)

        found = await eventually_async(ended, timeout_s=18, every_s=0.1)
        stop.set()
    assert found["error"].startswith("model_unavailable: http://127.0.0.1")
    assert found["attempts"] == 5


# -- questions --------------------------------------------------------------------------------


async def test_a_dead_server_costs_one_question_its_patience_not_each(
    database: Database, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await index_all(database, write(tmp_path / "harbour"))
    await rag_embed.decide(database, set_to(server.model()))
    await work_off(database, set_to(server.model()))
    attached = vectors.of(database)
    assert attached is not None

    async def asked() -> bool:
        (hits,) = await search.search(database, "acme", ["one night at the pontoon"], 3)
        assert hits
        return hits[0].by_vectors

    assert await asked()
    assert await vectors.account(database, used=True) == vectors.Account("hashes", True)
    monkeypatch.setattr(vectors, "PATIENCE_S", 0.3)
    server.answers = [(500, {})] * 20
    assert not await asked()
    requests, began = len(server.requests), time.monotonic()
    for _ in range(20):
        assert not await asked()
    assert len(server.requests) == requests, "no other question tried"
    assert time.monotonic() - began < 20 * 0.3
    said = await vectors.account(database, used=False)
    assert said.model == "hashes"
    assert "Timeout" in str(said.why) or "500" in str(said.why)
    server.answers = []
    attached._again_at = 0.0  # half a minute later
    assert await asked()
    assert attached.unavailable is None
