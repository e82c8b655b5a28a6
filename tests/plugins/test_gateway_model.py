"""Proves that a model's answer is given with citations that hold, and that whatever its server does there is one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from chat_hands import MODEL, FakeChat, Script, given
from knowledge_hands import FILES, build_graph, index_all, write

from cogo import Database, errors
from cogo.knowledge import answers
from cogo.knowledge import chat as models
from cogo.knowledge.chat.settings import ChatSettings
from cogo.plugins import gateway
from cogo.testing import Recorder, run_role

QUESTION = "What does one night at the pontoon cost?"
HARBOUR = FILES | {
    "문서/요금.md": "# 항구\n\n하룻밤 정박 비용은 배의 길이에 따라 다르다.\n",
    "ميناء.md": "# ميناء\n\nتكلفة الليلة تحسب بطول القارب.\n",
    "🛥.md": "# 🛥️ Emoji\n\nA spinnaker is no 🪁.\n",
}


@pytest.fixture
async def indexed(database: Database, tmp_path: Path) -> Database:
    root = write(tmp_path / "harbour", HARBOUR)
    await index_all(database, root)
    await build_graph(database, root)
    return database


@pytest.fixture
async def server() -> AsyncIterator[FakeChat]:
    async with FakeChat().running() as found:
        yield found


async def ask(
    db: Database,
    settings: ChatSettings,
    question: str = QUESTION,
    *,
    into: Recorder | None = None,
    **fields: Any,
) -> answers.Answer:
    found = await run_role(
        gateway.cogo_role(),
        {"question": question, **fields},
        tenant="acme",
        db=db,
        settings=settings,
        into=into,
    )
    assert isinstance(found, answers.Answer)
    for citation in found.citations:
        lines = HARBOUR[citation.path].split("\n")[citation.line - 1 : citation.end]
        assert citation.quote
        assert citation.quote in "\n".join(lines)
    return found


async def test_the_model_answers_and_each_citation_holds(indexed: Database, server: FakeChat) -> None:
    seen = Recorder()
    server.usual.text = "A night costs `length_m * RATE` [1]. The moon is cheese [42]."
    found = await ask(indexed, server.settings(), into=seen)
    assert (found.found, found.mode, found.model, found.degraded) == (True, "model", MODEL, None)
    assert found.answer == "A night costs `length_m * RATE` [1]. The moon is cheese."
    assert found.citations_removed == 1
    (citation,) = found.citations
    assert (citation.number, citation.place) == (1, "harbour/fees.py:13-14")
    (request,) = server.requests
    assert request["stream"] is True
    assert request["stream_options"] == {"include_usage": True}
    assert request["max_tokens"] == 1_000
    assert found.usage == answers.Usage(given(request), 13)
    assert found.cost_usd == pytest.approx((given(request) + 13 * 4) / 1_000_000)
    assert [kind for kind, _ in seen.chunks] == ["answer"] * len(seen.chunks)
    texts = [data["text"] for _, data in seen.chunks]
    assert len(texts) > 5
    assert "".join(texts[:-1]) == "A night costs `length_m * RATE` [1]. The moon is cheese [42]."
    assert seen.chunks[-1][1] == {"text": found.answer, "replace": True}
    ((kind, detail),) = seen.events
    assert kind == "chat_answered"
    assert detail == {
        "model": MODEL, "mode": "model", "degraded": None, "cost_usd": found.cost_usd, "citations_removed": 1,
        "input_tokens": given(request), "output_tokens": 13,
    }  # fmt: skip


async def test_the_prompt_holds_whole_spans_and_who_imports_them(indexed: Database, server: FakeChat) -> None:
    await ask(indexed, server.settings(), "How does one take payments for a vessel?")
    prompt = server.prompt()
    assert (
        "[1] harbour/ledger.py:7-9 method Ledger.settle\n    def settle(self, boat: str, euros: float)"
        in prompt
    )
    assert "harbour/__init__.py:3-3 importing module harbour\nfrom .ledger import Ledger\n" in prompt
    assert prompt.endswith("Question: How does one take payments for a vessel?")


async def test_what_is_streamed_and_holds_is_not_said_twice(indexed: Database, server: FakeChat) -> None:
    seen = Recorder()
    found = await ask(indexed, server.settings(), into=seen)
    assert "".join(data["text"] for _, data in seen.chunks) == found.answer


async def test_nothing_found_asks_no_model(indexed: Database, server: FakeChat) -> None:
    found = await ask(indexed, server.settings(), "How long must sourdough rise?")
    assert (found.found, found.answer, found.mode, found.degraded) == (False, "not found", "extractive", None)
    assert server.requests == []


async def test_a_model_that_finds_nothing_is_believed(indexed: Database, server: FakeChat) -> None:
    seen = Recorder()
    server.usual.text = "NOT FOUND."
    found = await ask(indexed, server.settings(), into=seen)
    assert (found.found, found.answer, found.mode, found.citations) == (False, "not found", "model", [])
    assert found.cost_usd > 0
    assert seen.chunks[-1][1]["text"] == "not found"


@pytest.mark.parametrize(
    "text", ["It costs ten euros.", "It costs ten euros [17].", "`fee = 10` [1]", "", "NOT FOUND, or is it?"]
)
async def test_an_answer_that_cites_nothing_true_is_not_given_out(
    indexed: Database, server: FakeChat, text: str
) -> None:
    server.usual.text = text
    seen = Recorder()
    found = await ask(indexed, server.settings(), into=seen)
    assert (found.found, found.mode, found.degraded, found.model) == (True, "extractive", "uncited", MODEL)
    assert "harbour/fees.py:12-14" in found.answer
    assert found.usage is not None
    assert found.cost_usd > 0
    assert seen.chunks[-1][1]["text"] == found.answer


BROKEN = [
    (Script(status=401), "model_unauthorized", False),
    (Script(status=403), "model_unauthorized", False),
    (Script(status=404), "model_unknown", False),
    (Script(status=400), "model_refused", False),
    (Script(status=422), "model_refused", False),
    (Script(status=429, headers={"retry-after": "3600"}), "model_unavailable", False),
    (Script(cut_after=3), "stream_broken", True),
    (Script(cut_after=0), "stream_broken", True),
    (Script(finish=None), "stream_broken", True),
    (Script(garbage='{"choices": [{"delta"'), "stream_broken", True),
    (Script(garbage='{"error": {"message": "overloaded"}}'), "stream_broken", True),
]


@pytest.mark.parametrize(("script", "code", "charged"), BROKEN)
async def test_a_server_that_fails_leaves_the_answer_that_quotes(
    indexed: Database,
    server: FakeChat,
    script: Script,
    code: str,
    charged: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a broken stream used nobody says: then it is the most that it can have been."""
    server.scripts = [script]
    found = await ask(indexed, server.settings())
    assert (found.found, found.mode, found.degraded) == (True, "extractive", code)
    assert "harbour/fees.py:12-14" in found.answer
    assert (found.cost_usd > 0, found.usage is not None) == (charged, charged)
    assert len(server.requests) == 1
    assert len([r for r in caplog.records if code in r.getMessage() and r.levelname == "WARNING"]) == 1


