"""Proves /api/orchestrator: a decision with its reason, one commit for decide-enqueue, replays and refusals."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hands import Hand, kinds
from http_hands import Served

ASK = {"tenant": "acme", "intent": "chat", "payload": {"question": "why?"}}
DECIDE, ENQUEUE, EXECUTE, STATE = (
    f"/api/orchestrator/{name}" for name in ("decide", "decide-enqueue", "execute", "state")
)


@pytest.fixture
async def brained(serve: Any) -> Served:
    """The orchestrator's routes, and a lane that answers `chat` with a live holder."""
    served: Served = await serve(["orchestrator"])
    await served.runtime.db.execute(
        "INSERT INTO cogo.bus_lanes (service, role, intents) VALUES ('gateway', 'chat', '{chat,ask}')"
    )
    await Hand(served.runtime.bus).register("gateway/chat/0")
    return served


async def test_decide_answers_with_a_reason_and_leaves_the_bus_alone(brained: Served):
    """Arm, assignment, candidates, reason; the decision is logged, no message is made."""
    async with brained.as_("operator", "acme") as client:
        answer = await client.post(
            DECIDE, json=ASK | {"ttl_ms": 5000, "budget": {"maxTokens": 7}, "model": "m"}
        )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    arm = {
        "agent_id": "gateway/chat",
        "version": None,
        "model": "m",
        "service": "gateway",
        "role": "chat",
        "shard": 0,
    }
    assert (found["lane"], found["arm"]) == ("gateway/chat/0", arm)
    assert found["assignment"]["ttl_ms"] == 5000
    assert found["assignment"]["budget"] == {"maxCostUsd": None, "maxTokens": 7}
    assert found["propensity"] == 1.0
    assert not found["explored"]
    assert [c["lane"] for c in found["scores"]] == ["gateway/chat/0"]
    assert "gateway/chat/0" in found["reason"]
    logged = await brained.runtime.db.fetch(
        "SELECT id, tenant, intent, message_id, reason FROM cogo.decisions"
    )
    row = {"id": found["decision_id"], "tenant": "acme", "intent": "chat", "message_id": None}
    assert logged == [row | {"reason": found["reason"]}]
    assert await brained.rows() == 0


async def test_an_intent_that_nobody_answers_is_refused(brained: Served):
    """Unknown intent and a lane without a holder are 422 with their own codes; nothing is logged."""
    await brained.runtime.db.execute(
        "INSERT INTO cogo.bus_lanes (service, role, intents) VALUES ('a', 'b', '{idle}')"
    )
    async with brained.as_("operator", "acme") as client:
        for path in (DECIDE, ENQUEUE):
            for intent, code in (("dance", "intent_unknown"), ("idle", "no_feasible_arm")):
                refused = await client.post(path, json=ASK | {"intent": intent})
                assert (refused.status_code, refused.json()["code"]) == (422, code)
    assert await brained.runtime.db.fetch_value("SELECT count(*) FROM cogo.decisions") == 0
    assert await brained.rows() == 0


