"""Proves the claim: who gets what, in which order, once, and what is never handed out."""

from __future__ import annotations

import anyio
from hands import Hand, insert, policy, row, shifted, update

from cogo.core.bus import Bus
from cogo.core.model import Lane


async def test_a_batch_is_claimed_with_everything_a_holder_needs(bus: Bus) -> None:
    hand = await Hand(bus, "box-1").register()
    ids = await bus.enqueue_many("t/echo@acme", [{"n": n} for n in range(7)])
    messages = await hand.claim("t/echo", 5, timeout_ms=30_000)
    assert [message.id for message in messages] == ids[:5]
    assert [message.payload for message in messages] == [b'{"n": %d}' % n for n in range(5)]
    assert {str(message.key) for message in messages} == {"t/echo/0@acme"}
    assert len({message.fence for message in messages}) == 5
    assert all(29 < (message.runtime_s or 0) <= 30 for message in messages)
    assert all(message.expires_in_s is None for message in messages)
    found = await row(bus, ids[0])
    assert (found["status"], found["claimed_by"], found["holder_epoch"]) == ("claimed", "box-1", hand.epoch)
    assert (found["attempts"], found["fence"], found["retry_at"]) == (1, messages[0].fence, None)
    assert found["claimed_at"] < found["deadline_at"]
    assert [message.id for message in await hand.claim("t/echo", 5)] == ids[5:]
    assert await hand.claim("t/echo", 5) == []


async def test_lanes_and_shards_are_apart(bus: Bus) -> None:
    hand = await Hand(bus).register()
    here = await bus.enqueue("t/echo/3", {})
    for other in ("t/echo/0", "t/other/3", "u/echo/3"):
        await bus.enqueue(other, {})
    assert [message.id for message in await hand.claim("t/echo/3", 10)] == [here]


async def test_the_lower_priority_number_goes_first(bus: Bus) -> None:
    """Across claims and within one: a holder handles them in the order in which they come."""
    hand = await Hand(bus).register()
    for _ in range(2):
        ids = [await bus.enqueue("t/echo", {}, priority=priority) for priority in (2, 3, 0, 2, 1)]
        in_order = [ids[2], ids[4], ids[0], ids[3], ids[1]]
        assert [message.id for message in await hand.claim("t/echo", 2)] == in_order[:2]
        assert [message.id for message in await hand.claim("t/echo", 9)] == in_order[2:]
    ids = [await bus.enqueue("t/echo", {}, priority=priority) for priority in (3, 0, 1)]
    assert [message.id for message in await hand.claim("t/echo", 9)] == [ids[1], ids[2], ids[0]]


async def test_a_requeued_message_goes_behind_newer_ones(bus: Bus) -> None:
    """Within a claim too, though its id is older."""
    hand = await Hand(bus).register()
    ids = [await bus.enqueue("t/echo", {}) for _ in range(3)]
    (first,) = await hand.claim("t/echo", 1)
    await hand.finish(first, "released")
    assert [message.id for message in await hand.claim("t/echo", 9)] == [*ids[1:], ids[0]]


async def test_many_claimers_never_share_a_message(bus: Bus) -> None:
    """Eight sessions claim at once until nothing is left; each message goes to exactly one of them."""
    ids = set(await bus.enqueue_many("t/echo", [{} for _ in range(600)]))
    hands = [await Hand(bus, f"box-{n}").register() for n in range(8)]
    claimed: list[int] = []

    async def take_all(hand: Hand) -> None:
        while messages := await hand.claim("t/echo", 17):
            claimed.extend(message.id for message in messages)

    async with anyio.create_task_group() as tasks:
        for hand in hands:
            tasks.start_soon(take_all, hand)
    # A short answer is legal while others hold the locks, so some may be left; but never two of one.
    claimed += [message.id for message in await hands[0].claim("t/echo", 600)]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) == ids
    attempts = await bus.db.fetch("SELECT DISTINCT attempts, status FROM public.agent_messages")
    assert attempts == [{"attempts": 1, "status": "claimed"}]


async def test_a_due_retry_goes_first_but_takes_half_a_batch_at_most(bus: Bus) -> None:
    hand = await Hand(bus).register()
    old = await bus.enqueue_many("t/echo", [{} for _ in range(6)])
    for message in await hand.claim("t/echo", 6):
        assert await hand.finish(message, "retry", error="x: y", retry_ms=0) == "queued"
    fresh = await bus.enqueue_many("t/echo", [{} for _ in range(6)])
    first = {message.id for message in await hand.claim("t/echo", 4)}
    assert len(first & set(old)) == 2
    assert len(first & set(fresh)) == 2
    rest = [message.id for message in await hand.claim("t/echo", 100)]
    assert sorted([*first, *rest]) == sorted(old + fresh)


