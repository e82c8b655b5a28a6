"""Proves that policies are looked on by and activated for every process at once, and compared on the log of another one."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from http_hands import Served

from cogo.plugins.orchestrator import replay

DECIDE, FEEDBACK, EVALUATE, POLICIES, STATE = (
    f"/api/orchestrator/{name}" for name in ("decide", "feedback", "evaluate", "policies", "state")
)
ARMS = [{"agent_id": name, "list_price_usd": 0.001} for name in ("good", "bad", "worst")]
WORTH = {"good": 0.9, "bad": 0.5, "worst": 0.2}
OBJECTIVE = {"w_quality": 1.0, "w_cost": 0.0, "w_slo": 0.0}
WHY = {"reason": "a test"}


@pytest.fixture
async def brained(serve: Any) -> Served:
    served: Served = await serve(["orchestrator"])
    return served


async def decided(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    ask = {"tenant": "acme", "intent": "write", "candidates": ARMS, "objective": OBJECTIVE} | changes
    answer = await client.post(DECIDE, json=ask)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def learn(client: httpx.AsyncClient, n: int) -> list[str]:
    chosen = []
    for _ in range(n):
        found = await decided(client)
        arm = found["arm"]["agent_id"]
        chosen.append(arm)
        about = {
            "decision_id": found["decision_id"],
            "ok": True,
            "reward": WORTH[arm],
            "cost_usd": 0.001,
            "latency_ms": 9,
        }
        (await client.post(FEEDBACK, json=about)).raise_for_status()
    return chosen


async def put(client: httpx.AsyncClient, explore: str, exploration: float) -> str:
    answer = await client.post(POLICIES, json={"explore": explore, "exploration": exploration})
    assert answer.status_code == 201, answer.text
    version: str = answer.json()["version"]
    return version


async def move(client: httpx.AsyncClient, version: str, action: str, **about: Any) -> dict[str, Any]:
    answer = await client.post(f"{POLICIES}/{version}/{action}", json=WHY | about)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_an_activated_policy_holds_for_the_next_decision_of_every_process(serve: Any) -> None:
    one, other = await serve(["orchestrator"]), await serve(["orchestrator"])
    async with one.as_("admin") as admin, other.as_("operator", "acme") as client:
        before = await decided(client)
        assert before["policy_version"] == "thompson-1:0.02"
        version = await put(admin, "inverse-gap", 0.5)
        assert version == "inverse-gap-1:0.5"
        assert (await decided(client))["policy_version"] == "thompson-1:0.02", "a candidate decides nothing"
        assert (await move(admin, version, "activate"))["status"] == "active"
        found = await decided(client)
        assert found["policy_version"] == version
        row = await other.runtime.db.fetch_one(
            "SELECT policy_version, inputs ->> 'policy' AS policy, shadow FROM cogo.decisions ORDER BY id DESC"
        )
        assert row == {"policy_version": version, "policy": "inverse-gap", "shadow": None}
        state = (await client.get(STATE)).json()
        assert state["policy"] == {"active": version, "shadow": None}
        assert state["exploration"] == {"floor": 0.5, "policy": "inverse-gap"}
        second = await put(admin, "epsilon-greedy", 0.1)
        await move(admin, second, "activate")
        assert (await decided(client))["policy_version"] == second
        listed = (await client.get(POLICIES)).json()
        assert {one["version"]: one["status"] for one in listed["policies"]} == {version: "retired", second: "active"}  # fmt: skip
        await move(admin, second, "retire")
        assert (await decided(client))["policy_version"] == "thompson-1:0.02", "the settings again"
        replayed = await replay.replay(other.runtime.db, "acme", 100)
        assert (replayed.decisions, replayed.different) == (5, [])


async def test_a_shadow_decides_beside_and_nothing_comes_of_it(brained: Served) -> None:
    db = brained.runtime.db
    async with brained.as_("admin", "acme") as client:
        await learn(client, 30)
        assert (await db.fetch_value("SELECT count(*) FROM cogo.decisions WHERE shadow IS NOT NULL")) == 0
        version = await put(client, "epsilon-greedy", 1.0)
        await move(client, version, "shadow")
        assert (await client.get(STATE)).json()["policy"] == {"active": "thompson-1:0.02", "shadow": version}
        found = await decided(client)
        assert found["policy_version"] == "thompson-1:0.02"
        logged = (await client.get(f"/api/orchestrator/decisions/{found['decision_id']}")).json()
        assert logged["shadow"]["version"] == version
        assert logged["shadow"]["p"] == pytest.approx([1 / 3] * 3)
        assert [score["p"] for score in found["scores"]] != pytest.approx([1 / 3] * 3)
        await learn(client, 60)
        rows = await db.fetch("SELECT chosen, (shadow ->> 'chosen')::int AS theirs FROM cogo.decisions WHERE shadow IS NOT NULL")  # fmt: skip
        assert {row["theirs"] for row in rows} == {0, 1, 2}
        assert any(row["chosen"] != row["theirs"] for row in rows)
        assert await brained.rows() == 0
        replayed = await replay.replay(db, "acme", 200)
        assert replayed.equal == replayed.decisions, "the shadow changes nothing"
        await move(client, await put(client, "inverse-gap", 0.1), "shadow")
        statuses = [one["status"] for one in (await client.get(POLICIES)).json()["policies"]]
        assert statuses == ["candidate", "shadow"], "one at a time"


async def test_moves_are_audited_once(brained: Served) -> None:
    async with brained.as_("admin") as client:
        first, second = await put(client, "thompson", 0.1), await put(client, "thompson", 0.2)
        assert await put(client, "thompson", 0.1) == first
        await learn(client, 20)
        found = await move(client, first, "activate", tenant="acme")
        assert (found["activated_by"], found["evaluation"]["policy"]) == ("admin@test", first)
        assert found["evaluation"]["used"] == 20
        await move(client, first, "activate")
        await move(client, second, "activate")
    events = await brained.runtime.db.fetch(
        "SELECT tenant, actor, detail FROM public.bus_events WHERE kind = 'orchestrate_policy' ORDER BY id"
    )
    assert [(e["detail"]["version"], e["detail"]["from"], e["detail"]["to"], e["detail"]["instead_of"])
            for e in events] == [(first, "candidate", "active", None), (second, "candidate", "active", first)]  # fmt: skip
    assert {(e["tenant"], e["actor"], e["detail"]["reason"]) for e in events} == {("*", "admin@test", "a test")}  # fmt: skip
    assert events[0]["detail"]["evaluation"]["used"] == 20


async def test_policies_are_compared_on_the_log(brained: Served) -> None:
    async with brained.as_("admin") as client:
        await move(client, await put(client, "thompson", 0.3), "activate")
    async with brained.as_("operator", "acme") as client:
        chosen = await learn(client, 120)
        mean = sum(WORTH[arm] for arm in chosen) / len(chosen)
        reports = {}
        for policy in (
            "logged",
            "uniform",
            "greedy",
            "arm:good",
            "arm:worst",
            "thompson-1:0.02",
            "thompson-1:0.3",
        ):
            answer = await client.get(EVALUATE, params={"tenant": "acme", "policy": policy})
            assert answer.status_code == 200, answer.text
            reports[policy] = found = answer.json()
            assert (found["policy"], found["decisions"], found["used"]) == (policy, 120, 120)
            assert found["logged"]["value"] == pytest.approx(mean)
            assert found["policies"] == {"thompson-1:0.3": 120}
            assert found["dr"]["ci"][0] < found["dr"]["value"] < found["dr"]["ci"][1]
        for name in ("logged", "thompson-1:0.3"):
            assert reports[name]["ips"]["value"] == pytest.approx(mean)
            assert (reports[name]["gain"]["value"], reports[name]["verdict"]) == (
                pytest.approx(0),
                "undecided",
            )
            assert reports[name]["effective_sample_size"] == pytest.approx(120)
        for name, truth in (("arm:good", 0.9), ("arm:worst", 0.2), ("uniform", 1.6 / 3)):
            assert reports[name]["dr"]["ci"][0] <= truth <= reports[name]["dr"]["ci"][1], name
            assert reports[name]["dr"]["value"] == pytest.approx(truth, abs=0.1)
            assert reports[name]["snips"]["value"] == pytest.approx(truth, abs=0.15)
        assert reports["arm:good"]["verdict"] == "better"
        assert reports["arm:worst"]["verdict"] == "worse"
        few = (await client.get(EVALUATE, params={"tenant": "acme", "policy": "uniform", "limit": 7})).json()
        assert few["decisions"] == 7


async def test_the_latest_attempt_counts_and_what_has_no_outcome_is_left_out(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        one, two, three, _ = [await decided(client) for _ in range(4)]
        for about in (
            {"decision_id": one["decision_id"], "attempt": 1, "ok": False},
            {"decision_id": one["decision_id"], "attempt": 3, "ok": True, "reward": 0.8},
            {"decision_id": one["decision_id"], "attempt": 2, "ok": True, "reward": 0.1},
            {"decision_id": two["decision_id"], "ok": True, "reward": 0.2},
            {"decision_id": two["decision_id"], "reward": 0.8, "source": "judge"},
            {"decision_id": three["decision_id"], "ok": True},
        ):
            (await client.post(FEEDBACK, json=about)).raise_for_status()
        found = (await client.get(EVALUATE, params={"tenant": "acme", "policy": "logged"})).json()
        assert (found["used"], found["left_out"]) == (2, {"no_verdict": 1, "no_outcome": 1})
        assert found["logged"]["value"] == pytest.approx((0.8 + (0.2 + 0.8 * 0.5) / 1.5) / 2)
        later = await client.get(
            EVALUATE, params={"tenant": "acme", "policy": "logged", "since": "2999-01-01T00:00:00Z"}
        )
        assert (later.json()["decisions"], later.json()["dr"]) == (0, None)
        nobody = await client.get(EVALUATE, params={"tenant": "acme", "policy": "arm:nobody"})
        assert (nobody.json()["used"], nobody.json()["verdict"]) == (0, "undecided")


@pytest.mark.parametrize(
    "body",
    [
        {}, {"explore": "oracle", "exploration": 0.1}, {"explore": "thompson", "exploration": 1.5},
        {"explore": "thompson", "exploration": -0.1}, {"explore": "thompson", "exploration": 0.12345678},
        {"explore": "thompson"}, {"explore": "thompson", "exploration": 0.1, "more": 1},
    ],
)  # fmt: skip
async def test_a_policy_that_makes_no_sense_is_refused(brained: Served, body: dict[str, Any]) -> None:
    async with brained.as_("admin") as client:
        assert (await client.post(POLICIES, json=body)).status_code == 422


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"policy": "uniform"}, 422),
        ({"tenant": "acme"}, 422),
        ({"tenant": "acme", "policy": "thompson-1:0.5"}, 422),
        ({"tenant": "acme", "policy": "arm:"}, 422),
        ({"tenant": "acme", "policy": "a\x00b"}, 400),
        ({"tenant": "acme", "policy": "uniform", "limit": "0"}, 422),
        ({"tenant": "acme", "policy": "uniform", "since": "2026-01-01T00:00:00"}, 422),
        ({"tenant": "other", "policy": "uniform"}, 403),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(
    brained: Served, params: dict[str, Any], status: int
) -> None:
    async with brained.as_("viewer", "acme") as client:
        answer = await client.get(EVALUATE, params=params)
        assert answer.status_code == status, answer.text
        assert answer.json()["code"]


async def test_only_an_admin_changes_who_decides(brained: Served) -> None:
    async with brained.as_("admin") as admin, brained.as_("operator", "acme") as client:
        version = await put(admin, "thompson", 0.1)
        body = {"explore": "thompson", "exploration": 0.3}
        assert (await client.post(POLICIES, json=body)).status_code == 403
        for action in ("shadow", "activate", "retire"):
            assert (await client.post(f"{POLICIES}/{version}/{action}", json=WHY)).status_code == 403
            assert (await admin.post(f"{POLICIES}/thompson-1:0.7/{action}", json=WHY)).status_code == 404
            assert (await admin.post(f"{POLICIES}/{version}/{action}", json={})).status_code == 422
        assert (await admin.post(f"{POLICIES}/{version}/jump", json=WHY)).status_code == 404
        assert (await admin.post(f"{POLICIES}/a%00b/activate", json=WHY)).status_code == 400
        assert [one["status"] for one in (await client.get(POLICIES)).json()["policies"]] == ["candidate"]
        odd = await admin.post(f"{POLICIES}/{version}/activate", json=WHY | {"tenant": "no tenant"})
        assert odd.status_code == 422
