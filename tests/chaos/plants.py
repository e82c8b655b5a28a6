"""Bugs planted on purpose: the checker must turn each of these runs red, or its green means nothing.

A plant changes a function in the run's own database (and refuses when the text that it changes is not there any
more), or leaves something out of the processes. `rules` are those by which the run must be red; others may be
broken as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg

Conn = psycopg.Connection[Any]


def altered(conn: Conn, function: str, *changes: tuple[str, str]) -> None:
    """Replace parts of a function's text: (pattern, instead), each of which must be found."""
    sql = "SELECT oid, pg_get_functiondef(oid) FROM pg_proc WHERE oid = %s::regproc"
    row = conn.execute(sql, (function,)).fetchone()
    assert row is not None
    text = row[1]
    for pattern, instead in changes:
        text, count = re.subn(pattern, instead, text)
        assert count, f"{function} has nothing like {pattern!r} any more: plant this bug in another way"
    conn.execute(text.encode())
    after = conn.execute(sql, (function,)).fetchone()
    assert after is not None
    assert after[1] != row[1], f"{function} is what it was"


def no_fence_check(conn: Conn) -> None:
    """Whoever finishes a message is believed."""
    altered(conn, "cogo.finish", (r"m\.fence\s*=\s*u\.fence\s+AND\s+u\.fence\s*>\s*0", "true"))


def unguarded_reclaim(conn: Conn) -> None:
    """The reclaimer does not look at leases: it takes from the living."""
    altered(conn, "cogo.reclaim", (r"h\.lease_until\s*>\s*v_now", "false"))


def fence_outlives_retry(conn: Conn) -> None:
    """A message that is to be tried again keeps the fence of the attempt before."""
    keeps = "fence = CASE WHEN u.kind = 'retry' THEN m.fence ELSE 0 END"
    altered(conn, "cogo.finish", (r"fence\s*=\s*0(?=,\s*deadline_at)", keeps))


def nobody_settles(conn: Conn) -> None:
    """What waits is not told that its child has ended."""
    conn.execute("DROP TRIGGER agent_messages_settle ON public.agent_messages")


def zombies_publish(conn: Conn) -> None:
    """Follow-ups are written for refused outcomes too."""
    altered(conn, "cogo.finish", (r"IF v_ids IS NULL THEN RETURN; END IF;", ""),
            (r"cogo\.publish\(v_ids, v_fences", "cogo.publish(p_ids, p_fences"))  # fmt: skip
    altered(conn, "cogo.publish", (r"AND p\.status IN \('done', 'waiting'\)", ""))


def no_limits(conn: Conn) -> None:
    """Attempts, budgets and lanes without limits, tenants without walls, and an end that nobody is told of."""
    altered(conn, "cogo.max_attempts", (r"coalesce\(", "1000 + coalesce("))
    altered(conn, "cogo.draw", (r"h\.spent_cost_usd \+ p_cost <= h\.max_cost_usd", "true"))
    conn.execute("ALTER TABLE public.agent_messages DISABLE ROW LEVEL SECURITY")
    for body, trigger in (
        (
            "RETURN NULL;",
            "swallow BEFORE INSERT ON public.bus_events FOR EACH ROW WHEN (NEW.kind = 'evented_done')",
        ),
        (
            "NEW.limits := '{}'; RETURN NEW;",
            "unlimited BEFORE INSERT OR UPDATE ON cogo.bus_lanes FOR EACH ROW",
        ),
    ):
        function = f"chaos.{trigger.split()[0]}()"
        conn.execute(
            f"CREATE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} END$$".encode()
        )
        conn.execute(f"CREATE TRIGGER {trigger} EXECUTE FUNCTION {function}".encode())


def fences_come_again(conn: Conn) -> None:
    """After a crash the numbers of claims that were lost with it are given once more."""
    altered(conn, "cogo.revive", (r"\+ 1000000000", "+ 0"))


def no_order(conn: Conn) -> None:
    """Nobody looks at ordering keys."""
    conn.execute("DROP TRIGGER agent_messages_keyed ON public.agent_messages")
    altered(conn, "cogo.is_head", (r"RETURN (NOT FOUND|false)", "RETURN true"))


def nobody_looks_again(conn: Conn) -> None:
    """What came back before a message at work counts on the end of that one."""
    altered(conn, "cogo.open_door", (r"v_at_work THEN RETURN false", "v_at_work THEN RETURN true"))


class Plant(msgspec.Struct, frozen=True):
    """A bug, the scenario in which it must show, and the rules that it breaks."""

    scenario: str
    rules: frozenset[int]
    prepare: Callable[[Conn], None] | None = None
    options: tuple[str, ...] = ()
    """Arguments of process.py."""


PLANTS: dict[str, Plant] = {
    "no-fence-check": Plant("paused", frozenset({3}), no_fence_check),
    "no-sweep": Plant("silent", frozenset({9}), options=("--without", "sweep")),
    "unguarded-reclaim": Plant("calm", frozenset({4}), unguarded_reclaim),
    "fence-outlives-retry": Plant("calm", frozenset({3}), fence_outlives_retry),
    "nobody-settles": Plant("calm", frozenset({9, 14}), nobody_settles),
    "zombies-publish": Plant("unheard", frozenset({12}), zombies_publish),
    "late-commit-jumped": Plant("late", frozenset({9}), options=("--without", "looks")),
    "loose-effects": Plant("paused", frozenset({5}), options=("--loose-effects",)),
    "fences-come-again": Plant("crashed", frozenset({3}), fences_come_again),
    "nobody-looks-again": Plant("behind", frozenset({9}), nobody_looks_again),
    "no-order": Plant("calm", frozenset({16}), no_order),
    "no-limits": Plant("calm", frozenset({6, 7, 8, 13, 17}), no_limits),
}
