"""Observe: how runs ended and what people, gates and judges say of them. Late and partial is allowed; nothing counts twice.

What runs on the bus is observed by the database itself, when the root message ends (sql/functions/65_learning.sql).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from cogo import Database, errors

from . import queries

WEIGHTS: Final = {"judge": 0.5, "implicit": 0.25}
"""How much a verdict counts that comes from a model, or is read from what somebody did; every other one counts 1."""
RUN: Final = "run"
"""The source of how a run ended, in the table of outcomes."""
Source = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]{0,62}$(?!\n)")]


class Feedback(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What came of a decision: how its run ended (`ok`, `cost_usd`, `latency_ms`), a verdict (`reward`), or both.

    A run of a decision (and attempt) is taken once; of verdicts, one for each source and idempotency key.
    """

    decision_id: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
    attempt: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1
    ok: bool | None = None
    error_class: Literal["callee", "caller", "timeout", "budget", "infra"] | None = None
    cost_usd: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None
    latency_ms: Annotated[float, msgspec.Meta(ge=0, le=1e10)] | None = None
    reward: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    source: Source = "caller"
    """Whose verdict: `build_test`, `human`, `judge`, `implicit`, or a name of the caller's own."""
    comment: Annotated[str, msgspec.Meta(max_length=2_000)] | None = None
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] = ""
    now_ms: Annotated[int, msgspec.Meta(ge=0, le=2**52)] | None = None


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What was new in the feedback; false: it had come before, or wasn't there."""

    decision_id: int
    run: bool
    verdict: bool


async def observe(db: Database, feedback: Feedback, tenants: list[str] | None) -> Taken:
    """Take it down. Raises NotFound, Invalid."""
    if feedback.ok is None and feedback.reward is None:
        if feedback.cost_usd is not None or feedback.latency_ms is not None:
            raise errors.Invalid("a cost or a time is one of a run: say whether it was ok - at `$.ok`")
        raise errors.Invalid("feedback has `ok` or `reward`, or both - at `$`")
    if feedback.source == RUN:
        raise errors.Invalid("`run` isn't whose verdict it is - at `$.source`")
    if feedback.ok and feedback.error_class:
        raise errors.Invalid("a run that is ok has no class of error - at `$.error_class`")
    row = await db.fetch_one(queries.FEEDBACK, _params(feedback, tenants))
    if row is None:
        raise errors.NotFound("there is no such decision")
    if row["old"]:
        raise errors.Gone(f"decision {feedback.decision_id} was made more than 30 days ago")
    if not row["learnt"]:
        raise errors.NotFound(f"decision {feedback.decision_id} is from before outcomes were learnt from")
    return Taken(decision_id=row["id"], run=row["run"], verdict=row["verdict"])


def _params(feedback: Feedback, tenants: list[str] | None) -> dict[str, Any]:
    ok = feedback.ok
    return {
        "decision": feedback.decision_id, "tenants": tenants, "now_ms": feedback.now_ms, "attempt": feedback.attempt,
        "ok": ok, "error_class": feedback.error_class or ("callee" if ok is False else None),
        "cost_usd": feedback.cost_usd, "latency_ms": feedback.latency_ms,
        # The verdict on a run that failed says nothing that the failure doesn't.
        "reward": None if ok is False else feedback.reward, "source": feedback.source,
        "weight": WEIGHTS.get(feedback.source, 1.0), "key": feedback.idempotency_key, "comment": feedback.comment,
    }  # fmt: skip
