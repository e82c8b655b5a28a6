"""Proves that a model's answer keeps within budget and time to live, over hops and attempts, and leaves its account."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from chat_hands import FakeChat, Script
from hands import process
from helpers import eventually_async
from knowledge_hands import build_graph, index_all, write

from cogo import Database
from cogo.core.bus import Bus
from cogo.core.runtime import Runtime
from cogo.knowledge.chat import prompt

LANE = "gateway/chat/0@acme"
QUESTION = "What does one night at the pontoon cost?"


@pytest.fixture
async def server(database: Database, tmp_path: Path) -> AsyncIterator[FakeChat]:
    """The model's server, and an index to ask about."""
    root = write(tmp_path / "harbour")
    await index_all(database, root)
    await build_graph(database, root)
    async with FakeChat().running() as found:
        yield found


def gateway(dsn: str, server: FakeChat, *others: str, **changes: Any) -> AbstractAsyncContextManager[Runtime]:
    """A process with the role and its settings, as plugins.toml would give them."""
    settings = msgspec.to_builtins(server.settings(**changes))
    return process(dsn, ["gateway", *others], plugins={"gateway": settings}, grace_s=0.5)


def asked(
    max_usd: float | None = 0.10, max_tokens: int | None = 200_000, **assignment: Any
) -> dict[str, Any]:
    budget = {"maxCostUsd": max_usd, "maxTokens": max_tokens}
    return {"question": QUESTION, "__assignment": {"budget": budget, **assignment}}


async def value(bus: Bus, id: int) -> dict[str, Any]:
    result = await bus.result(id, timeout_s=15)
    assert result.status == "done", result.error
    assert isinstance(result.value, dict)
    return result.value


async def hold(bus: Bus, root: int) -> dict[str, Any]:
    (found,) = await bus.db.fetch("SELECT * FROM cogo.budget_holds WHERE root_id = %s", (root,))
    return found


async def test_the_whole_way_streams_answers_and_settles(dsn: str, bus: Bus, server: FakeChat) -> None:
    async with gateway(dsn, server, "orchestrator", "executor"):
        task = {"intent": "chat", "payload": {"question": QUESTION}}
        id = await bus.enqueue("orchestrator/decide/0@acme", task)
        streamed = [chunk.data["text"] async for chunk in bus.chunks(id, timeout_s=15)]
        found = await value(bus, id)
    assert found["mode"] == "model"
    assert "".join(streamed) == found["answer"] == server.usual.text
    used = found["usage"]
    account = await hold(bus, id)
    assert account["max_cost_usd"] == Decimal("0.1")
    assert account["spent_tokens"] == used["input_tokens"] + used["output_tokens"]
    assert float(account["spent_cost_usd"]) == pytest.approx(found["cost_usd"], rel=1e-9)
    (event,) = await bus.db.fetch("SELECT detail FROM public.bus_events WHERE kind = 'chat_answered'")
    assert event["detail"]["cost_usd"] == found["cost_usd"]
    assert event["detail"]["model"] == found["model"] == "tide-1"


@pytest.mark.parametrize(
    "limits", [{"max_usd": 0}, {"max_tokens": 0}, {"max_usd": 1e-6}, {"max_tokens": 200}, {"max_usd": 0.0009}]
)
async def test_a_budget_that_allows_no_call_gives_the_answer_that_quotes(
    dsn: str, bus: Bus, server: FakeChat, limits: dict[str, Any]
) -> None:
    async with gateway(dsn, server):
        id = await bus.enqueue(LANE, asked(**limits))
        found = await value(bus, id)
    assert (found["found"], found["mode"], found["degraded"]) == (True, "extractive", "budget_exhausted")
    assert (found["cost_usd"], found["usage"], server.requests) == (0.0, None, [])


async def test_first_the_answer_shrinks_and_then_the_context(dsn: str, bus: Bus, server: FakeChat) -> None:
    async def shape(**limits: Any) -> tuple[int, int, int]:
        """(tokens of the prompt at most, sources, tokens of the answer at most) of the call that was made."""
        id = await bus.enqueue(LANE, asked(**limits))
        found = await value(bus, id)
        assert (found["mode"], found["degraded"]) == ("model", None)
        account = await hold(bus, id)
        assert account["max_cost_usd"] is None or account["spent_cost_usd"] <= account["max_cost_usd"]
        request = server.requests[-1]
        texts = [message["content"] for message in request["messages"]]
        size = sum(len(text.encode()) for text in texts) + 2 * prompt.MESSAGE_TOKENS
        return size, texts[1].count("\nEND "), request["max_tokens"]

    async with gateway(dsn, server):
        size, sources, most = await shape()
        assert (sources > 1, most) == (True, 1_000)
        assert await shape(max_tokens=size + 100) == (size, sources, 100)
        cheap = await shape(max_usd=(size + 4 * 200) / 1_000_000)
        assert cheap[:2] == (size, sources)
        assert 195 <= cheap[2] <= 200
        fewer = await shape(max_tokens=size + 63)
        assert fewer[0] < size
        assert fewer[1] == sources - 1
        assert fewer[0] + fewer[2] == size + 63


