"""Proves that a workflow's money and time are shared so that no path gets more than all, and that cycles are refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from http_hands import Served

PLAN = "/api/orchestrator/plan"


def step(name: str, price: float, *deps: str) -> dict[str, Any]:
    arm = {"agent_id": f"{name}-er", "list_price_usd": price}
    return {"name": name, "intent": "work", "deps": list(deps), "candidates": [arm]}


STEPS = [step("gate", 0.001, "build", "lint"), step("generate", 0.007), step("build", 0.001, "generate"),
         step("lint", 0.001, "generate")]  # fmt: skip
ASK = {"tenant": "acme", "steps": STEPS, "budget": {"maxCostUsd": 0.1, "maxTokens": 1000}, "ttl_ms": 60_000}


@pytest.fixture
async def brained(serve: Any) -> Served:
    served: Served = await serve(["orchestrator"], plugins={"orchestrator": {"slo_target": 0.95}})
    return served


async def planned(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await client.post(PLAN, json=ASK | changes)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_money_goes_by_cost_and_time_by_the_critical_path(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        # Who builds takes long; that is learnt.
        ask = {"tenant": "acme", "intent": "work", "candidates": STEPS[2]["candidates"]}
        for _ in range(20):
            found = (await client.post("/api/orchestrator/decide", json=ask)).json()
            told = {"decision_id": found["decision_id"], "ok": True, "latency_ms": 20_000, "cost_usd": 0.001}
            await client.post("/api/orchestrator/feedback", json=told)
        found = await planned(client)
    steps = {one["name"]: one for one in found["steps"]}
    order = [one["name"] for one in found["steps"]]
    assert order.index("generate") < order.index("build") < order.index("gate")
    assert found["critical_path"] == ["generate", "build", "gate"]
    assert [steps[name]["critical"] for name in ("lint", "build")] == [False, True]
    assert found["held_back_usd"] == pytest.approx(0.02)
    assert sum(one["budget"]["maxCostUsd"] for one in found["steps"]) == pytest.approx(0.08)
    assert steps["generate"]["budget"]["maxCostUsd"] > 4 * steps["lint"]["budget"]["maxCostUsd"]
    assert sum(one["budget"]["maxTokens"] for one in found["steps"]) <= 800
    on_path = [steps[name] for name in found["critical_path"]]
    assert 59_990 <= sum(one["ttl_ms"] for one in on_path) <= 60_000
    assert steps["gate"]["deadline_ms"] == pytest.approx(60_000, abs=2)
    assert steps["build"]["ttl_ms"] > steps["lint"]["ttl_ms"]
    assert found["feasible"]
    assert await brained.runtime.db.fetch_value("SELECT count(*) FROM cogo.decisions") == 20, (
        "a plan decides nothing"
    )


async def test_what_cannot_be_had_is_said(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        assert not (await planned(client, ttl_ms=10))["feasible"]
        assert not (await planned(client, budget={"maxCostUsd": 0.0001, "maxTokens": None}))["feasible"]
        open_end = await planned(client, budget={"maxCostUsd": None, "maxTokens": None})
        assert (open_end["held_back_usd"], open_end["steps"][0]["budget"]["maxCostUsd"]) == (None, None)


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([step("a", 0.1, "b"), step("b", 0.1, "a")], "wait for each other"),
        ([step("a", 0.1, "a")], "wait for each other"),
        ([step("a", 0.1, "x")], "isn't a step"),
        ([step("a", 0.1), step("a", 0.1)], "same name"),
        ([], "length"),
        ([{"name": "a", "intent": "nobody"}], "no role answers"),
    ],
)
async def test_steps_that_make_no_sense_are_refused(brained: Served, steps: list[Any], says: str) -> None:
    async with brained.as_("operator", "acme") as client:
        answer = await client.post(PLAN, json=ASK | {"steps": steps})
        assert answer.status_code == 422
        assert says in answer.text
        assert (await client.post(PLAN, json=ASK | {"tenant": "other"})).status_code == 403


async def test_while_the_error_budget_burns_less_is_explored_and_canaries_pause(brained: Served) -> None:
    both = [{"agent_id": "a", "version": version} for version in ("1", "2")]
    arms = [*both, {"agent_id": "b"}, {"agent_id": "c"}]
    ask = {"tenant": "acme", "intent": "work", "candidates": arms, "constraints": {"deny": ["b"]}}
    start = {"tenant": "acme", "agent_id": "a", "base_version": "1", "canary_version": "2", "steps": [10]}
    async with brained.as_("operator", "acme") as client:
        id = (await client.post("/api/orchestrator/canaries", json=start)).json()["id"]
        for n in range(80):
            found = (await client.post("/api/orchestrator/decide", json=ask)).json()
            # None fails, so no breaker opens: most are late.
            told = {"decision_id": found["decision_id"], "ok": True, "latency_ms": 60_000 if n % 8 else 10}
            await client.post("/api/orchestrator/feedback", json=told)
        await client.post("/api/orchestrator/decide", json=ask)
        state = (await client.get("/api/orchestrator/state?tenant=acme")).json()
        assert state["slo"]["page"]
        assert state["slo"]["rates"]["1h"] > 14.4
        (one,) = state["canaries"]
        assert (one["id"], one["state"]) == (id, "paused")
        assert "error budget burns" in one["cause"]
        inputs = (await client.get(f"/api/orchestrator/decisions/{found['decision_id']}")).json()["inputs"]
        assert inputs["exploration"] == pytest.approx(0.005)
