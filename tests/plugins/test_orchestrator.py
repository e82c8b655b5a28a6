"""Proves decide -> execute -> target: decisions with reasons, bounded assignments, audit, refusals."""

from __future__ import annotations

from typing import Any

from hands import kinds, process
from helpers import eventually_async

import cogo


async def shout(task: dict[str, Any], ctx: cogo.Context) -> dict[str, Any]:
    if task.get("tokens"):
        await ctx.spend(tokens=task["tokens"])
    if task.get("model"):
        await ctx.spend(model=task["model"])
    if task.get("fail_first") and ctx.attempt == 1:
        raise cogo.Retry("once more", after=0)
    budget = ctx.assignment.budget if ctx.assignment else None
    return {"said": task["word"].upper(), "tokens": budget.maxTokens if budget else None}


SHOUT = cogo.Role("voice", "shout", handle=shout, intents=("shout",), events="voice")
ROLES = ["orchestrator", "executor", SHOUT]


def request(**payload: Any) -> dict[str, Any]:
    return {"intent": "shout", "payload": payload}


async def test_the_id_of_the_request_gets_the_answer(dsn: str) -> None:
    async with process(dsn, ROLES, port=0) as runtime:
        bus = runtime.bus
        id = await bus.enqueue("orchestrator/decide@acme", request(word="hi"))
        result = await bus.result(id)
        assert (result.status, result.value) == ("done", {"said": "HI", "tokens": 200_000})
        found = await kinds(bus)
        assert found[:4] == ["orchestrate_enqueued", "orchestrate_decision", "execute_enqueued", "voice_done"]
        assert sorted(found[4:]) == ["execute_done", "orchestrate_done"]  # one transaction settles both
        decision = await bus.db.fetch_one("SELECT * FROM cogo.decisions")
        assert decision is not None
        assert (decision["message_id"], decision["lane"], decision["tenant"]) == (id, "voice/shout/0", "acme")
        assert "voice/shout/0" in decision["reason"]
        traces = await bus.db.fetch("SELECT DISTINCT trace_id FROM public.agent_messages")
        assert traces == [{"trace_id": result.trace_id}]
        ttl = await bus.db.fetch_value(
            "SELECT count(*) FROM public.agent_messages WHERE expires_at IS NOT NULL"
        )
        assert ttl == 1  # only the target carries the assignment


async def test_a_retry_of_the_target_is_seen_by_the_executor(dsn: str) -> None:
    async with process(dsn, ROLES, port=0) as runtime:
        id = await runtime.bus.enqueue("orchestrator/decide@acme", request(word="hi", fail_first=True))
        assert (await runtime.bus.result(id)).status == "done"
        found = await kinds(runtime.bus)
        assert found.count("voice_retry") == 1
        assert found.count("execute_retry") == 1


async def test_budget_and_model_are_enforced_in_core(dsn: str) -> None:
    async with process(dsn, ROLES, port=0) as runtime:
        bus = runtime.bus
        id = await bus.enqueue("orchestrator/decide@acme", request(word="hi", tokens=200_001))
        result = await bus.result(id)
        assert (result.status, (result.error or "").split(":")[0]) == ("failed", "budget_exceeded")
        hold = await bus.db.fetch_one("SELECT * FROM cogo.budget_holds")
        assert hold is not None
        assert (hold["root_id"], hold["spent_tokens"]) == (id, 0)
        assert hold["closed_at"] is not None
        assert {"voice_failed", "execute_failed", "orchestrate_failed"} <= set(await kinds(bus))


async def test_an_unknown_intent_fails_with_what_is_known(dsn: str) -> None:
    async with process(dsn, ROLES, port=0) as runtime:
        id = await runtime.bus.enqueue("orchestrator/decide@acme", {"intent": "sing"})
        result = await runtime.bus.result(id)
        assert result.status == "failed"
        assert (result.error or "").startswith("intent_unknown: ")
        assert "shout" in (result.error or "")


async def test_a_request_that_does_not_fit_fails_with_the_path(dsn: str) -> None:
    async with process(dsn, ROLES, port=0) as runtime:
        id = await runtime.bus.enqueue("orchestrator/decide@acme", {"intent": 7})
        result = await runtime.bus.result(id)
        assert (result.status, result.attempts) == ("failed", 1)
        assert "$.intent" in (result.error or "")


