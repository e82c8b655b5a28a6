"""Proves the routes that steer lanes: who may pause what, what failed is shown to whom, and goes back."""

from __future__ import annotations

from typing import Any

import pytest
from hands import Hand, kinds
from http_hands import Served

WHY = {"reason": "maintenance"}
LANE = "work/do"


@pytest.fixture
async def hand(served: Served) -> Hand:
    return await Hand(served.runtime.bus).register("work/do/0")


async def post(served: Served, who: tuple[str, ...], path: str, **body: Any) -> tuple[int, Any]:
    async with served.as_(*who) as client:  # type: ignore[arg-type]
        answer = await client.post(path, json=WHY | body)
    return answer.status_code, answer.json()


async def fail(served: Served, hand: Hand, *tenants: str, error: str = "x: y") -> None:
    for tenant in tenants:
        await served.runtime.bus.enqueue(f"{LANE}@{tenant}", {})
        (message,) = await hand.claim(LANE)
        await hand.finish(message, "failed", error=error)


ADMIN, ACME, LOOK = ("admin",), ("operator", "acme"), ("viewer", "acme")


async def test_who_may_pause_what(served: Served, hand: Hand) -> None:
    """A tenant by its operator, a lane by an admin; each is audited with its subject."""
    bus = served.runtime.bus
    await bus.enqueue(f"{LANE}@acme", {})
    pause, resume = (f"/api/lanes/{LANE}/{what}" for what in ("pause", "resume"))
    for who, body in ((ACME, {}), (ACME, {"tenant": "beta"}), (LOOK, {"tenant": "acme"})):
        assert (await post(served, who, pause, **body))[0] == 403
    paused = {"lane": LANE, "tenant": "acme", "paused": True, "changed": True}
    assert await post(served, ACME, pause, tenant="acme") == (200, paused)
    assert await post(served, ACME, pause, tenant="acme") == (200, paused | {"changed": False})
    assert await hand.claim(LANE) == []
    assert (await post(served, ADMIN, pause))[1]["tenant"] is None
    assert (await post(served, ACME, resume, tenant="acme"))[1]["paused"] is False
    assert await hand.claim(LANE) == []
    assert (await post(served, ADMIN, resume))[1]["changed"] is True
    assert len(await hand.claim(LANE)) == 1
    assert await kinds(bus) == ["paused", "paused", "resumed", "resumed"]
    actors = await bus.db.fetch("SELECT DISTINCT actor FROM public.bus_events ORDER BY 1")
    assert [found["actor"] for found in actors] == ["admin@test", "operator@test"]


@pytest.mark.parametrize("lane", ["work/nothing", "Work/do", "work/do%20"])
async def test_a_lane_that_is_none(served: Served, lane: str) -> None:
    status, problem = await post(served, ADMIN, f"/api/lanes/{lane}/pause")
    assert (status, problem["code"] in ("invalid", "routing_invalid")) == (422, True)


async def test_what_failed_is_shown_to_its_tenants(served: Served, hand: Hand) -> None:
    await fail(served, hand, "acme", "acme", "beta")
    await fail(served, hand, "beta", error="z: secret")

    async def groups(who: tuple[str, ...], query: str = "") -> list[tuple[str, int, int]]:
        async with served.as_(*who) as client:  # type: ignore[arg-type]
            answer = await client.get(f"/api/dead{query}")
        assert answer.status_code == 200
        return [(group["code"], group["n"], group["tenants"]) for group in answer.json()["groups"]]

    assert await groups(ADMIN) == [("x", 3, 2), ("z", 1, 1)]
    assert await groups(LOOK) == [("x", 2, 1)]
    assert await groups(LOOK, "?tenant=beta") == []
    assert await groups(ADMIN, "?tenant=beta&lane=work/do") == [("z", 1, 1), ("x", 1, 1)]
    assert await groups(ADMIN, "?limit=1") == [("x", 3, 2)]


async def test_an_operator_redrives_its_own(served: Served, hand: Hand) -> None:
    await fail(served, hand, "acme", "acme", "beta", "beta")
    path = "/api/redrive"
    assert (await post(served, LOOK, path, lane=LANE))[0] == 403
    status, problem = await post(served, ACME, path)
    assert (status, problem["code"]) == (422, "invalid")
    assert await post(served, ACME, path, lane=LANE, dry_run=True) == (200, {"redriven": 2, "refused": 0})
    assert (await post(served, ACME, path, tenant="beta"))[1] == {"redriven": 0, "refused": 0}
    assert (await post(served, ACME, path, ids=[1, 3, 4]))[1]["redriven"] == 1
    assert (await post(served, ACME, path, code="x", limit=5))[1]["redriven"] == 1
    assert (await post(served, ADMIN, path, before="2020-01-01T00:00:00Z"))[1]["redriven"] == 0
    assert (await post(served, ADMIN, path, lane=LANE, limit=1))[1]["redriven"] == 1
    assert (await post(served, ADMIN, path, lane=LANE))[1]["redriven"] == 1
    assert len(await hand.claim(LANE)) == 4


@pytest.mark.parametrize("body", [{"limit": 0}, {"limit": 10_001}, {"ids": ["1"]}, {"before": "2020-01-01T00:00:00"},
                                  {"lane": "work/do/0"}, {"extra": 1}, {"tenant": ""}], ids=str)  # fmt: skip
async def test_what_a_redrive_does_not_take(served: Served, body: dict[str, Any]) -> None:
    status, problem = await post(served, ADMIN, "/api/redrive", **body)
    assert status == 422, problem