@pytest.mark.parametrize("garbage", ["null", "[]", '"text"', "{}", '{"choices": null}', '{"choices": [{"delta": {"content": 7}}]}', '{"choices": 5}', '{"choices": [null]}', '{"usage": 5, "choices": []}'])  # fmt: skip
async def test_odd_chunks_are_passed_over(indexed: Database, server: FakeChat, garbage: str) -> None:
    server.usual.garbage = garbage
    assert (await ask(indexed, server.settings())).mode in ("model", "extractive")


@pytest.mark.parametrize("status", [409, 429, 503])
async def test_a_busy_server_is_asked_once_more(indexed: Database, server: FakeChat, status: int) -> None:
    busy = Script(status=status, headers={"retry-after": "0"})
    server.scripts = [busy]
    assert (await ask(indexed, server.settings())).mode == "model"
    server.scripts = [busy, busy]
    found = await ask(indexed, server.settings())
    assert (found.degraded, found.cost_usd) == ("model_unavailable", 0.0)
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [408, 500, 502])
async def test_what_may_have_begun_is_asked_once_and_counted_whole(
    indexed: Database, server: FakeChat, status: int
) -> None:
    server.scripts = [Script(status=status, headers={"retry-after": "0"})]
    found = await ask(indexed, server.settings())
    assert (found.mode, found.degraded) == ("extractive", "model_unavailable")
    assert found.cost_usd > 0
    assert len(server.requests) == 1


async def test_a_server_that_is_away_costs_nothing(indexed: Database) -> None:
    found = await ask(
        indexed, FakeChat().settings(base_url="http://127.0.0.1:9/v1")
    )  # nobody listens at port 9
    assert (found.mode, found.degraded, found.cost_usd) == ("extractive", "model_unavailable", 0.0)


@pytest.mark.parametrize("after", [0, 2])
async def test_a_silent_server_is_left_alone_after_a_while(
    indexed: Database, server: FakeChat, after: int
) -> None:
    server.usual.hang_after = after
    found = await ask(indexed, server.settings(idle_s=0.2))
    assert found.degraded == ("stream_broken" if after else "model_unavailable")
    assert found.cost_usd > 0
    assert len(server.requests) == 1