async def test_a_retry_waits_for_its_time_and_the_empty_claim_says_how_long(bus: Bus, dsn: str) -> None:
    hand = await Hand(bus).register()
    id = await bus.enqueue("t/echo", {})
    (message,) = await hand.claim("t/echo")
    await hand.finish(message, "retry", error="x: y", retry_ms=90_000)
    claimed = await bus.claim(message.key.lane, 5, holder="hand", epoch=hand.epoch, timeout_ms=1_000)
    found, due_s = claimed.messages, claimed.due_s
    assert found == []
    assert due_s is not None
    assert 80 < due_s <= 90
    async with shifted(dsn, "91 s") as later:
        (again,) = await Hand(later, "hand").claim("t/echo")
        assert (again.id, again.attempts) == (id, 2)
        assert (await row(bus, id))["retry_at"] is None


async def test_an_empty_lane_has_no_due_time(bus: Bus) -> None:
    await insert(bus, "t/other")
    await insert(bus, "t/echo", status="done")
    lane = Lane("t", "echo", 0)
    claimed = await bus.claim(lane, 5, holder="hand", epoch=1, timeout_ms=1_000)
    assert (claimed.messages, claimed.due_s) == ([], None)


async def test_what_outlived_its_ttl_is_not_handed_out(bus: Bus, dsn: str) -> None:
    id = await bus.enqueue("t/echo", {}, ttl_ms=60_000)
    async with shifted(dsn, "59 s") as before, shifted(dsn, "61 s") as after:
        assert await Hand(after).claim("t/echo") == []
        (message,) = await Hand(before).claim("t/echo", timeout_ms=600_000)
        assert message.id == id
        # The run time of an attempt never reaches past the time to live.
        assert 0 < (message.runtime_s or 0) <= 1
        assert message.runtime_s == message.expires_in_s


async def test_a_paused_lane_hands_nothing_out(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await policy(bus, "t/echo", paused_at="now")
    await bus.enqueue("t/echo", {})
    assert await hand.claim("t/echo") == []
    await bus.db.execute("UPDATE cogo.bus_lanes SET paused_at = NULL")
    assert len(await hand.claim("t/echo")) == 1


async def test_the_lane_decides_over_run_time_and_attempts(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await policy(bus, "t/echo", timeout_ms=5_000, max_attempts=2)
    await bus.enqueue("t/echo", {})
    (message,) = await hand.claim("t/echo", timeout_ms=600_000)
    assert 4 < (message.runtime_s or 0) <= 5
    assert message.max_attempts == 2


async def test_a_cancelled_or_foreign_message_is_not_claimed_again(bus: Bus) -> None:
    hand = await Hand(bus).register()
    cancelled = await bus.enqueue("t/echo", {})
    foreign = await bus.enqueue("t/echo", {})
    await bus.cancel(cancelled, actor="test")
    await update(bus, foreign, status="claimed", claimed_by="somebody")
    assert await hand.claim("t/echo") == []


async def test_a_locked_row_holds_up_nobody(bus: Bus) -> None:
    hand = await Hand(bus).register()
    locked, free = await bus.enqueue("t/echo", {}), await bus.enqueue("t/echo", {})
    async with bus.db.transaction() as conn:
        await conn.execute("SELECT FROM public.agent_messages WHERE id = %s FOR UPDATE", (locked,))
        assert [message.id for message in await hand.claim("t/echo")] == [free]
    assert [message.id for message in await hand.claim("t/echo")] == [locked]


async def test_fences_leap_after_a_crash_of_postgres(bus: Bus) -> None:
    """A claim commits asynchronously: the fences of lost ones must not be given again.

    bus_alive is UNLOGGED, so a crash empties it; here the test does.
    """
    hand = await Hand(bus).register()
    await bus.enqueue_many("t/echo", [{}] * 3)
    (before,) = await hand.claim("t/echo", 1)
    await bus.db.execute("TRUNCATE cogo.bus_alive")
    (after,) = await hand.claim("t/echo", 1)
    (then,) = await hand.claim("t/echo", 1)
    assert after.fence > before.fence + 1_000_000_000
    assert then.fence == after.fence + 1, "once"
    assert await hand.finish(before) == "done"


async def test_only_the_claim_commits_asynchronously(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await bus.enqueue("t/echo", {})
    async with bus.db.transaction() as conn:
        sql = "SELECT * FROM cogo.claim('t', 'echo', 0, 1, 'hand', %s, 60000, '{0,0,0,0}')"
        await conn.execute(sql, (hand.epoch,))
        (row,) = await (await conn.execute("SHOW synchronous_commit")).fetchall()
        assert row == {"synchronous_commit": "off"}
    assert await bus.db.fetch_value("SHOW synchronous_commit") == "on"
    persistence = "SELECT relpersistence FROM pg_class WHERE oid = 'cogo.bus_alive'::regclass"
    assert await bus.db.fetch_value(persistence) == "u"