async def test_decide_enqueue_is_one_commit(brained: Served):
    """Decision, message for the executor and both events share one trace and one transaction."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with brained.as_("operator", "acme") as client:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        answer = await client.post(ENQUEUE, json=ASK, headers=headers)
    assert answer.status_code == 202, answer.text
    found = answer.json()
    id = found["message_id"]
    assert (found["status_url"], found["replayed"]) == (f"/api/messages/{id}", False)
    row = await brained.runtime.bus.message(id)
    key = (row["service"], row["role"], row["tenant"], row["status"], row["trace_id"])
    assert key == ("orchestrator", "execute", "acme", "queued", trace)
    assert row["payload"]["to"] == "gateway/chat/0"
    assert row["payload"]["payload"] == {"question": "why?"}
    assert row["payload"]["decision_id"] == found["decision_id"]
    assert row["payload"]["assignment"] == found["assignment"]
    assert await kinds(brained.runtime.bus, id) == ["orchestrate_enqueued", "orchestrate_decision"]
    decision = await brained.runtime.db.fetch_one("SELECT message_id, trace_id FROM cogo.decisions")
    assert decision == {"message_id": id, "trace_id": trace}


async def test_a_key_replays_the_first_answer(brained: Served):
    """The same body again is the same answer with `replayed`, also in parallel; another body is 409."""
    body = ASK | {"idempotency_key": "k"}
    answers: list[Any] = []
    async with brained.as_("operator", "acme") as client:

        async def post() -> None:
            answers.append(await client.post(ENQUEUE, json=body))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(post)
        assert {a.status_code for a in answers} == {202}
        assert len({a.json()["message_id"] for a in answers}) == 1
        assert sorted(a.json()["replayed"] for a in answers) == [False] + [True] * 7
        same = {tuple(sorted((k, str(v)) for k, v in a.json().items() if k != "replayed")) for a in answers}
        assert len(same) == 1
        for other in (body | {"payload": {}}, body | {"intent": "ask"}, body | {"ttl_ms": 9}):
            conflict = await client.post(ENQUEUE, json=other)
            assert (conflict.status_code, conflict.json()["code"]) == (409, "idempotency_conflict")
        await brained.runtime.bus.enqueue("x/y/0@acme", {}, idempotency_key="taken")
        taken = await client.post(ENQUEUE, json=ASK | {"idempotency_key": "taken"})
        assert taken.status_code == 409
    assert await brained.runtime.db.fetch_value("SELECT count(*) FROM cogo.decisions") == 1
    assert await brained.rows() == 2


async def test_the_state_lists_intents_and_the_health_of_their_lanes(brained: Served):
    """What the orchestrator sees, narrowed by service and role."""
    async with brained.as_("viewer", "acme") as client:
        found = (await client.get(STATE)).json()
        assert found["intents"] == ["ask", "chat"]
        assert found["policy"]["active"]
        (arm,) = found["arms"]
        assert (arm["lane"], arm["holders"], arm["excluded_by"]) == ("gateway/chat/0", 1, None)
        assert (await client.get(f"{STATE}?service=rag")).json()["arms"] == []
        assert (await client.get(f"{STATE}?role=chat")).json()["arms"] == [arm]


async def test_the_same_key_and_body_is_the_same_decision(brained: Served):
    """Decide with a key replays its answer, under a race as well; another body with the key is refused."""
    asks = ASK | {"idempotency_key": "k"}
    async with brained.as_("operator", "acme") as client:
        answers: list[Any] = []

        async def ask() -> None:
            answers.append((await client.post(DECIDE, json=asks)).json())

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
        assert all(answer == answers[0] for answer in answers)
        other = await client.post(DECIDE, json=asks | {"risk": "high"})
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert await brained.runtime.db.fetch_value("SELECT count(*) FROM cogo.decisions") == 1


async def test_a_decision_is_executed_once(brained: Served):
    """Execute enqueues the decided work with its assignment; a repeat answers with the same message."""
    async with brained.as_("operator", "acme") as client:
        decided = (await client.post(DECIDE, json=ASK)).json()
        about = {"decision_id": decided["decision_id"], "payload": {"question": "why?"}}
        first = await client.post(EXECUTE, json=about)
        assert first.status_code == 202, first.text
        assert not first.json()["replayed"]
        again = await client.post(EXECUTE, json=about)
        assert again.json() == first.json() | {"replayed": True}
        row = await brained.runtime.db.fetch_one(
            "SELECT role, payload FROM public.agent_messages WHERE id = %s", (first.json()["message_id"],)
        )
        assert row is not None
        assert (row["role"], row["payload"]["to"]) == ("execute", "gateway/chat/0")
        assert row["payload"]["assignment"]["agent_id"] == "gateway/chat"
        assert kinds_of(await brained.runtime.db.fetch("SELECT kind FROM public.bus_events")) >= {
            "orchestrate_enqueued"
        }
    async with brained.as_("operator", "other") as client:
        assert (await client.post(EXECUTE, json=about)).status_code == 404
    assert await brained.rows() == 1


async def test_executing_reserves_what_the_budget_allows(brained: Served):
    """Without enough left it is 402 and nothing is enqueued; with it the hold is bound by what was granted."""
    async with brained.as_("operator", "acme") as client:
        decided = (await client.post(DECIDE, json=ASK)).json()
        about = {"decision_id": decided["decision_id"]}
        budget = "/api/orchestrator/budgets/acme"
        await client.put(budget, json={"limit_usd": 0.0, "window_s": 3600})
        refused = await client.post(EXECUTE, json=about)
        assert (refused.status_code, refused.json()["code"]) == (402, "budget_refused")
        assert await brained.rows() == 0
        await client.put(budget, json={"limit_usd": 0.07, "window_s": 3600})
        assert (await client.post(EXECUTE, json=about)).status_code == 202
    held = await brained.runtime.db.fetch_one(
        "SELECT max_cost_usd::float8, reserved_usd::float8 FROM cogo.budget_holds"
    )
    assert held == {"max_cost_usd": 0.07, "reserved_usd": 0.07}


def kinds_of(rows: list[dict[str, Any]]) -> set[str]:
    return {row["kind"] for row in rows}


@pytest.mark.parametrize(
    ("asked", "excluded"),
    [
        ({"constraints": {"deny": ["a"]}}, {"a": "constraints: denied"}),
        ({"constraints": {"allow": ["a"]}}, {"b": "constraints: not among those allowed"}),
        ({"constraints": {"models": ["m"]}}, {"b": "constraints: the model is none of m"}),
    ],
)
async def test_constraints_exclude(brained: Served, asked: dict[str, Any], excluded: dict[str, str]):
    """What may not be chosen is excluded by name."""
    arms = [{"agent_id": "a", "model": "m"}, {"agent_id": "b"}]
    async with brained.as_("operator", "acme") as client:
        found = (await client.post(DECIDE, json=ASK | {"candidates": arms} | asked)).json()
        why = {score["agent_id"]: score["excluded_by"] for score in found["scores"] if score["excluded_by"]}
        assert why == excluded


async def test_who_takes_longer_than_the_deadline_is_not_chosen(brained: Served):
    """Times are learnt; when nobody is in time it is 422 with the times."""
    ask = ASK | {"candidates": [{"agent_id": "slow"}, {"agent_id": "fast"}]}
    async with brained.as_("operator", "acme") as client:
        for _ in range(30):
            found = (await client.post(DECIDE, json=ask)).json()
            ms = 9_000 if found["arm"]["agent_id"] == "slow" else 100
            told = {"decision_id": found["decision_id"], "ok": True, "latency_ms": ms}
            await client.post("/api/orchestrator/feedback", json=told)
        found = (await client.post(DECIDE, json=ask | {"deadline_ms": 1_000})).json()
        assert found["arm"]["agent_id"] == "fast"
        why = {score["agent_id"]: score["excluded_by"] for score in found["scores"]}
        assert why["slow"].startswith("deadline: takes ")
        late = await client.post(DECIDE, json=ask | {"deadline_ms": 1})
        assert (late.status_code, late.json()["code"]) == (422, "no_feasible_arm")
