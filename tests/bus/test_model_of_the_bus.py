"""Proves that the bus behaves like a model of a page, under any order of what clients and holders do."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import msgspec
import psycopg
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

MAX_ATTEMPTS = 3
FINAL = {"done", "failed", "cancelled"}
CLAIM = "SELECT id, fence FROM cogo.claim('t', 'echo', 0, %s, 'hand', %s, 3600000) WHERE id IS NOT NULL"
FINISH = """
SELECT id, status FROM cogo.finish(ARRAY[%(id)s]::bigint[], ARRAY[%(fence)s]::bigint[], ARRAY[%(kind)s],
  ARRAY[%(snippet)s]::text[], ARRAY[null]::text[], ARRAY[%(error)s]::text[], ARRAY[0]::bigint[],
  ARRAY[null]::text[], %(follow)s::jsonb, '[]')
"""


class One(msgspec.Struct):
    """What the model knows of a message."""

    id: int
    parent: int | None = None
    state: str = "queued"
    attempts: int = 0
    fence: int = 0
    awaits: int = 0
    """The fence with which it went to wait; its child carries the same number."""
    reply_fence: int = 0
    answer: str | None = None


class Machine(RuleBasedStateMachine):
    """Each rule does one thing to the database and the same to the model; then both are compared."""

    dsn = ""
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.conn = psycopg.connect(self.dsn, autocommit=True)
        self.model: dict[int, One] = {}
        self.ends: dict[str, int] = dict.fromkeys(FINAL, 0)

    @initialize()
    def start(self) -> None:
        self.conn.execute(
            "TRUNCATE public.agent_messages, public.bus_events, cogo.bus_stats, cogo.bus_cancels, cogo.bus_lanes"
        )
        self.conn.execute(
            "INSERT INTO cogo.bus_lanes (service, role, max_attempts) VALUES ('t', 'echo', %s)",
            (MAX_ATTEMPTS,),
        )
        row = self.conn.execute(
            "SELECT epoch FROM cogo.register_holder('hand', '{}', '{}', '{}', 3600000)"
        ).fetchone()
        assert row is not None
        self.epoch: int = row[0]

    def teardown(self) -> None:
        self.conn.close()

    # -- the model -----------------------------------------------------------------------------

    def end(self, one: One, state: str, answer: str | None = None) -> None:
        """A message ends, and with it whoever waits for exactly it."""
        one.state, one.fence, one.awaits, one.answer = state, 0, 0, answer
        self.ends[state] += 1
        parent = self.model.get(one.parent or 0)
        if parent is not None and parent.state == "waiting" and parent.awaits == one.reply_fence:
            self.end(parent, state, answer)

    def cancel_children(self, parent: int, fence: int) -> None:
        for one in list(self.model.values()):
            if one.parent == parent and one.reply_fence == fence and one.state not in FINAL:
                awaited = one.awaits
                self.end(one, "cancelled")
                self.cancel_children(one.id, awaited)

    # -- the rules -----------------------------------------------------------------------------

    @rule(count=st.integers(1, 3))
    def enqueue(self, count: int) -> None:
        for _ in range(count):
            row = self.conn.execute("SELECT id FROM cogo.enqueue('t', 'echo', 0, 'acme', '{}')").fetchone()
            assert row is not None
            self.model[row[0]] = One(row[0])

    @rule(target=claims, limit=st.integers(1, 3))
    def claim(self, limit: int) -> Any:
        rows = self.conn.execute(CLAIM, (limit, self.epoch)).fetchall()
        ready = [one for one in self.model.values() if one.state == "queued"]
        assert bool(rows) is bool(ready), "what is there is handed out"
        assert len(rows) <= limit
        for id, fence in rows:
            one = self.model[id]
            assert one.state == "queued"
            one.state, one.fence, one.attempts = "claimed", fence, one.attempts + 1
        return multiple(*rows)

    @rule(claim=claims, kind=st.sampled_from(["done", "failed", "retry", "released", "delegated"]))
    def finish(self, claim: tuple[int, int], kind: str) -> None:
        """With a claim that may be stale by now: then nothing at all may happen."""
        id, fence = claim
        child = {"parent": id, "fence": fence, "service": "t", "role": "echo", "shard": 0, "tenant": "acme",
                 "payload": {}, "priority": 2, "delegate": True}  # fmt: skip
        rows = self.conn.execute(
            FINISH,
            {
                "id": id,
                "fence": fence,
                "kind": kind,
                "snippet": f'"{fence}"' if kind == "done" else None,
                "error": "x: y" if kind in {"failed", "retry"} else None,
                "follow": msgspec.json.encode([child] if kind == "delegated" else []).decode(),
            },
        ).fetchall()
        one = self.model[id]
        if one.fence != fence:
            assert rows == []
            return
        if kind == "done":
            self.end(one, "done", f'"{fence}"')
        elif kind == "failed" or (kind == "retry" and one.attempts >= MAX_ATTEMPTS):
            self.end(one, "failed")
        elif kind == "delegated":
            one.state, one.fence, one.awaits = "waiting", 0, fence
            row = self.conn.execute(
                "SELECT id FROM public.agent_messages WHERE reply_to = %s AND reply_fence = %s", (id, fence)
            ).fetchone()
            assert row is not None
            self.model[row[0]] = One(row[0], parent=id, reply_fence=fence)
        else:
            one.state, one.fence, one.attempts = "queued", 0, one.attempts - (kind == "released")
        assert len(rows) == 1

    @rule(claim=consumes(claims))
    def lose_the_holder(self, claim: tuple[int, int]) -> None:
        """The holder of this claim dies; everything that it held is put back, or is poison."""
        self.conn.execute(
            "UPDATE cogo.bus_holders SET lease_until = now() - interval '1 s' WHERE epoch = %s", (self.epoch,)
        )
        rows = dict(self.conn.execute("SELECT id, status FROM cogo.reclaim(1000, 0, 900000)").fetchall())
        held = [one for one in self.model.values() if one.state == "claimed"]
        assert rows.keys() == {one.id for one in held}
        for one in held:
            if one.attempts >= MAX_ATTEMPTS:
                self.end(one, "failed")
            else:
                one.state, one.fence = "queued", 0
        row = self.conn.execute(
            "SELECT epoch FROM cogo.register_holder('hand', '{}', '{}', '{}', 3600000)"
        ).fetchone()
        assert row is not None
        self.epoch = row[0]

    @rule(choice=st.randoms(use_true_random=False), plain=st.booleans())
    def cancel(self, choice: Any, plain: bool) -> None:
        living = [one for one in self.model.values() if one.state not in FINAL]
        if not living:
            return
        one = choice.choice(living)
        if plain:
            self.conn.execute(
                "UPDATE public.agent_messages SET status = 'cancelled' WHERE id = %s", (one.id,)
            )
        else:
            self.conn.execute("SELECT cogo.cancel(%s, 'test', '')", (one.id,))
        awaited = one.awaits
        self.end(one, "cancelled")
        self.cancel_children(one.id, awaited)
        while self.conn.execute("SELECT cogo.cascade_cancels()").fetchone() != (0,):
            pass

    @rule(choice=st.randoms(use_true_random=False))
    def requeue(self, choice: Any) -> None:
        ended = [
            one for one in self.model.values() if one.state in {"failed", "cancelled"} and one.parent is None
        ]
        if not ended:
            return
        one = choice.choice(ended)
        self.ends[one.state] -= 1
        self.conn.execute("SELECT cogo.requeue(%s, 'test', '')", (one.id,))
        one.state, one.attempts, one.answer = "queued", 0, None

    # -- what must always hold -----------------------------------------------------------------

    @invariant()
    def the_table_is_the_model(self) -> None:
        rows = self.conn.execute(
            "SELECT id, reply_to, status, attempts, fence, coalesce(awaits, 0), coalesce(reply_fence, 0), result_snippet"
            " FROM public.agent_messages ORDER BY id"
        ).fetchall()
        assert [One(*row) for row in rows] == [self.model[id] for id in sorted(self.model)]

    @invariant()
    def the_counters_are_the_truth(self) -> None:
        rows = self.conn.execute(
            "SELECT status, sum(n)::int FROM cogo.bus_counts WHERE status <> 'retry' GROUP BY 1"
        ).fetchall()
        assert {status: n for status, n in rows if n} == {status: n for status, n in self.ends.items() if n}

    @invariant()
    def times_fit_the_state(self) -> None:
        wrong = self.conn.execute(
            "SELECT id, status FROM public.agent_messages WHERE (fence > 0) <> (status = 'claimed')"
            " OR (done_at IS NOT NULL) <> (status IN ('done', 'failed', 'cancelled'))"
            " OR (deadline_at IS NOT NULL) <> (status = 'claimed') OR (awaits IS NOT NULL) <> (status = 'waiting')"
        ).fetchall()
        assert wrong == []


def test_the_bus_is_its_model(dsn: str) -> None:
    Machine.dsn = dsn
    run = Machine.TestCase
    run.settings = settings(
        max_examples=40, stateful_step_count=30, deadline=None, derandomize=True, print_blob=False,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    run("runTest").runTest()
