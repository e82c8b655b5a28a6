"""Proves that plain INSERTs and UPDATEs of any client are as good as our own functions."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from hands import Hand, child, counts, insert, kinds, policy, reclaim, row, shifted, update

from cogo.core.bus import Bus

CONTRACT = {
    "id", "created_at", "service", "role", "shard", "tenant", "payload", "status", "claimed_by", "claimed_at",
    "done_at", "error", "attempts", "last_error_at", "retry_at", "result_snippet", "result_url",
}  # fmt: skip


async def test_the_table_keeps_its_contract(bus: Bus) -> None:
    """One plain table with the columns of the specification; what we added has a default or is empty."""
    columns = await bus.db.fetch(
        """
        SELECT column_name, is_nullable = 'YES' OR column_default IS NOT NULL OR is_identity = 'YES'
               OR is_generated = 'ALWAYS' AS optional
        FROM information_schema.columns WHERE table_schema = 'public' AND table_name = 'agent_messages'
        """
    )
    found = {column["column_name"]: column["optional"] for column in columns}
    assert found.keys() >= CONTRACT
    assert {name for name, optional in found.items() if not optional} == {"service", "role"}
    kind = await bus.db.fetch_value(
        "SELECT relkind::text FROM pg_class WHERE oid = 'public.agent_messages'::regclass"
    )
    assert kind == "r"


async def test_a_plain_insert_is_a_valid_message(bus: Bus) -> None:
    hand = await Hand(bus).register()
    id = await insert(bus, "t/echo/2@acme", payload='{"n": 1}')
    (message,) = await hand.claim("t/echo/2")
    assert (message.id, message.payload, message.root_id) == (id, b'{"n": 1}', id)
    assert await hand.finish(message, snippet="1") == "done"
    least = await bus.db.fetch_value(
        "INSERT INTO public.agent_messages (service, role) VALUES ('t','echo') RETURNING id"
    )
    found = await row(bus, least)
    assert (found["status"], found["tenant"], found["shard"], found["payload"]) == (
        "queued",
        "default",
        0,
        {},
    )


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "running"}, {"service": "Bad"}, {"role": ""}, {"tenant": "a b"}, {"shard": -1},
        {"shard": 32_768}, {"priority": 4}, {"idempotency_key": ""}, {"traceparent": "x"},
    ],
)  # fmt: skip
async def test_what_the_table_refuses(bus: Bus, columns: dict[str, Any]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        await insert(bus, "t/echo", **columns)


@pytest.mark.parametrize(
    "columns", [{"service": "Bad"}, {"role": ""}, {"tenant": "a b"}, {"shard": -1}, {"priority": 4}]
)
async def test_nobody_sends_a_message_where_it_could_not_have_been_inserted(
    bus: Bus, columns: dict[str, Any]
) -> None:
    id = await insert(bus, "t/echo")
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        await update(bus, id, **columns)
    assert refused.value.diag.constraint_name == f"agent_messages_{next(iter(columns))}"
    assert refused.value.diag.message_hint
    await update(bus, id, service="other", priority=0)
    assert (await bus.message(id))["service"] == "other"


async def test_one_bad_row_refuses_the_whole_statement(bus: Bus) -> None:
    sql = """INSERT INTO public.agent_messages (service, role, tenant)
             SELECT 't', 'echo', CASE WHEN n = 700 THEN '' ELSE 'acme' END FROM generate_series(1, 1000) n"""
    with pytest.raises(psycopg.errors.CheckViolation, match="its tenant is not valid"):
        await bus.db.execute(sql)
    assert await bus.db.fetch_value("SELECT count(*) FROM public.agent_messages") == 0


async def test_a_plain_insert_into_the_ingress_lane_is_audited(bus: Bus) -> None:
    id = await insert(bus, "orchestrator/decide/0@acme", payload='{"intent": "ask"}')
    await insert(bus, "orchestrator/execute")
    (event,) = await bus.db.fetch("SELECT kind, message_id, tenant, detail FROM public.bus_events")
    expected = {
        "kind": "orchestrate_enqueued",
        "message_id": id,
        "tenant": "acme",
        "detail": {"intent": "ask"},
    }
    assert event == expected


async def test_the_ttl_of_an_assignment_counts_for_plain_inserts(bus: Bus) -> None:
    id = await insert(bus, "t/echo", payload='{"__assignment": {"ttl_ms": 60000}}')
    found = await row(bus, id)
    assert (found["expires_at"] - found["created_at"]).total_seconds() == 60
    for odd in ('"60000"', "-1", "null", "{}", "1e400"):
        id = await insert(bus, "t/echo", payload=f'{{"__assignment": {{"ttl_ms": {odd}}}}}')
        assert (await row(bus, id))["expires_at"] is None


async def test_a_foreign_worker_claims_and_finishes(bus: Bus) -> None:
    await policy(bus, "t/echo", events="echo")
    ours = await Hand(bus).register()
    id = await insert(bus, "t/echo")
    await update(bus, id, status="claimed", claimed_by="worker.ts")
    found = await row(bus, id)
    assert found["fence"] > 0
    assert (found["attempts"], found["claimed_by"], found["holder_epoch"]) == (1, "worker.ts", None)
    assert found["claimed_at"] is not None
    assert await ours.claim("t/echo") == []
    await update(bus, id, status="done", result_snippet='{"a":1}')
    found = await row(bus, id)
    assert (found["fence"], found["done_at"] is not None) == (0, True)
    assert (await bus.result(id)).value == {"a": 1}
    assert await kinds(bus) == ["echo_done"]
    assert await counts(bus) == {"done": 1}


async def test_a_foreign_worker_takes_over_ours_and_our_finish_misses(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await insert(bus, "t/echo")
    (message,) = await hand.claim("t/echo")
    await update(bus, message.id, status="claimed", claimed_by="worker.ts")
    assert await hand.finish(message) is None
    found = await row(bus, message.id)
    assert (found["fence"] > message.fence, found["attempts"], found["deadline_at"]) == (True, 2, None)


async def test_a_foreign_heartbeat_is_no_new_claim(bus: Bus) -> None:
    id = await insert(bus, "t/echo")
    await update(bus, id, status="claimed", claimed_by="worker.ts")
    before = await row(bus, id)
    await update(bus, id, status="claimed", claimed_by="worker.ts", result_snippet='"half"')
    after = await row(bus, id)
    assert (after["fence"], after["attempts"]) == (before["fence"], 1)


async def test_a_foreign_worker_retries_later(bus: Bus, dsn: str) -> None:
    id = await insert(bus, "t/echo")
    await update(bus, id, status="claimed", claimed_by="worker.ts")
    await update(bus, id, status="queued", retry_at="2999-01-01", error="later")
    found = await row(bus, id)
    assert (found["fence"], found["attempts"], found["claimed_by"]) == (0, 1, None)
    assert await Hand(bus).claim("t/echo") == []
    await update(bus, id, retry_at=None)
    (message,) = await Hand(bus).claim("t/echo")
    assert message.attempts == 2


async def test_foreign_claims_are_reclaimed_by_their_age_alone(bus: Bus, dsn: str) -> None:
    """Their claimed_at is the database's, so a worker with a wrong clock is no exception."""
    first, second = await insert(bus, "t/echo"), await insert(bus, "t/echo")
    await update(bus, first, status="claimed", claimed_by="w", claimed_at="2999-01-01")
    await update(bus, second, status="claimed", claimed_by="w", claimed_at="1999-01-01")
    assert await reclaim(bus, after_ms=900_000) == []
    async with shifted(dsn, "901 s") as later:
        found = await reclaim(later, after_ms=900_000)
    assert [entry[:2] for entry in found] == [(first, "queued"), (second, "queued")]
    assert (await row(bus, first))["error"].startswith("claim_lost: a claim without a lease")


