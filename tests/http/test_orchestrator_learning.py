"""Proves that the orchestrator learns from feedback, counts none twice, keeps to budgets, and explains itself."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from hands import Hand
from http_hands import Served

from cogo.plugins.orchestrator import replay

DECIDE, FEEDBACK = "/api/orchestrator/decide", "/api/orchestrator/feedback"
ARMS = [{"agent_id": name, "list_price_usd": 0.001} for name in ("good", "bad")]
ASK = {"tenant": "acme", "intent": "write", "candidates": ARMS, "features": [0.5, -1.0]}


@pytest.fixture
async def brained(serve: Any) -> Served:
    served: Served = await serve(["orchestrator"])
    return served


async def decided(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await client.post(DECIDE, json=ASK | changes)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert sum(score["p"] for score in found["scores"]) == pytest.approx(1)
    assert found["propensity"] > 0
    return found


async def told(client: httpx.AsyncClient, decision: dict[str, Any], **about: Any) -> dict[str, Any]:
    answer = await client.post(FEEDBACK, json={"decision_id": decision["decision_id"], **about})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def learn(client: httpx.AsyncClient, n: int) -> dict[str, int]:
    chosen = {"good": 0, "bad": 0}
    for _ in range(n):
        found = await decided(client)
        arm = found["arm"]["agent_id"]
        chosen[arm] += 1
        await told(
            client, found, ok=True, reward=0.9 if arm == "good" else 0.2, cost_usd=0.001, latency_ms=300
        )
    return chosen


async def test_the_better_arm_gets_the_work(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        await learn(client, 40)
        chosen = await learn(client, 20)
        assert chosen["good"] >= 17, chosen
        found = await decided(client)
        assert found["state_version"] == 120, "a run and a verdict of each decision"
        by_name = {score["agent_id"]: score for score in found["scores"]}
        assert by_name["good"]["quality"] > by_name["bad"]["quality"] + 0.15
        arms = (await client.get("/api/orchestrator/state")).json()["arms"]
        assert {arm["agent_id"]: arm["breaker"]["state"] for arm in arms} == {
            "good": "closed",
            "bad": "closed",
        }


async def test_another_tenant_learns_nothing_from_it(brained: Served) -> None:
    async with brained.as_("operator", "acme", "other") as client:
        await learn(client, 15)
        found = await decided(client, tenant="other")
        assert found["state_version"] == 0
        assert {score["utility"] for score in found["scores"]} == {found["scores"][0]["utility"]}


async def test_feedback_counts_once(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        found = await decided(client)
        about = {"ok": True, "reward": 1.0, "source": "human"}
        assert (await told(client, found, **about))["run"]
        assert await told(client, found, **about) == {
            "decision_id": found["decision_id"], "run": False, "verdict": False,
        }  # fmt: skip
        assert (await told(client, found, reward=0.0, source="judge"))["verdict"], (
            "another source is another verdict"
        )
        assert (await decided(client))["state_version"] == 3


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"decision_id": 999_999, "ok": True}, 404),
        ({"decision_id": 1}, 422),
        ({"decision_id": 1, "cost_usd": 1.0}, 422),
        ({"decision_id": 1, "ok": True, "reward": 1.5}, 422),
        ({"decision_id": 1, "ok": True, "error_class": "callee"}, 422),
        ({"decision_id": 1, "ok": True, "now_ms": 5}, 422),
        ({"decision_id": 1, "reward": 1.0, "source": "run"}, 422),
        ({"decision_id": 1, "reward": 1.0, "source": "Some Body"}, 422),
    ],
)
async def test_feedback_that_makes_no_sense_is_refused(
    brained: Served, body: dict[str, Any], status: int
) -> None:
    async with brained.as_("operator", "acme") as client:
        assert (await client.post(FEEDBACK, json=body)).status_code == status


async def test_another_tenants_decision_is_unknown(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        found = await decided(client)
    async with brained.as_("operator", "other") as client:
        id = found["decision_id"]
        assert (await client.post(FEEDBACK, json={"decision_id": id, "ok": True})).status_code == 404
        assert (await client.get(f"/api/orchestrator/decisions/{id}")).status_code == 404


async def test_a_broken_arm_is_left_alone_at_once(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        await learn(client, 20)
        to_good = 0
        for _ in range(30):
            found = await decided(client)
            arm = found["arm"]["agent_id"]
            to_good += arm == "good"
            await told(client, found, ok=arm != "good", cost_usd=0.001, latency_ms=300)
        assert to_good <= 6, "four failures open its breaker"
        found = await decided(client)
        assert {s["agent_id"]: s["excluded_by"] for s in found["scores"]}["good"] == "breaker: open"


async def test_a_budget_is_kept(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        budget = {"limit_usd": 0.02, "window_s": 3600, "expected_tasks": 100}
        assert (await client.put("/api/orchestrator/budgets/acme", json=budget)).status_code == 200
        spent, refused = 0.0, 0
        for _ in range(40):
            answer = await client.post(DECIDE, json=ASK)
            if answer.status_code == 402:
                assert answer.json()["code"] == "budget_refused"
                refused += 1
                continue
            await told(client, answer.json(), ok=True, reward=0.9, cost_usd=0.001)
            spent += 0.001
        assert refused > 0
        assert 0.01 < spent <= 0.02
        (left,) = (await client.get("/api/orchestrator/state")).json()["budgets"]
        assert left["spent_usd"] == pytest.approx(spent)
        assert (await client.put("/api/orchestrator/budgets/other", json=budget)).status_code == 403


async def test_a_decision_explains_itself(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        await learn(client, 30)
        found = await decided(client)
        told_why = (await client.get(f"/api/orchestrator/decisions/{found['decision_id']}/explain")).json()
        rows = {row["agent_id"]: row for row in told_why["candidates"]}
        for row in rows.values():
            assert sum(row["terms"].values()) == pytest.approx(row["utility"])
        (flip,) = told_why["flips"]
        assert flip["agent_id"] == "bad"
        behind = rows["good"]["utility"] - rows["bad"]["utility"]
        assert flip["behind"] == pytest.approx(behind)
        assert flip["quality"] * 0.5 * rows["bad"]["health"] == pytest.approx(behind)
        assert flip["cost_usd"] is None, "not even for nothing"


async def test_every_decision_can_be_made_again(brained: Served) -> None:
    """Out of what each knew, also when outcomes come late and not in order; one that was tampered with is found."""
    db = brained.runtime.db
    waiting: list[dict[str, Any]] = []
    async with brained.as_("operator", "acme") as client:
        for n in range(120):
            waiting.append(await decided(client, features=[n % 3 - 1.0, n % 5 / 2]))
            if n % 3 == 2:
                late = waiting.pop(n % len(waiting))
                await told(client, late, ok=n % 11 != 0, reward=0.5 + n % 2 / 4, cost_usd=0.001 * (1 + n % 4))
    found = await replay.replay(db, "acme", 1_000)
    assert (found.decisions, found.equal, found.different) == (120, 120, [])
    await db.execute(
        "UPDATE cogo.outcomes SET reward = 0 WHERE id = (SELECT min(id) FROM cogo.outcomes WHERE reward > 0)"
    )
    assert len((await replay.replay(db, "acme", 1_000)).different) > 10


async def test_fifty_callers_of_two_processes_share_one_budget(serve: Any) -> None:
    """What is reserved never exceeds the limit, no decision is made twice, and who is refused is told so."""
    first, second = await serve(["orchestrator"]), await serve(["orchestrator"])
    db = first.runtime.db
    await db.execute(
        "INSERT INTO cogo.bus_lanes (service, role, intents) VALUES ('gateway', 'chat', '{chat}')"
    )
    await Hand(first.runtime.bus).register("gateway/chat/0")
    answers: list[httpx.Response] = []
    async with first.as_("operator", "acme") as one, second.as_("operator", "acme") as other:
        budget = {"limit_usd": 1.0, "window_s": 3600}
        assert (await one.put("/api/orchestrator/budgets/acme", json=budget)).status_code == 200

        async def ask(n: int) -> None:
            body = {"tenant": "acme", "intent": "chat", "idempotency_key": f"k{n // 2}"}
            answers.append(
                await (one if n % 2 else other).post("/api/orchestrator/decide-enqueue", json=body)
            )

        async with anyio.create_task_group() as tasks:
            for n in range(50):
                tasks.start_soon(ask, n)
    assert {answer.status_code for answer in answers} == {202, 402}
    taken = [answer.json() for answer in answers if answer.status_code == 202]
    assert len({found["decision_id"] for found in taken}) == 10
    assert await db.fetch_value("SELECT reserved_usd::float8 FROM cogo.budgets") == pytest.approx(1.0)
    assert await db.fetch_value("SELECT count(*) FROM cogo.decisions") == 10
    assert await db.fetch_value("SELECT sum(reserved_usd)::float8 FROM cogo.budget_holds") == pytest.approx(
        1.0
    )


async def test_who_did_well_on_the_code_at_hand_gets_it(brained: Served) -> None:
    """Two arms that are equally good on the whole, each on its own part of the code."""
    async with brained.as_("operator", "acme") as client:
        at_home = {"good": "store/ledger.py", "bad": "web/forms.py"}
        for n in range(60):
            path = list(at_home.values())[n % 2]
            found = await decided(client, payload={"path": path})
            arm = found["arm"]["agent_id"]
            await told(client, found, ok=True, reward=0.9 if at_home[arm] == path else 0.3, latency_ms=300)
        for arm, path in at_home.items():
            found = await decided(client, payload={"paths": [path]})
            kg = {score["agent_id"]: score["kg"] for score in found["scores"]}
            assert max(kg, key=lambda name: kg[name]) == arm
            p = {score["agent_id"]: score["p"] for score in found["scores"]}
            assert p[arm] > 0.9, found["scores"]
        assert (await decided(client))["scores"][0]["kg"] is None, "no code is named"


async def test_an_arm_that_is_not_what_it_was_shows(brained: Served) -> None:
    """`drift` in the state: how much the recent memory counts against the long one."""

    async def drift(client: httpx.AsyncClient) -> float:
        state = (await client.get("/api/orchestrator/state")).json()
        found: float = next(arm for arm in state["arms"] if arm["agent_id"] == "solo")["drift"]["quality"]
        return found

    async with brained.as_("operator", "acme") as client:
        for n in range(100):
            found = await decided(client, candidates=[{"agent_id": "solo"}])
            await told(client, found, ok=True, reward=0.9 if n < 70 else 0.1)
            if n == 69:
                before = await drift(client)
        assert await drift(client) > before + 0.3


@pytest.mark.parametrize(
    "extreme",
    [
        {"objective": {"c_ref_usd": 1e-320}},
        {"objective": {"c_ref_usd": 1e-9, "w_cost": 1e9}},
        {"objective": {"w_quality": 0, "w_cost": 0, "w_slo": 0}},
        {"objective": {"slo_ms": 1e-300}},
        {"features": [1e308] * 64},
        {"features": [-1e308, 5e-324]},
        {"deadline_ms": 1e-300},
        {
            "candidates": [
                {"agent_id": "x", "list_price_usd": 5e-324},
                {"agent_id": "y", "list_price_usd": 1e6},
            ]
        },
        {"candidates": [{"agent_id": "x", "queue_depth": 10**9}, {"agent_id": "y"}]},
        {"payload": {"paths": ["x" * 2_000, "a\0b", None, {}]}},
    ],
)
async def test_no_number_breaks_what_is_learnt(brained: Served, extreme: dict[str, Any]) -> None:
    """Either it is refused, or probabilities still sum to 1, also for the usual tasks after it."""
    async with brained.as_("operator", "acme") as client:
        for ok in (True, False):
            answer = await client.post(DECIDE, json=ASK | extreme)
            assert answer.status_code in (200, 422), answer.text
            if answer.status_code == 200:
                assert sum(score["p"] for score in answer.json()["scores"]) == pytest.approx(1)
                wild = {"cost_usd": 1e6, "latency_ms": 1e10} if ok else {"cost_usd": 0, "latency_ms": 0}
                await told(client, answer.json(), ok=ok, **wild)
                explained = f"/api/orchestrator/decisions/{answer.json()['decision_id']}/explain"
                assert (await client.get(explained)).status_code == 200
        await decided(client)
        assert (await client.get("/api/orchestrator/state")).status_code == 200


async def test_a_clock_that_begins_at_zero_loses_nothing(serve: Any) -> None:
    """Retention goes by when outcomes were written down, not by the caller's clock."""
    served = await serve(["orchestrator"], plugins={"orchestrator": {"simulation": True}})
    async with served.as_("operator", "acme") as client:
        found = await decided(client, now_ms=1_000)
        await told(client, found, ok=True, now_ms=2_000)
    db = served.runtime.db
    await db.fetch("SELECT cogo.retain_rest(14, 1000)")
    assert await db.fetch_value("SELECT count(*) FROM cogo.outcomes") == 1
