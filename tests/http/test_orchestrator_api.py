"""Proves /api/orchestrator: a decision with its reason, one commit for decide-enqueue, replays and refusals."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hands import Hand, kinds
from http_hands import Served

ASK = {"tenant": "acme", "intent": "chat", "payload": {"question": "why?"}}
DECIDE, ENQUEUE, STATE = (f"/api/orchestrator/{name}" for name in ("decide", "decide-enqueue", "state"))


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
