"""Proves that a new version gets its share, is compared with the concurrent old one, and is stopped or promoted by that."""

from __future__ import annotations

import random
from typing import Any

import httpx
import msgspec
import pytest
from hands import Hand
from http_hands import Served

from cogo.plugins.orchestrator import queries
from cogo.plugins.orchestrator.canary import Canary, Move, make

CANARIES, DECIDE, FEEDBACK = (f"/api/orchestrator/{name}" for name in ("canaries", "decide", "feedback"))
BOTH = [{"agent_id": "writer", "version": version} for version in ("1", "2")]
START = {
    "tenant": "acme", "agent_id": "writer", "base_version": "1", "canary_version": "2", "steps": [25, 50, 100],
}  # fmt: skip


@pytest.fixture
async def brained(serve: Any) -> Served:
    served: Served = await serve(["orchestrator"], plugins={"orchestrator": {"simulation": True}})
    return served


async def started(client: httpx.AsyncClient, **changes: Any) -> int:
    answer = await client.post(CANARIES, json=START | changes)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["state"], answer.json()["weight"]) == (
        "running", (START | changes)["steps"][0] / 100,
    )  # fmt: skip
    found: int = answer.json()["id"]
    return found


async def decided(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    ask = {"tenant": "acme", "intent": "write", "candidates": BOTH} | changes
    answer = await client.post(DECIDE, json=ask)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert sum(score["p"] for score in found["scores"]) == pytest.approx(1)
    return found


def version_p(found: dict[str, Any]) -> dict[str, float]:
    return {score["version"]: score["p"] for score in found["scores"]}


async def run(
    client: httpx.AsyncClient, n: int, passes: dict[str, float], now_ms: int | None = None, **about: Any
) -> dict[str, int]:
    """So many tasks; each version succeeds at its rate. What each got."""
    rng, got = random.Random(7), {"1": 0, "2": 0}
    for _ in range(n):
        found = await decided(client, **({} if now_ms is None else {"now_ms": now_ms}))
        version = found["arm"]["version"]
        got[version] += 1
        ok = rng.random() < passes[version]
        told = {"decision_id": found["decision_id"], "ok": ok, "cost_usd": 0.001} | about
        if now_ms is not None:
            told["now_ms"] = now_ms
        (await client.post(FEEDBACK, json=told)).raise_for_status()
    return got


async def shown(client: httpx.AsyncClient, id: int) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"{CANARIES}/{id}")).json()
    return found