async def test_a_message_that_was_inserted_as_claimed_is_not_lost(bus: Bus, dsn: str) -> None:
    id = await insert(bus, "t/echo", status="claimed")
    async with shifted(dsn, "901 s") as later:
        assert [entry[:2] for entry in await reclaim(later)] == [(id, "queued")]


async def test_foreign_ends_without_a_claim_count_too(bus: Bus) -> None:
    """Also when the client fills in done_at itself."""
    ids = [await insert(bus, "t/echo") for _ in range(3)]
    await update(bus, ids[0], status="cancelled", done_at="2026-01-01")
    await update(bus, ids[1], status="done", done_at="2026-01-01")
    await update(bus, ids[2], status="failed", error="mine: no")
    assert await counts(bus) == {"cancelled": 1, "done": 1, "failed": 1}
    assert await kinds(bus) == ["cancelled", "t_failed"]
    assert (await row(bus, ids[2]))["last_error_at"] is not None


@pytest.mark.parametrize("how", ["function", "update"])
async def test_cancel(bus: Bus, how: str) -> None:
    hand = await Hand(bus).register()
    ids = [await insert(bus, "t/echo") for _ in range(2)]
    (message,) = await hand.claim("t/echo", 1)
    for id in ids:
        if how == "function":
            assert await bus.cancel(id, actor="ops", reason="") == "cancelled"
        else:
            await update(bus, id, status="cancelled")
    assert await hand.finish(message, snippet="1") is None
    found = [await row(bus, id) for id in ids]
    assert {one["status"] for one in found} == {"cancelled"}
    assert all(one["error"].startswith("cancelled: by ") and one["done_at"] for one in found)
    assert {(one["fence"], one["deadline_at"]) for one in found} == {(0, None)}
    assert await counts(bus) == {"cancelled": 2}
    assert await kinds(bus) == ["cancelled", "cancelled"]
    assert await bus.cancel(ids[0], actor="ops") == "cancelled", "a second time changes nothing"
    assert await counts(bus) == {"cancelled": 2}