async def test_work_waits_for_a_process_that_serves_it(dsn: str) -> None:
    async with process(dsn, ["orchestrator", "executor", SHOUT], port=0):
        pass  # the lane is known now, and nobody serves it
    async with process(dsn, ["orchestrator", "executor"], port=0) as runtime:
        id = await runtime.bus.enqueue("orchestrator/decide@acme", request(word="hi"))

        async def refused() -> bool:
            row = await runtime.bus.message(id)
            return row["status"] == "queued" and "no_feasible_arm" in (row["error"] or "")

        await eventually_async(refused)
        async with process(dsn, [SHOUT]):
            assert (await runtime.bus.result(id, timeout_s=15)).value["said"] == "HI"


async def test_the_end_of_a_request_is_an_outcome_of_its_decision(dsn: str) -> None:
    """Nobody reports it: the root's end does. A caller's fault is told apart, and a budget is settled."""
    async with process(dsn, ROLES, port=0) as runtime:
        bus = runtime.bus
        await bus.db.execute(
            "INSERT INTO cogo.budgets (tenant, limit_usd, window_s) VALUES ('acme', 0.15, 3600)"
        )
        id = await bus.enqueue("orchestrator/decide@acme", request(word="hi"))
        assert (await bus.result(id)).status == "done"
        id = await bus.enqueue("orchestrator/decide@acme", request(word="hi", tokens=200_001))
        assert (await bus.result(id)).status == "failed"
        rows = await bus.db.fetch("SELECT source, ok, error_class, latency_ms FROM cogo.outcomes ORDER BY id")
        assert [(row["source"], row["ok"], row["error_class"]) for row in rows] == [
            ("run", True, None), ("run", False, "budget"),
        ]  # fmt: skip
        assert all(row["latency_ms"] > 0 for row in rows)
        budget = await bus.db.fetch_one("SELECT reserved_usd::float8, tasks FROM cogo.budgets")
        assert budget == {"reserved_usd": 0.0, "tasks": 2}


async def test_many_callers_never_overdraw_a_budget(dsn: str) -> None:
    """Each reserves $0.10 in the transaction that decides; of $0.25 the third gets what is left, the rest nothing."""
    async with process(
        dsn, ["orchestrator", SHOUT], port=0
    ) as runtime:  # nobody executes: reservations stand
        bus = runtime.bus
        await bus.db.execute(
            "INSERT INTO cogo.budgets (tenant, limit_usd, window_s) VALUES ('acme', 0.25, 3600)"
        )
        ids = [await bus.enqueue("orchestrator/decide@acme", request(word="hi")) for _ in range(12)]

        async def decided() -> bool:
            counts = await bus.db.fetch(
                "SELECT status, count(*) AS n FROM public.agent_messages WHERE id = ANY (%s) GROUP BY 1",
                (ids,),
            )
            return {row["status"]: row["n"] for row in counts} == {"waiting": 3, "failed": 9}

        await eventually_async(decided)
        reserved = await bus.db.fetch_value("SELECT reserved_usd::float8 FROM cogo.budgets")
        assert reserved <= 0.25
        errors = await bus.db.fetch(
            "SELECT DISTINCT split_part(error, ':', 1) AS code FROM public.agent_messages WHERE error IS NOT NULL"
        )
        assert errors == [{"code": "budget_refused"}]


async def test_a_window_that_has_passed_is_a_new_one(dsn: str) -> None:
    """What was spent in it no longer counts, also for who reserves before anything else."""
    async with process(dsn, ROLES, port=0) as runtime:
        bus = runtime.bus
        await bus.db.execute(
            "INSERT INTO cogo.budgets (tenant, limit_usd, window_s, window_at, spent_usd, tasks)"
            " VALUES ('acme', 1, 60, now() - interval '2 minutes', 1, 9)"
        )
        id = await bus.enqueue("orchestrator/decide@acme", request(word="hi"))
        assert (await bus.result(id)).status == "done"
        budget = await bus.db.fetch_one(
            "SELECT spent_usd::float8, reserved_usd::float8, tasks FROM cogo.budgets"
        )
        assert budget == {"spent_usd": 0.0, "reserved_usd": 0.0, "tasks": 1}
