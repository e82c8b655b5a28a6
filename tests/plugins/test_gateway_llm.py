"""Proves that a real model behind a real server is asked, streamed, counted and checked (make test-llm).

SmolLM2 with 135 million parameters seldom cites. So what it says is not judged: either its citations hold,
or the answer that quotes is given instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hands import process
from knowledge_hands import FILES, build_graph, index_all, write
from llm_hands import serving

from cogo import Database
from cogo.core.bus import Bus
from cogo.knowledge.chat import ChatSettings
from cogo.knowledge.chat.settings import Price

MODEL = "smollm2"
QUESTIONS = ("What does one night at the pontoon cost?", "How does one take payments for a vessel?",
             "How is a berth charged?", "What does Harbour keep?")  # fmt: skip


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serving() as found:
        yield found


@pytest.mark.llm
@pytest.mark.timeout(600)
async def test_a_small_model_answers(
    dsn: str, bus: Bus, database: Database, tmp_path: Path, base_url: str
) -> None:
    root = write(tmp_path / "harbour")
    await index_all(database, root)
    await build_graph(database, root)
    settings = ChatSettings(
        model=MODEL, base_url=base_url, prices={MODEL: Price(input=1.0, output=1.0)}, max_output_tokens=100,
        context_tokens=6_000, idle_s=120, timeout_s=120,
    )  # fmt: skip
    async with process(dsn, ["gateway"], plugins={"gateway": msgspec.to_builtins(settings)}):
        for question in QUESTIONS:
            task = {
                "question": question,
                "conversation_id": "talk",
                "__assignment": {"budget": {"maxCostUsd": 0.01}},
            }
            id = await bus.enqueue("gateway/chat/0@acme", task)
            streamed = [chunk.data async for chunk in bus.chunks(id, timeout_s=120)]
            result = await bus.result(id, timeout_s=120)
            assert result.status == "done", result.error
            found = result.value
            print(question, "->", found["mode"], found["degraded"], found["usage"], found["cost_usd"])
            print("   streamed", len(streamed), "".join(piece["text"] for piece in streamed)[:400])
            used = found["usage"]
            assert found["degraded"] in (None, "uncited")
            assert found["mode"] == ("extractive" if found["degraded"] else "model")
            assert 0 < used["output_tokens"] <= 100
            assert 100 < used["input_tokens"] < 1_500, "the server's count, not the bound"
            spent = await bus.db.fetch_value(
                "SELECT spent_tokens FROM cogo.budget_holds WHERE root_id = %s", (id,)
            )
            assert spent == used["input_tokens"] + used["output_tokens"]
            assert found["cost_usd"] == pytest.approx(spent / 1_000_000)
            assert streamed[0]["text"]
            for citation in found["citations"]:
                lines = FILES[citation["path"]].split("\n")[citation["line"] - 1 : citation["end"]]
                assert citation["quote"] in "\n".join(lines)
    assert await bus.db.fetch_value("SELECT count(*) FROM cogo.chat_turns") == len(QUESTIONS)
