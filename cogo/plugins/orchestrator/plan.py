"""Plan: what a request needs, before anybody is chosen for it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from cogo import Assignment, Budget

from .model import Arm, Objective

Risk = Literal["low", "medium", "high"]
TTL_MS: Final = 60_000
"""Time to live of a request, unless its lane's own timeout is longer."""
BUDGET: Final = Budget(maxCostUsd=0.10, maxTokens=200_000)
MARGIN: Final = 1.5
"""Times what is expected has to be left for a run to be paid."""
Label = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
FEATURES_MAX: Final = 64
ARMS_MAX: Final = 64


class Inline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A candidate that the caller describes, instead of the lanes that answer the intent."""

    agent_id: Label
    version: Label | None = None
    model: Label | None = None
    list_price_usd: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None
    """USD of a usual task; what is really paid is learnt from outcomes."""
    queue_depth: Annotated[int, msgspec.Meta(ge=0, le=10**9)] | None = None


class Constraints(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which candidates may be chosen: agents by `agent_id`, models by name. What is empty allows every one."""

    allow: Annotated[tuple[Label, ...], msgspec.Meta(max_length=ARMS_MAX)] = ()
    deny: Annotated[tuple[Label, ...], msgspec.Meta(max_length=ARMS_MAX)] = ()
    models: Annotated[tuple[Label, ...], msgspec.Meta(max_length=ARMS_MAX)] = ()

    def against(self, arm: Arm) -> str | None:
        """Why the arm may not be chosen."""
        if arm.agent_id in self.deny:
            return "constraints: denied"
        if self.allow and arm.agent_id not in self.allow:
            return "constraints: not among those allowed"
        if self.models and arm.model not in self.models:
            return f"constraints: the model is none of {', '.join(self.models)}"
        return None

    def applied(self, arms: list[Arm]) -> list[Arm]:
        """The arms, with those excluded that may not be chosen."""
        return [
            msgspec.structs.replace(arm, excluded_by=arm.excluded_by or self.against(arm)) for arm in arms
        ]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be decided."""

    tenant: str
    intent: str
    payload: dict[str, Any] = {}
    features: tuple[float, ...] = ()
    model: str | None = None
    candidates: tuple[Inline, ...] = ()
    objective: Objective = Objective()
    risk: Risk = "low"
    constraints: Constraints = Constraints()
    deadline_ms: float | None = None
    """Who is as likely as not to take longer isn't chosen."""
    budget: Budget = BUDGET
    ttl_ms: int | None = None
    """None: TTL_MS, or the run time that the lane allows one attempt if that is longer."""
    now_ms: int | None = None
    """The caller's clock, in simulations."""

    def inline(self) -> list[Arm]:
        """The caller's candidates as arms."""
        return [
            Arm(
                agent_id=one.agent_id, version=one.version, model=one.model or self.model,
                list_price_usd=one.list_price_usd, depth=one.queue_depth,
            )
            for one in self.candidates
        ]  # fmt: skip


def assignment(request: Request, arm: Arm, *, max_cost_usd: float | None) -> Assignment:
    """What binds whoever does the work."""
    budget = msgspec.structs.replace(request.budget, maxCostUsd=max_cost_usd)
    return Assignment(
        agent_id=arm.agent_id, version=arm.version, model=arm.model, budget=budget,
        ttl_ms=request.ttl_ms or max(TTL_MS, arm.timeout_ms or 0),
    )  # fmt: skip