@pytest.mark.parametrize("how", ["function", "update"])
async def test_requeue(bus: Bus, how: str) -> None:
    hand = await Hand(bus).register()
    id = await bus.enqueue("t/echo", {}, ttl_ms=600_000)
    await bus.hold(id, "default", 1.0, None)
    (message,) = await hand.claim("t/echo")
    await hand.finish(message, "failed", error="rejected: no")
    before = await row(bus, id)
    if how == "function":
        await bus.requeue(id, actor="ops")
    else:
        await update(bus, id, status="queued")
    after = await row(bus, id)
    blank = ("claimed_by", "claimed_at", "done_at", "error", "retry_at", "awaits", "deadline_at")
    assert {after[name] for name in blank} == {None}
    assert (after["status"], after["attempts"], after["fence"]) == ("queued", 0, 0)
    assert after["seq"] > before["seq"]
    assert after["expires_at"] > before["expires_at"]
    assert await bus.db.fetch("SELECT FROM cogo.budget_holds") == []
    assert await counts(bus) == {}
    (message,) = await hand.claim("t/echo")
    assert (message.id, message.attempts) == (id, 1)


async def test_what_has_ended_is_only_ever_requeued(bus: Bus) -> None:
    for end in ("done", "failed", "cancelled"):
        id = await insert(bus, "t/echo")
        await update(bus, id, status=end)
        for state in {"done", "failed", "cancelled", "claimed", "waiting"} - {end}:
            with pytest.raises(psycopg.Error, match="what has ended can only be requeued") as caught:
                await update(bus, id, status=state)
            assert caught.value.sqlstate == "CG410"
        await update(bus, id, status=end, error="the same state again is no change of it")
    assert await counts(bus) == {"done": 1, "failed": 1, "cancelled": 1}


async def test_a_plain_update_cannot_requeue_a_child_either(bus: Bus) -> None:
    hand = await Hand(bus).register()
    root = await bus.enqueue("t/root", {})
    (message,) = await hand.claim("t/root")
    await hand.finish(message, "delegated", follow_ups=[child("t/leaf")])
    (leaf,) = await hand.claim("t/leaf")
    await hand.finish(leaf, "failed", error="rejected: no")
    with pytest.raises(psycopg.Error, match=f"requeue the root, {root}"):
        await update(bus, leaf.id, status="queued")
    await update(bus, root, status="queued")
    assert (await row(bus, root))["attempts"] == 0


async def test_our_own_statements_never_pay_for_outsiders(bus: Bus, dsn: str) -> None:
    """Every transition that the core makes, and the outsiders' trigger is called by none of them."""
    await bus.db.execute(
        """
        CREATE TABLE calls (was text, now text);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN INSERT INTO calls VALUES (OLD.status, NEW.status); RETURN NULL; END $$;
        """
    )
    when = await bus.db.fetch_value(
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = 'agent_messages_outsider'"
    )
    await bus.db.execute(when.replace("agent_messages_outsider", "planted").rpartition("cogo.")[0] + "note()")
    await policy(bus, "t/poison", max_attempts=1)
    hand = await Hand(bus).register()
    ids = await bus.enqueue_many("t/echo", [{} for _ in range(5)])
    messages = await hand.claim("t/echo", 5)
    kinds_of = ("done", "failed", "retry", "released", "delegated")
    for message, kind in zip(messages, kinds_of, strict=True):
        error = "x: y" if kind in {"failed", "retry"} else None
        follow = [child("t/leaf")] if kind == "delegated" else []
        await hand.finish(message, kind, error=error, retry_ms=0 if error else None, follow_ups=follow)
    (leaf,) = await hand.claim("t/leaf")
    await hand.finish(leaf)  # settles its parent
    await bus.requeue(ids[1], actor="ops")
    for lane in ("t/poison", "t/echo"):
        await bus.enqueue(lane, {}, ttl_ms=1_000)
    await hand.claim("t/poison")
    await hand.claim("t/echo", 1)
    async with shifted(dsn, "30 s") as later:
        await reclaim(later)  # back into the lane, and poison
        await later.db.execute("SELECT cogo.expire(100)")
        await later.db.execute("SELECT cogo.give_back('hand', %s, '{}', 0)", (hand.epoch,))
    assert await bus.db.fetch("SELECT * FROM calls") == []
    await update(bus, ids[2], status="cancelled")
    assert await bus.db.fetch("SELECT * FROM calls") == [{"was": "queued", "now": "cancelled"}]
