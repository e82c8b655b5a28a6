"""Make logged decisions again, out of the outcomes that each knew, and compare."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cogo import Database, errors

from . import allocate, queries
from .model import Inputs, Scored
from .sense import Mind

NEAR: Final = 1e-9
"""Sums that were made in another order differ in the last digits."""


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """How many decisions came out as they were logged, and which didn't."""

    decisions: int
    equal: int
    different: list[dict[str, Any]]


async def replay(db: Database, tenant: str, limit: int) -> Replayed:
    """Of a tenant's last decisions. Needs the outcomes that they knew: those are kept for 90 days."""
    decisions = await db.fetch(queries.LOGGED, {"tenant": tenant, "limit": limit})
    outcomes = await db.fetch(queries.LEARNT, {"tenant": tenant})
    mind, waiting = Mind(), outcomes
    different = []
    # Of two snapshots one sees all that the other sees: in the order of how much they saw, each adds to the last.
    for row in sorted(decisions, key=lambda row: (row["known"], row["id"])):
        seen = Snapshot(row["seen"])
        for outcome in (new := [one for one in waiting if seen.sees(one["xact"])]):
            mind.fold(outcome)
        if new:
            waiting = [one for one in waiting if not seen.sees(one["xact"])]
        if (why := _differs(row, mind)) is not None:
            different.append({"decision_id": row["id"], "why": why})
    return Replayed(decisions=len(decisions), equal=len(decisions) - len(different), different=different)


class Snapshot:
    """Postgres' `xmin:xmax:xip,…`: which transactions had ended."""

    def __init__(self, text: str) -> None:
        low, high, running = text.split(":")
        self._low, self._high = int(low), int(high)
        self._running = {int(one) for one in running.split(",") if one}

    def sees(self, xact: int) -> bool:
        return xact < self._low or (xact < self._high and xact not in self._running)


def _differs(row: dict[str, Any], mind: Mind) -> str | None:
    if mind.beliefs.n != row["known"]:
        return f"it knew {row['known']} outcomes, {mind.beliefs.n} are left"
    inputs = msgspec.json.decode(row["inputs"], type=Inputs)
    logged = msgspec.json.decode(row["candidates"], type=list[Scored])
    seed = allocate.drawn(row["id"], row["policy_version"])
    try:
        made = allocate.choose(inputs, mind.beliefs, seed)
    except errors.CogoError as error:
        return error.line()
    if made.index != row["chosen"]:
        return f"it chose {inputs.arms[row['chosen']].agent_id}, now {inputs.arms[made.index].agent_id}"
    for was, now in zip(logged, made.scores, strict=True):
        if (
            max(abs(was.p - now.p), abs(was.utility - now.utility)) > NEAR
            or was.excluded_by != now.excluded_by
        ):
            return f"{was.agent_id}: utility {was.utility!r}, p {was.p!r}; now {now.utility!r}, {now.p!r}"
    return None