async def test_it_gets_its_share_of_its_bases_tasks(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        await started(client)
        found = await decided(client)
        assert version_p(found) == pytest.approx({"1": 0.75, "2": 0.25})
        risky = await decided(client, risk="high")
        assert version_p(risky) == {"1": 1.0, "2": 0.0}
        assert "high risk" in risky["scores"][1]["excluded_by"]


async def test_a_good_one_takes_every_step_and_is_promoted(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        id = await started(client, steps=[40, 60, 100])
        await run(client, 180, {"1": 0.99, "2": 1.0})
        found = await shown(client, id)
        assert (found["state"], found["weight"]) == ("promoted", 1.0), found
        found = await decided(client)
        assert found["arm"]["version"] == "2"
        assert found["scores"][0]["excluded_by"] == f"canary {id}: superseded by version 2"
        events = await brained.runtime.db.fetch(
            "SELECT detail FROM public.bus_events WHERE kind = 'orchestrate_canary' ORDER BY id"
        )
        moves = [(e["detail"]["from"], e["detail"]["to"], e["detail"]["weight_to"]) for e in events]
        assert moves == [
            (None, "running", 40), ("running", "running", 60), ("running", "promoted", 100),
        ]  # fmt: skip


async def test_a_bad_one_is_paused_tried_again_and_rolled_back(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        id = await started(client, steps=[50, 100])
        now, minute = 1_000_000_000_000, 60_000
        for times in range(4):
            await run(client, 50, {"1": 1.0, "2": 0.3}, now)
            found = await shown(client, id)
            assert found["state"] == ("paused" if times < 3 else "rolled_back"), found
            assert "worse" in found["cause"] or "breaker" in found["cause"]
            before = await decided(client, now_ms=now + 5 * minute * 2**times - 1)
            assert version_p(before)["2"] == 0
            now += 5 * minute * 2**times
        assert version_p(await decided(client, now_ms=now * 2))["2"] == 0, "rolled back is for good"


async def told_of_each(client: httpx.AsyncClient, n: int, about: dict[str, dict[str, Any]]) -> None:
    """So many tasks that succeed; of each version it is said what `about` has."""
    for _ in range(n):
        found = await decided(client)
        told = {"decision_id": found["decision_id"], "ok": True} | about[found["arm"]["version"]]
        (await client.post(FEEDBACK, json=told)).raise_for_status()


async def test_bad_verdicts_count_as_well(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        id = await started(client)
        await told_of_each(client, 80, {"1": {"reward": 0.9}, "2": {"reward": 0.1}})
        await decided(client)
        found = await shown(client, id)
        assert found["state"] == "paused"
        assert found["analysis"]["verdict"] == "worse"


async def test_too_little_data_is_no_verdict(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        id = await started(client)
        await run(client, 20, {"1": 1.0, "2": 1.0})
        found = await shown(client, id)
        assert (found["state"], found["analysis"]["verdict"]) == ("running", "inconclusive")


async def test_a_dear_one_is_paused(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        id = await started(client)
        await told_of_each(client, 80, {"1": {"cost_usd": 0.001}, "2": {"cost_usd": 0.003}})
        await decided(client)
        found = await shown(client, id)
        assert found["state"] == "paused"
        assert "3.0 times" in found["cause"]


async def test_a_move_that_comes_too_late_is_told_so(brained: Served) -> None:
    """Two who read the same canary: the second one's move isn't made, and isn't lost silently."""
    async with brained.as_("operator", "acme") as client:
        id = await started(client)
        db = brained.runtime.db
        (row,) = await db.fetch(queries.CANARIES, {"tenants": None, "id": id})
        read = msgspec.convert({name: row[name] for name in Canary.__struct_fields__}, Canary)
        move = Move(state="paused", step=0, resumes=0, cause="x")
        assert await make(db, read, move, "one")
        assert not await make(db, read, move, "another")
        assert (await shown(client, id))["changed_by"] == "one"


async def test_what_a_person_paused_only_a_person_resumes(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        id = await started(client)
        paused = await client.post(f"{CANARIES}/{id}/pause", json={"reason": "release freeze"})
        assert (paused.json()["state"], paused.json()["resume_at"]) == ("paused", None)
        assert "release freeze" in paused.json()["cause"]
        assert version_p(await decided(client, now_ms=10**14))["2"] == 0
        again = await client.post(f"{CANARIES}/{id}/pause", json={})
        assert again.status_code == 422
        assert (await client.post(f"{CANARIES}/{id}/resume", json={})).json()["weight"] == 0.25
        assert (await client.post(f"{CANARIES}/{id}/rollback", json={})).json()["state"] == "rolled_back"
        assert (await client.post(f"{CANARIES}/{id}/promote", json={})).status_code == 422
        assert await started(client) > id, "after one has ended another may start"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"canary_version": "1"}, 422),
        ({"steps": []}, 422),
        ({"steps": [50, 10]}, 422),
        ({"steps": [100]}, 422),
        ({"steps": [0, 10]}, 422),
        ({"tenant": "other"}, 403),
        ({"weights": [1]}, 422),
    ],
)
async def test_what_makes_no_sense_is_refused(brained: Served, changes: dict[str, Any], status: int) -> None:
    async with brained.as_("operator", "acme") as client:
        assert (await client.post(CANARIES, json=START | changes)).status_code == status


async def test_one_of_an_agent_at_a_time_and_no_others_tenants(brained: Served) -> None:
    async with brained.as_("operator", "acme") as client:
        id = await started(client)
        assert (await client.post(CANARIES, json=START)).status_code == 422
        assert (await client.post(f"{CANARIES}/{id}/jump", json={})).status_code == 404
        assert [one["id"] for one in (await client.get(CANARIES)).json()["canaries"]] == [id]
    async with brained.as_("operator", "other") as client:
        assert (await client.get(f"{CANARIES}/{id}")).status_code == 404
        assert (await client.post(f"{CANARIES}/{id}/pause", json={})).status_code == 404
        assert (await client.get(CANARIES)).json() == {"canaries": []}


async def test_registered_versions_of_a_lane_are_arms(brained: Served) -> None:
    agents = "/api/orchestrator/agents"
    await brained.runtime.db.execute(
        "INSERT INTO cogo.bus_lanes (service, role, intents) VALUES ('work', 'do', '{do}')"
    )
    await Hand(brained.runtime.bus).register("work/do/0")
    async with brained.as_("admin") as client:
        for version, status in (("1", "active"), ("2", "active"), ("0", "retired"), ("3", "draining")):
            about = {"agent_id": "work/do", "version": version, "status": status, "list_price_usd": 0.002}
            assert (await client.put(agents, json=about)).status_code == 200
        assert len((await client.get(agents)).json()["agents"]) == 4
    async with brained.as_("operator", "acme") as client:
        assert (await client.put(agents, json={"agent_id": "work/do"})).status_code == 403
        found = await decided(client, candidates=[], intent="do")
        assert [score["version"] for score in found["scores"]] == ["1", "2", "3"]
        assert [score["excluded_by"] for score in found["scores"]] == [None, None, "draining"]
        assert found["assignment"]["version"] == found["arm"]["version"]
        await started(client, agent_id="work/do", base_version="1", canary_version="2")
        found = await decided(client, candidates=[], intent="do")
        assert version_p(found) == pytest.approx({"1": 0.75, "2": 0.25, "3": 0})
