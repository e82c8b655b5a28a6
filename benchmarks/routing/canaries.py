"""Canaries through the HTTP API: a version beside its base, for as long as it runs or so many tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from serving import API

if TYPE_CHECKING:
    import httpx

BASE = 0.95
EQUAL_TASKS = 500
BAD_TASKS_MAX = 2_000
SHARE = 10.0
AGENT = "writer"


@dataclass(frozen=True)
class Found:
    """How a canary ended."""

    state: str
    tasks: int
    canary_tasks: int
    cause: str | None


def run(client: httpx.Client, seed: int, passes: float, tasks: int) -> Found:
    """One canary that passes so often, in a tenant of its own; it stays at its first share, as that is what is measured."""
    tenant, rng, of_canary = f"canary-{seed}", np.random.default_rng([seed, 8_002]), 0
    start = {
        "tenant": tenant, "agent_id": AGENT, "base_version": "1", "canary_version": "2", "steps": [SHARE],
    }  # fmt: skip
    id = _sent(client, "canaries", start)["id"]
    ask = {
        "tenant": tenant, "intent": "write",
        "candidates": [{"agent_id": AGENT, "version": version} for version in ("1", "2")],
    }  # fmt: skip
    for n in range(tasks):
        found = _sent(client, "decide", ask)
        ours = found["arm"]["version"] == "2"
        of_canary += ours
        ok = bool(rng.uniform() < (passes if ours else BASE))
        _sent(client, "feedback", {"decision_id": found["decision_id"], "ok": ok, "cost_usd": 0.001})
        # Only its own tasks move it, and the move is made at the next decision.
        if not ours and n + 1 < tasks:
            continue
        _sent(client, "decide", ask)
        answer = client.get(f"{API}/canaries/{id}")
        answer.raise_for_status()
        if (stood := answer.json())["state"] != "running":
            return Found(stood["state"], n + 1, of_canary, stood["cause"])
    return Found("running", tasks, of_canary, None)


def _sent(client: httpx.Client, name: str, body: dict) -> dict:
    answer = client.post(f"{API}/{name}", json=body)
    answer.raise_for_status()
    return answer.json()