async def test_no_draw_ever_passes_the_budget(dsn: str, bus: Bus, server: FakeChat) -> None:
    """Whatever the budget: the prompt and the longest answer are within it."""
    tokens = range(900, 3_400, 130)
    async with gateway(dsn, server):
        for most in tokens:
            await value(bus, await bus.enqueue(LANE, asked(max_tokens=most, max_usd=None)))
    answered = len(server.requests)
    assert 5 < answered < len(tokens)
    for request, most in zip(server.requests, list(tokens)[-answered:], strict=True):
        size = sum(len(message["content"].encode()) for message in request["messages"])
        assert size + request["max_tokens"] <= most


async def test_an_assignment_without_limits_or_none_at_all_uses_the_settings(
    dsn: str, bus: Bus, server: FakeChat
) -> None:
    async with gateway(dsn, server):
        for payload in (
            asked(None, None),
            {"question": QUESTION},
            {"question": QUESTION, "__assignment": {}},
        ):
            assert (await value(bus, await bus.enqueue(LANE, payload)))["mode"] == "model"


async def test_a_model_that_is_not_allowed_fails_at_once_with_its_code(
    dsn: str, bus: Bus, server: FakeChat
) -> None:
    async with gateway(dsn, server):
        result = await bus.result(await bus.enqueue(LANE, asked(model="other")))
    assert (result.status, result.attempts) == ("failed", 1)
    assert (result.error or "").startswith("model_denied: ")
    assert server.requests == []


async def test_another_attempt_has_what_the_first_one_left(dsn: str, bus: Bus, server: FakeChat) -> None:
    """The first process is stopped in the middle of the stream: what it had reserved stays spent."""
    server.scripts = [Script(hang_after=2)]
    async with gateway(dsn, server):
        id = await bus.enqueue(LANE, asked(max_tokens=1_900, max_usd=None))
        await server.hanging.wait()
    account = await hold(bus, id)
    assert (account["spent_tokens"], account["closed_at"]) == (1_900, None)
    async with gateway(dsn, server):
        found = await value(bus, id)
    assert (found["mode"], found["degraded"], len(server.requests)) == ("extractive", "budget_exhausted", 1)
    assert (await hold(bus, id))["spent_tokens"] == 1_900


async def test_another_attempt_says_that_it_begins_anew(dsn: str, bus: Bus, server: FakeChat) -> None:
    server.scripts = [Script(hang_after=2)]
    async with gateway(dsn, server):
        id = await bus.enqueue(LANE, asked())
        await server.hanging.wait()
        await eventually_async(lambda: bus.db.fetch_value("SELECT count(*) > 0 FROM cogo.message_chunks"))
    await bus.db.execute("UPDATE public.agent_messages SET attempts = 1 WHERE id = %s", (id,))
    async with gateway(dsn, server):
        found = await value(bus, id)
    chunks = [chunk.data async for chunk in bus.chunks(id, timeout_s=5)]
    anew = [place for place, data in enumerate(chunks) if data.get("replace")]
    assert len(anew) == 1
    assert "".join(data["text"] for data in chunks[anew[0] :]) == found["answer"]


async def test_the_model_is_stopped_in_time_for_an_answer(dsn: str, bus: Bus, server: FakeChat) -> None:
    server.usual = Script(hang_after=2)
    async with gateway(dsn, server):
        id = await bus.enqueue(LANE, asked(), ttl_ms=4_000)
        found = await value(bus, id)
        assert (found["found"], found["mode"], found["degraded"]) == (True, "extractive", "ttl_short")
        assert found["cost_usd"] > 0, "what it used until then nobody said"
        row = await bus.message(id)
        assert row["done_at"] < row["expires_at"]
        assert len(server.requests) == 1
        found = await value(bus, await bus.enqueue(LANE, asked(), ttl_ms=1_500))
        assert (found["mode"], found["degraded"], found["usage"]) == ("extractive", "ttl_short", None)
    assert len(server.requests) == 1


async def test_there_is_no_waiting_for_a_server_that_asks_for_more_than_is_left(
    dsn: str, bus: Bus, server: FakeChat
) -> None:
    server.usual = Script(status=429, headers={"retry-after": "30"})
    async with gateway(dsn, server):
        id = await bus.enqueue(LANE, asked(), ttl_ms=20_000)
        found = await value(bus, id)
    assert (found["degraded"], found["cost_usd"]) == ("model_unavailable", 0.0)
    assert (await hold(bus, id))["spent_tokens"] == 0, "what was reserved went back"


async def test_questions_side_by_side_each_have_their_account(dsn: str, bus: Bus, server: FakeChat) -> None:
    async with gateway(dsn, server):
        ids = [await bus.enqueue(LANE, asked()) for _ in range(12)]
        answers = [await value(bus, id) for id in ids]
    assert {answer["mode"] for answer in answers} == {"model"}
    spent = await bus.db.fetch_value("SELECT sum(spent_cost_usd) FROM cogo.budget_holds")
    assert float(spent) == pytest.approx(sum(answer["cost_usd"] for answer in answers), rel=1e-9)
