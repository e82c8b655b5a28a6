"""Rules of single messages: none is lost, ends stay, fences guard, claims don't overlap."""

from __future__ import annotations

from itertools import pairwise

from chaos.history import OPERATORS, OUTSIDER, TERMINAL, History, Step
from chaos.verdict import Found, Violation

LEASE_DOUBT_S = 0.2
"""A beat that was written this shortly before a reclaim began may not have been seen by it: neither was wrong."""


# -- 0, 1, 2: nothing is lost, and what has ended stays so ---------------------------------------


def record_is_whole(history: History) -> Found:
    """Each step begins where the last one ended, and the last one is what the table holds."""
    for id, steps in history.steps.items():
        if steps[0].was is not None:
            yield Violation(0, f"its history begins as {steps[0].was}", id)
        for before, step in pairwise(steps):
            if step.was != before.now:
                yield Violation(0, f"{before.now} became {step.was} without a record", id)
        row = history.rows.get(id)
        if row is not None and row["status"] != steps[-1].now:
            yield Violation(0, f"recorded as {steps[-1].now}, stored as {row['status']}", id)
    for id in history.rows.keys() - history.steps.keys():
        yield Violation(0, "it is in the table, but nothing recorded it", id)


def nothing_is_lost(history: History) -> Found:
    for one in history.enqueues.values():
        for id in one.ids:
            row = history.rows.get(id)
            if row is None:
                yield Violation(1, f"acknowledged as {one.uid}, and not there", id)
            elif row["status"] not in TERMINAL:
                yield Violation(1, f"acknowledged as {one.uid}, and still {row['status']}", id)
        if len(one.ids) > 1:
            yield Violation(1, f"{one.uid} was acknowledged under {sorted(one.ids)}", min(one.ids))
    for id, steps in history.steps.items():
        if any(step.now is None for step in steps):
            yield Violation(1, "it was deleted", id)


def ends_are_final(history: History) -> Found:
    for id, steps in history.steps.items():
        for step in steps:
            if step.was not in TERMINAL:
                continue
            requeued = step.now == "queued" and step.application in OPERATORS
            if step.now != step.was and not requeued:
                yield Violation(2, f"{step.was} became {step.now} by {step.application}", id)
            elif step.now == step.was and step.first.get("snippet_was") != step.last.get("snippet"):
                yield Violation(2, f"the result of what was {step.was} changed", id)
    for answer in history.by_type["op"]:
        if answer["f"] == "result" and answer["stage"] == "ok" and answer["status"] in TERMINAL:
            row, id = history.rows.get(answer["id"]), answer["id"]
            if row is not None and row["status"] != answer["status"] and not history.requeues(id):
                yield Violation(2, f"a client was told {answer['status']}, now it is {row['status']}", id)


# -- 3, 4: claims and fences -------------------------------------------------------------------


def fences_guard(history: History) -> Found:
    for id, steps in history.steps.items():
        newest = 0
        for step in steps:
            if (step.now == "claimed") != (step.fence > 0):
                yield Violation(3, f"{step.now} with fence {step.fence}", id)
            if step.claims and step.fence <= newest:
                yield Violation(3, f"claimed with fence {step.fence} after {newest}", id)
            if step.ends_claim:
                yield from _written_by_its_claim(history, step, newest)
            elif step.was == "queued" and step.now in {"done", "waiting"}:
                yield Violation(3, f"{step.application} made it {step.now} without a claim", id)
            newest = max(newest, step.fence)
    for fence, starts in history.begun.items():
        if len(starts) > 1:
            who = [f"message {start['id']} in {start['who']}" for start in starts]
            yield Violation(
                3, f"fence {fence} was issued {len(starts)} times: {', '.join(who)}", starts[-1]["id"]
            )


def _written_by_its_claim(history: History, step: Step, newest: int) -> Found:
    presented = step.presented
    if presented is not None and presented != newest:
        yield Violation(3, f"{step.now} was written under fence {presented}, the newest is {newest}", step.id)
    elif (
        step.application in history.holders
        and step.application != step.by_was
        and step.now in {"done", "waiting"}
    ):
        yield Violation(3, f"{step.application} ended as {step.now} what {step.by_was} had claimed", step.id)
    elif step.application == OUTSIDER and not (step.by_was or "").startswith("outsider"):
        yield Violation(3, f"an outsider ended what {step.by_was} had claimed", step.id)


def claims_do_not_overlap(history: History) -> Found:
    for id, steps in history.steps.items():
        for step in steps:
            if step.was == "claimed" and step.claims:
                yield Violation(4, f"fence {step.fence} was issued while {step.fence_was} stood", id)
            elif step.now == "claimed" and step.was not in {"queued", "claimed"}:
                yield Violation(4, f"claimed while {step.was}", id)
            elif step.ends_claim and (why := _unjustified(history, step)):
                yield Violation(4, f"{step.application} made it {step.now}, {why}", id)


def _unjustified(history: History, step: Step) -> str | None:
    """Why nobody but its holder may have ended this claim; None when it was right to."""
    reclaimed = "reclaim" in step.doors
    if "give_back" in step.doors:
        started = [
            line for line in history.starts.get((step.id, step.fence_was), ()) if line["w"] < step.began
        ]
        return f"though its handler runs in {step.by_was}" if started else None
    if step.application not in history.holders or (step.application == step.by_was and not reclaimed):
        return None
    if step.now == "cancelled":
        return None if parent_is(history, step, "cancelled") else "though nobody cancelled it"
    was = step.first
    if expired(step):
        return None
    if was.get("deadline_was") is not None and was["deadline_was"] <= step.began:
        return None
    if was.get("epoch_was") is None:
        held_s = step.began - (was.get("claimed_at_was") or 0.0)
        return None if held_s >= history.meta["reclaim_after_s"] else f"held for only {held_s:.1f} s"
    return _lease_stood(history, step)


def expired(step: Step) -> bool:
    """Its time to live had run out."""
    expires_at = step.first.get("expires_at")
    return expires_at is not None and expires_at <= step.began


def _lease_stood(history: History, step: Step) -> str | None:
    """Whether it stood, by all that the one who ended the claim can have known."""
    known = [line for line in history.leases.get(step.first["epoch_was"], ()) if line["at"] <= step.at]
    sure = [line for line in known if line["at"] <= step.began - LEASE_DOUBT_S]
    if not sure or any(line["lease_until"] <= step.began for line in (sure[-1], *known[len(sure) :])):
        return None
    return f"though the lease of {step.by_was} stood for another {sure[-1]['lease_until'] - step.began:.1f} s"


def parent_is(history: History, step: Step, status: str) -> bool:
    """The message that waited for this one had come to that state."""
    parent = history.steps.get(step.last.get("reply_to") or 0, [])
    return any(other.now == status and other.at <= step.at for other in parent)
