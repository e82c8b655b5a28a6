"""A plan of several steps: what each may cost and how long it may take, before any of them is decided.

The money is shared by what the steps are expected to cost, less a part that is held back for repairs, so that no step
can eat what later ones need. The time is shared along the critical path: on no path do the steps get more than all.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Final

import msgspec

from cogo import Budget, errors

from . import plan

HOLD_BACK: Final = 0.2
STEPS_MAX: Final = 64
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$(?!\n)")]


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of a workflow; it begins when its `deps` have ended."""

    name: Name
    intent: Name
    deps: Annotated[tuple[Name, ...], msgspec.Meta(max_length=STEPS_MAX)] = ()
    features: Annotated[tuple[float, ...], msgspec.Meta(max_length=plan.FEATURES_MAX)] = ()
    candidates: Annotated[tuple[plan.Inline, ...], msgspec.Meta(max_length=plan.ARMS_MAX)] = ()
    risk: plan.Risk = "low"


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Of the arm that is best for a step as things stand."""

    agent_id: str
    version: str | None
    model: str | None
    lane: str | None
    cost_usd: float
    latency_ms: float


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A step with its share; `deadline_ms` counts from the workflow's begin."""

    name: str
    intent: str
    deps: tuple[str, ...]
    risk: str
    expected: Expected
    budget: Budget
    ttl_ms: int
    deadline_ms: int
    critical: bool


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Steps in an order in which they can run; what is expected of the whole; and what is held back."""

    steps: list[Planned]
    critical_path: list[str]
    expected_cost_usd: float
    expected_ms: float
    held_back_usd: float | None
    feasible: bool
    """What is expected fits into the budget and the time."""


def ordered(steps: list[Step]) -> list[Step]:
    """So that each comes after what it depends on. Raises Invalid."""
    by_name = {step.name: step for step in steps}
    if len(by_name) < len(steps):
        raise errors.Invalid("two steps have the same name - at `$.steps`")
    for step in steps:
        if missing := sorted(set(step.deps) - set(by_name)):
            raise errors.Invalid(
                f"step {step.name!r} depends on {missing[0]!r}, which isn't a step - at `$.steps`"
            )
    try:
        return [by_name[name] for name in TopologicalSorter({s.name: s.deps for s in steps}).static_order()]
    except CycleError as error:
        raise errors.Invalid(
            f"steps wait for each other: {' -> '.join(error.args[1])} - at `$.steps`"
        ) from None


def shared(
    steps: list[Step], expected: dict[str, Expected], budget: Budget, ttl_ms: int, hold_back: float
) -> Plan:
    """Share money and time among steps, which are in order."""
    ends: dict[str, float] = {}
    for step in steps:
        ends[step.name] = max((ends[dep] for dep in step.deps), default=0.0) + max(
            expected[step.name].latency_ms, 1.0
        )
    path = _critical(steps, ends)
    total_ms, total_usd = max(ends.values()), sum(one.cost_usd for one in expected.values())
    scale = ttl_ms / total_ms
    held = None if budget.maxCostUsd is None else budget.maxCostUsd * hold_back
    planned = []
    for step in steps:
        one = expected[step.name]
        share = one.cost_usd / total_usd if total_usd > 0 else 1 / len(steps)
        planned.append(Planned(
            name=step.name, intent=step.intent, deps=step.deps, risk=step.risk, expected=one,
            budget=Budget(
                maxCostUsd=None if budget.maxCostUsd is None or held is None else (budget.maxCostUsd - held) * share,
                maxTokens=None if budget.maxTokens is None else int(budget.maxTokens * (1 - hold_back) * share),
            ),
            ttl_ms=max(int(max(one.latency_ms, 1.0) * scale), 1), deadline_ms=int(ends[step.name] * scale),
            critical=step.name in path,
        ))  # fmt: skip
    fits = total_ms <= ttl_ms and (budget.maxCostUsd is None or total_usd <= budget.maxCostUsd)
    return Plan(
        steps=planned, critical_path=path, expected_cost_usd=total_usd, expected_ms=total_ms, held_back_usd=held,
        feasible=fits,
    )  # fmt: skip


def _critical(steps: list[Step], ends: dict[str, float]) -> list[str]:
    """The path whose steps nothing else waits for longer: from the one that ends last back to a beginning."""
    deps = {step.name: step.deps for step in steps}
    path = [max(ends, key=lambda name: ends[name])]
    while before := deps[path[-1]]:
        path.append(max(before, key=lambda name: ends[name]))
    return path[::-1]
