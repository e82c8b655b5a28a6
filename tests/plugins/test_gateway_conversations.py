"""Proves that a follow-up is understood from what came before, and that conversations are kept exactly and bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from chat_hands import FakeChat, Script
from hands import process, shifted
from knowledge_hands import build_graph, index_all, write

from cogo import Database, errors
from cogo.core import upkeep
from cogo.core.bus import Bus
from cogo.core.runtime import Runtime
from cogo.knowledge import answers
from cogo.knowledge.chat import turns
from cogo.plugins import gateway
from cogo.testing import run_role

FIRST = "What does one night at the pontoon cost?"
FOLLOW_UP = "and who calls it?"


@pytest.fixture
async def server(database: Database, tmp_path: Path) -> AsyncIterator[FakeChat]:
    for tenant in ("acme", "other"):
        root = write(tmp_path / tenant / "harbour")
        await index_all(database, root, tenant)
        await build_graph(database, root, tenant)
    async with FakeChat().running() as found:
        yield found


def serving(dsn: str, server: FakeChat, **changes: Any) -> AbstractAsyncContextManager[Runtime]:
    settings = msgspec.to_builtins(server.settings(**changes))
    return process(dsn, ["gateway"], plugins={"gateway": settings}, grace_s=0.5)


async def ask(
    bus: Bus, question: str, conversation: str | None = "talk", tenant: str = "acme"
) -> dict[str, Any]:
    task = {"question": question, "conversation_id": conversation}
    result = await bus.result(await bus.enqueue(f"gateway/chat/0@{tenant}", task), timeout_s=15)
    assert result.status == "done", result.error
    assert isinstance(result.value, dict)
    return result.value


async def kept(bus: Bus) -> list[dict[str, Any]]:
    return await bus.db.fetch("SELECT * FROM cogo.chat_turns ORDER BY tenant, conversation_id, message_id")


@pytest.mark.parametrize("model", ["tide-1", None])
async def test_a_follow_up_is_about_what_was_asked_before(
    dsn: str, bus: Bus, server: FakeChat, model: str | None
) -> None:
    async with serving(dsn, server, model=model):
        assert not (await ask(bus, FOLLOW_UP, None))["found"], "by itself it means nothing"
        await ask(bus, FIRST)
        found = await ask(bus, FOLLOW_UP)
        assert found["found"]
        assert found["citations"][0]["path"] == "harbour/fees.py"
        third = await ask(bus, "그리고 그건?")
        assert third["citations"][0]["path"] == "harbour/fees.py", "a follow-up of a follow-up"
    assert found["mode"] == ("model" if model else "extractive")


async def test_a_new_subject_is_not_drowned_in_the_old_one(dsn: str, bus: Bus, server: FakeChat) -> None:
    question = "How are payments taken for a vessel?"
    async with serving(dsn, server, model=None):
        await ask(bus, FIRST)
        found = await ask(bus, question)
        alone = await ask(bus, question, None)
    assert found == alone
    assert found["citations"][0]["path"] == "harbour/ledger.py"


async def test_the_model_sees_the_turns_before_without_their_numbers(
    dsn: str, bus: Bus, server: FakeChat
) -> None:
    async with serving(dsn, server, history_turns=2):
        for _ in range(3):
            await ask(bus, FIRST)
        await ask(bus, FIRST, "elsewhere")
        await ask(bus, FIRST, "talk", "other")
    first, second, third, elsewhere, other = (server.prompt(number) for number in range(5))
    said = f"Question: {FIRST}\nAnswer: A night costs `length_m * RATE`.\n"
    assert [text.count(said) for text in (first, second, third)] == [0, 1, 2]
    assert said not in elsewhere
    assert said not in other, "another tenant's conversation of the same name is another one"


async def test_turns_are_kept_with_what_was_searched(dsn: str, bus: Bus, server: FakeChat) -> None:
    async with serving(dsn, server):
        await ask(bus, FIRST)
        await ask(bus, FIRST, None)
    (turn,) = await kept(bus)
    assert (turn["tenant"], turn["conversation_id"], turn["question"]) == ("acme", "talk", FIRST)
    assert turn["answer"] == "A night costs `length_m * RATE`."
    assert "pontoon" in turn["asked"]


async def test_a_message_that_is_tried_again_leaves_one_turn(dsn: str, bus: Bus, server: FakeChat) -> None:
    server.scripts = [Script(hang_after=2)]
    task = {"question": FIRST, "conversation_id": "talk"}
    async with serving(dsn, server):
        id = await bus.enqueue("gateway/chat/0@acme", task)
        await server.hanging.wait()
    assert await kept(bus) == []
    async with serving(dsn, server):
        assert (await bus.result(id)).value["mode"] == "model"
    assert [turn["message_id"] for turn in await kept(bus)] == [id]


async def test_a_message_that_was_cancelled_leaves_none(dsn: str, bus: Bus, server: FakeChat) -> None:
    server.scripts = [Script(hang_after=2)]
    async with serving(dsn, server):
        id = await bus.enqueue("gateway/chat/0@acme", {"question": FIRST, "conversation_id": "talk"})
        await server.hanging.wait()
        await bus.cancel(id, actor="ops")
        await ask(bus, FIRST, "other")
    assert [turn["conversation_id"] for turn in await kept(bus)] == ["other"]


async def test_a_conversation_keeps_its_last_turns(dsn: str, bus: Bus, server: FakeChat) -> None:
    await bus.db.execute(
        "INSERT INTO cogo.chat_turns (tenant, conversation_id, message_id, question, asked, answer)"
        " SELECT t, 'talk', -n, 'q', 'a', 'b' FROM generate_series(1, 60) AS n, unnest(ARRAY['acme', 'other']) AS t"
    )
    async with serving(dsn, server):
        await ask(bus, "nightly_fee " * 600)
    rows = await kept(bus)
    assert [row["tenant"] for row in rows].count("acme") == turns.KEPT
    assert [row["tenant"] for row in rows].count("other") == 60
    newest = max((row for row in rows if row["tenant"] == "acme"), key=lambda row: row["message_id"])
    assert len(newest["question"]) == turns.QUESTION_MAX


async def test_old_turns_go_with_the_retention(dsn: str, bus: Bus, server: FakeChat) -> None:
    async with serving(dsn, server):
        await ask(bus, FIRST)
    async with shifted(dsn, "13 days") as later:
        await upkeep.retain_once(later, 14)
    assert len(await kept(bus)) == 1
    async with shifted(dsn, "15 days") as later:
        await upkeep.retain_once(later, 14)
    assert await kept(bus) == []


@pytest.mark.parametrize("id", ["", " ", "-a", "a b", "a\n", "a" * 129, "ä", 5, "a/b"])
async def test_a_name_that_is_none_ends_at_once(database: Database, id: Any) -> None:
    with pytest.raises(errors.TaskInvalid):
        await run_role(gateway.cogo_role(), {"question": "x", "conversation_id": id}, db=database)


@pytest.mark.parametrize(
    ("question", "together"),
    [
        ("and who calls it?", True),
        ("Which class is it derived from?", True),
        ("why?", True),
        ("그건 어디에 있습니까?", True),
        ("그리고 요금은 얼마입니까 선박 길이?", True),
        ("How are payments taken for a vessel?", False),
        ("선박 요금은 어디에 기록됩니까?", False),
    ],
)
def test_what_counts_as_a_follow_up(question: str, together: bool) -> None:
    own, with_before = answers.essence(question), answers.wordings(question, "night pontoon")
    assert with_before[1 if together else 0] == own
    assert with_before[0 if together else 1].endswith("night pontoon")
    assert answers.wordings(question, "") == [own]
