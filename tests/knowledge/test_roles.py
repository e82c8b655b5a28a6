"""Proves that the knowledge roles do their work through the bus, again and at once without harm."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hands import Hand, reclaim
from helpers import eventually_async
from knowledge_hands import FILES, index_all, rows, write

from cogo import Database, errors
from cogo.core.bus import Bus
from cogo.plugins import gateway, kg_builder, rag_embed
from cogo.testing import Recorder, run_role, running

ROLES = (rag_embed.cogo_role(), kg_builder.cogo_role(), gateway.cogo_role())


@pytest.fixture
async def serving(dsn: str, database: Database) -> AsyncIterator[Bus]:
    async with running(*ROLES, dsn=dsn) as bus:
        yield bus


async def value(bus: Bus, id: int) -> Any:
    result = await bus.result(id, timeout_s=15)
    assert result.status == "done", result.error
    return result.value


async def all_done(bus: Bus) -> bool:
    counts = await bus.db.fetch("SELECT DISTINCT status FROM public.agent_messages")
    return [row["status"] for row in counts] == ["done"]


async def test_a_repository_goes_in_and_an_answer_comes_out(serving: Bus, tmp_path: Path) -> None:
    root = write(tmp_path / "harbour")
    scan = await serving.enqueue("rag/embed/0@acme", {"root": str(root)})
    graph = await serving.enqueue("kg/build/0@acme", {"root": str(root)})
    assert await value(serving, scan) == {
        "repo": "harbour", "files": 4, "messages": 1, "changed": 4, "removed": 0, "skipped": {}, "unparsed": {},
    }  # fmt: skip
    built = await value(serving, graph)
    assert (built["files"], built["nodes"], built["notes"]) == (4, 10, {})
    assert built["edges"] == sum(built["report"]["edges"].values()) > built["report"]["edges"]["imports"] + 5
    await eventually_async(lambda: all_done(serving))
    asked = {
        "question": "What does one night at the pontoon cost?",
        "repo": "harbour",
        "__assignment": {"model": None},
    }
    answer = await value(serving, await serving.enqueue("gateway/chat/0@acme", asked))
    assert answer["found"] is True
    assert answer["citations"][0]["path"] == "harbour/fees.py"
    assert "harbour/fees.py:12-14" in answer["answer"]
    again = await value(serving, await serving.enqueue("rag/embed/0@acme", {"root": str(root)}))
    assert (again["messages"], again["changed"]) == (0, 0)


async def test_a_large_folder_is_cut_into_messages(database: Database, tmp_path: Path) -> None:
    root = write(tmp_path / "many", {f"m{i:03}.py": f"def f{i}(): pass\n" for i in range(95)})
    sent = Recorder()
    found = await run_role(
        ROLES[0], {"root": str(root), "repo": "named"}, tenant="acme", db=database, into=sent
    )
    assert (found["repo"], found["files"], found["messages"]) == ("named", 95, 3)
    assert [key for key, _ in sent.sent] == ["rag/embed/0@acme"] * 3
    assert sorted(path for _, task in sent.sent for path in task["paths"]) == sorted(
        p.name for p in root.iterdir()
    )
    for _, task in sent.sent:
        report = await run_role(ROLES[0], task, tenant="acme", db=database)
        assert report.files == len(task["paths"])
    assert len((await rows(database))["chunks"]) == 95


async def test_work_that_was_cut_off_is_done_again_without_duplicates(
    dsn: str, database: Database, bus: Bus, tmp_path: Path
) -> None:
    """A holder that scanned and then indexed half a batch dies; another one runs all of it again."""
    root = write(tmp_path / "many", {f"m{i:03}.py": f"def f{i}(): pass\n" for i in range(50)})
    await bus.enqueue("rag/embed/0@acme", {"root": str(root)})
    hand = await Hand(bus, "dies").register("rag/embed/0")
    (scan,) = await hand.claim("rag/embed", 1)
    sent = Recorder()
    await run_role(ROLES[0], msgspec.json.decode(scan.payload), tenant="acme", db=database, into=sent)
    half = sent.sent[0][1] | {"paths": sent.sent[0][1]["paths"][:20]}
    await run_role(ROLES[0], half, tenant="acme", db=database)
    await database.execute("UPDATE cogo.bus_holders SET lease_until = now() - interval '1 s'")
    assert await reclaim(bus, lease_ms=0)
    async with running(*ROLES, dsn=dsn) as serving:
        await value(serving, scan.id)
        await eventually_async(lambda: all_done(serving))
    found = await rows(database)
    await database.execute("DELETE FROM cogo.kb_repos")
    await index_all(database, root)
    assert await rows(database) == found
    assert len(found["chunks"]) == 50


@pytest.mark.parametrize(
    "task",
    [{}, {"root": "/does/not/exist"}, {"root": "relative"}, {"root": "/tmp", "table": "x"}, {"root": 5}, {"table": "public.x"}],
)  # fmt: skip
async def test_a_task_that_names_nothing_ends_at_once(database: Database, task: dict[str, Any]) -> None:
    with pytest.raises(errors.TaskInvalid):
        await run_role(ROLES[0], task, db=database)


@pytest.mark.parametrize("task", [{}, {"root": "/does/not/exist"}, {"root": "relative"}, {"root": None}])
async def test_a_graph_of_nothing_ends_at_once(database: Database, task: dict[str, Any]) -> None:
    with pytest.raises(errors.TaskInvalid):
        await run_role(ROLES[1], task, db=database)


async def test_a_request_from_outside_reads_only_the_operators_folders(
    database: Database, tmp_path: Path
) -> None:
    """A message with an assignment came through the ingress; the roots of the settings count for it."""
    root = write(tmp_path / "allowed/repo")
    task = {"root": str(root), "__assignment": {"agent_id": "x"}}
    for role, kind in ((ROLES[0], rag_embed.RagEmbedSettings), (ROLES[1], kg_builder.KgBuilderSettings)):
        with pytest.raises(errors.Forbidden):
            await run_role(role, task, db=database)
        with pytest.raises(errors.Forbidden):
            await run_role(role, task, db=database, settings=kind(roots=("/srv",)))
        found = await run_role(role, task, db=database, settings=kind(roots=(str(tmp_path / "allowed"),)))
        assert found["files"] in (3, len(FILES))


@pytest.mark.parametrize("task", [{}, {"question": ""}, {"question": "x", "k": 0}, {"question": "x" * 8_001}])
async def test_a_question_that_is_none_ends_at_once(database: Database, task: dict[str, Any]) -> None:
    with pytest.raises(errors.TaskInvalid):
        await run_role(ROLES[2], task, db=database)


async def test_the_answer_is_streamed_too(database: Database, tmp_path: Path) -> None:
    await index_all(database, write(tmp_path / "harbour"))
    seen = Recorder()
    found = await run_role(
        ROLES[2], {"question": "one night at the pontoon"}, tenant="acme", db=database, into=seen
    )
    assert seen.chunks == [("answer", {"text": found.answer})]
