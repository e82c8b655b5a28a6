"""Rules of what belongs together: a message and what was asked, its follow-ups, its events, its parent, its key."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

from chaos.history import OPERATORS, TERMINAL, History, Line, Step
from chaos.rules_claims import expired, parent_is
from chaos.verdict import Found, Violation

KEY_DOUBT_S = 0.2
"""A message that an operator put back this shortly before a claim began may not have been seen by it."""


# -- 11, 12, 13, 14: what belongs together -----------------------------------------------------


def enqueued_as_asked(history: History) -> Found:
    for uid, one in history.enqueues.items():
        rows = history.rows_by_uid.get(uid, [])
        if one.refused and rows:
            yield Violation(11, f"{uid} was rolled back or refused, and is there", rows[0]["id"])
        if len(rows) > 1 and (one.asked.get("key") or len(one.outcomes) == 1):
            yield Violation(11, f"{uid} is there {len(rows)} times", rows[1]["id"])
        for id in one.ids:
            row = history.rows.get(id)
            if row is not None and (what := _differs(row, one.asked)):
                yield Violation(11, f"it was enqueued as {uid} with another {what}", id)


def _differs(row: Line, asked: Line) -> str | None:
    there = {"payload": row["payload"], "lane": f"{row['service']}/{row['role']}", "tenant": row["tenant"]}
    return next((name for name, value in there.items() if value != asked[name]), None)


def follow_ups_exist_once(history: History) -> Found:
    """A payload of a follow-up names the parent, the fence under which it left, and its number there."""
    there: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for row in history.rows.values():
        if "left_under" in row["payload"]:
            there[row["payload"]["parent"], row["payload"]["left_under"]][row["payload"]["i"]] += 1
    for (parent, fence), numbers in there.items():
        for number, count in numbers.items():
            if count > 1:
                yield Violation(
                    12, f"its follow-up {number} under fence {fence} is there {count} times", parent
                )
    accepted: set[tuple[int, int]] = set()
    for end in [*history.ended("done"), *history.ended("waiting")]:
        if end.was == "claimed":
            accepted.add((end.id, end.fence_was))
            wanted = _follow_ups(history, end)
            found = there[end.id, end.fence_was]
            for number in range(wanted):
                if not found[number]:
                    yield Violation(12, f"finished under fence {end.fence_was}, follow-up {number} is missing", end.id)  # fmt: skip
    for parent, fence in there.keys() - accepted:
        if there[parent, fence]:
            yield Violation(
                12, f"a finish under fence {fence} was refused, yet its follow-up is there", parent
            )


def _follow_ups(history: History, end: Step) -> int:
    """How many a finish was to bring: one for a parent that waits, else what the message asked for."""
    row = history.rows.get(end.id)
    if end.now == "waiting":
        return 1
    return int(row["payload"].get("follow", 0)) if row is not None else 0


def ends_are_told(history: History) -> Found:
    told: Counter[tuple[int, str]] = Counter(
        (event["message_id"], event["kind"]) for event in history.tables["events"]
    )
    for status in ("done", "failed"):
        ends = Counter(step.id for step in history.ended(status))
        for id, row in history.rows.items():
            prefix = history.lane(row)["events"] or (row["service"] if status == "failed" else None)
            if prefix and told[id, f"{prefix}_{status}"] != ends[id]:
                yield Violation(13, f"{ends[id]} times {status}, {told[id, f'{prefix}_{status}']} events", id)
    rows = Counter(row["status"] for row in history.rows.values() if row["status"] in TERMINAL)
    counts = {count["status"]: count["n"] for count in history.tables["counts"]}
    for status in TERMINAL if history.tables["counts"] else ():
        if counts.get(status, 0) != rows[status]:
            yield Violation(13, f"{rows[status]} rows are {status}, the counters say {counts.get(status, 0)}")


def waiting_ends_with_its_child(history: History) -> Found:
    kids: dict[tuple[int, int], list[Line]] = defaultdict(list)
    for row in history.rows.values():
        if row.get("reply_to") is not None:
            kids[row["reply_to"], row["reply_fence"]].append(row)
    for id, steps in history.steps.items():
        for before, step in pairwise(steps):
            if before.now == "waiting" and (what := _ended_alone(history, before, step, kids)):
                yield Violation(14, what, id)
    for id, row in history.rows.items():
        mine = kids[id, row.get("awaits") or 0]
        if row["status"] == "waiting" and all(kid["status"] in TERMINAL for kid in mine):
            ends = [kid["status"] for kid in mine]
            yield Violation(14, f"it waits, and its child has ended: {ends}", id)


def _ended_alone(
    history: History, waited: Step, end: Step, kids: dict[tuple[int, int], list[Line]]
) -> str | None:
    """What is wrong with how a waiting message ended; None when its child ended so in that transaction."""
    if end.now == "waiting" or end.application in OPERATORS:
        return None
    if end.now == "failed" and expired(end):
        return None
    mine = {kid["id"] for kid in kids[end.id, waited.last.get("awaits") or 0]}
    for other in history.by_tx[end.tx]:
        if other.id in mine and other.now == end.now:
            same = end.last.get("snippet") == other.last.get("snippet")
            return None if same else f"it ended {end.now} with another result than its child"
    if end.now == "cancelled" and parent_is(history, end, "cancelled"):
        return None
    return f"it went from waiting to {end.now}, but its child did not"


def keys_are_in_order(history: History) -> Found:
    keyed: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for id, row in sorted(history.rows.items()):
        if row.get("ordering_key") is not None and id in history.steps:
            keyed[row["service"], row["role"], row["tenant"], row["ordering_key"]].append(id)
    for ids in keyed.values():
        for place, id in enumerate(ids):
            for claim in history.steps[id]:
                if claim.claims:
                    yield from _in_its_turn(history, claim, ids[:place], ids[place + 1 :])


def _in_its_turn(history: History, claim: Step, earlier: list[int], later: list[int]) -> Found:
    """An earlier one must have ended, unless it was only just put back; a later one must not be at work."""
    for other in earlier:
        before = [step for step in history.steps[other] if step.at < claim.at]
        last = before[-1].now if before else None
        just_back = bool(before) and before[-1].was in TERMINAL and before[-1].at > claim.began - KEY_DOUBT_S
        if last not in TERMINAL and last is not None and not just_back:
            yield Violation(16, f"claimed while message {other}, which comes before it, was {last}", claim.id)
    for other in later:
        before = [step for step in history.steps[other] if step.at < claim.at]
        if before and before[-1].now in {"claimed", "waiting"}:
            yield Violation(16, f"claimed while message {other} of its key was {before[-1].now}", claim.id)