async def test_an_endless_answer_ends(indexed: Database, server: FakeChat) -> None:
    """By the tokens that were asked for, or by the time that there is."""
    server.usual.endless = True
    found = await ask(indexed, server.settings(max_output_tokens=64))
    assert (found.mode, found.degraded) == ("model", None)
    assert found.answer.startswith("A night costs `length_m * RATE` [1]. and so on")
    assert len(found.answer) < 1_000
    assert found.usage is not None
    assert found.usage.output_tokens == 64
    server.usual = Script(hang_after=2)
    found = await ask(indexed, server.settings(timeout_s=1.0))
    assert (found.mode, found.degraded) == ("extractive", "model_unavailable")


USAGES: list[Any] = [
    None, {}, {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": -5, "completion_tokens": 5},
    {"prompt_tokens": 10**9, "completion_tokens": 5}, {"prompt_tokens": 5, "completion_tokens": 10**9},
    {"prompt_tokens": "many", "completion_tokens": 1}, {"prompt_tokens": 5, "completion_tokens": 0},
]  # fmt: skip


@pytest.mark.parametrize("usage", USAGES)
async def test_usage_that_is_missing_or_wrong_counts_as_the_most_it_can_be(
    indexed: Database, server: FakeChat, usage: Any
) -> None:
    server.usual.usage = usage
    found = await ask(indexed, server.settings())
    assert found.mode == "model"
    assert found.usage is not None
    assert found.usage.output_tokens == 1_000
    assert found.usage.input_tokens > given(server.requests[0]) * 3
    assert found.cost_usd == pytest.approx((found.usage.input_tokens + 4_000) / 1_000_000)


async def test_a_model_without_a_price_is_not_asked(indexed: Database, server: FakeChat) -> None:
    found = await ask(indexed, server.settings(prices={}))
    assert (found.mode, found.degraded, found.cost_usd) == ("extractive", "price_unknown", 0.0)
    assert server.requests == []


async def test_spans_that_fit_in_no_prompt_are_not_cut(indexed: Database, server: FakeChat) -> None:
    found = await ask(indexed, server.settings(context_tokens=64))
    assert (found.mode, found.degraded) == ("extractive", "context_short")
    assert server.requests == []


async def test_keys_go_where_they_belong(
    indexed: Database, server: FakeChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai-alone")
    await ask(indexed, server.settings())
    monkeypatch.setenv("COGO_CHAT_API_KEY", "sk-ours")
    await ask(indexed, server.settings())
    assert server.keys == ["Bearer none", "Bearer sk-ours"]
    kept = {"COGO_CHAT_API_KEY": "sk-of-the-settings", "OPENAI_API_KEY": "sk-for-openai-alone"}
    async with models.attached(indexed, server.settings(), kept):
        await ask(indexed, server.settings())
    assert server.keys[2:] == ["Bearer sk-of-the-settings"]


SCRIPTS = [
    ("하룻밤 정박 비용은 얼마입니까?", "문서/요금.md"),
    ("كم تكلفة الليلة؟", "ميناء.md"),
    ("🛥️ spinnaker 🪁 🤷‍♀️?", "🛥.md"),
    ("nightly_fee pontoon " * 400, "harbour/fees.py"),
    ("?!…", None),
    ("。、", None),
    ("\u200b", None),
    ("a\ufeffb \u202e", None),
]


@pytest.mark.parametrize(("question", "path"), SCRIPTS)
@pytest.mark.parametrize("model", [MODEL, None])
async def test_questions_in_any_script_are_answered(
    indexed: Database, server: FakeChat, question: str, path: str | None, model: str | None
) -> None:
    server.usual.text = "하룻밤은 그렇습니다 🛥️ [1]."
    found = await ask(indexed, server.settings(model=model), question, conversation_id="talk")
    assert found.found is (path is not None)
    assert [citation.path for citation in found.citations][:1] == ([path] if path else [])
    if path and model:
        assert (found.mode, found.answer) == ("model", server.usual.text)
        assert server.prompt().endswith(question)


@pytest.mark.parametrize("text", ["a\x00b [1]", "half a pair \ud83d [1]"])
async def test_text_that_postgres_cannot_hold_is_mended(
    indexed: Database, server: FakeChat, text: str
) -> None:
    escaped = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    server.usual.text = "A night [1]."
    server.usual.garbage = (
        '{"choices": [{"index": 0, "delta": {"content": "%s"}, "finish_reason": null}]}'
        % ("x\\u0000y" if "\x00" in escaped else "\\ud83d")
    )
    found = await ask(indexed, server.settings())
    assert found.mode == "model"
    assert "\x00" not in found.answer
    assert found.answer.encode()


async def test_a_model_that_is_not_allowed_is_denied(indexed: Database, server: FakeChat) -> None:
    with pytest.raises(errors.ModelDenied):
        await ask(indexed, server.settings(), __assignment={"model": "other"})
    found = await ask(indexed, server.settings(models=("other",)), __assignment={"model": "other"})
    assert (found.degraded, found.model) == ("price_unknown", "other")
