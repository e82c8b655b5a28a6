"""Role executor, lane orchestrator/execute: writes the assignment and publishes to the target.

It is the only writer of `__assignment`. What the target does within it is enforced by core: ttl by
both clocks, budget by the ledger, model by `ctx.spend`.
"""

from typing import Any, TypeVar

import msgspec

from cogo import Assignment, Context, Delegate, Reject, Role, errors, hookimpl

ASSIGNMENT = "__assignment"
_Number = TypeVar("_Number", int, float)


class ExecutorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[plugins.executor]`: upper bounds that no decision may exceed."""

    max_cost_usd: float = 1.0
    max_tokens: int = 1_000_000
    max_ttl_ms: int = 3_600_000
    models: tuple[str, ...] = ()
    """Allowed models; empty allows every one."""


class Execute(msgspec.Struct, frozen=True):
    """What the orchestrator decided: where to, with what, within which limits."""

    to: str
    payload: dict[str, Any]
    assignment: Assignment = Assignment()
    decision_id: int | None = None


HOLD = "SELECT cogo.hold(%s, %s, %s::numeric, %s)"


async def execute(task: Execute, ctx: Context) -> None:
    """Bound the assignment by policy, open its budget, and let the target answer for this message."""
    if ASSIGNMENT in task.payload:
        raise Reject("the task already carries an assignment", code=errors.AssignmentForbidden.code)
    assignment = bounded(task.assignment, ctx.settings or ExecutorSettings())
    envelope = msgspec.to_builtins(assignment)
    ctx.event("execute_enqueued", to=task.to, decision_id=task.decision_id, assignment=envelope)
    budget = assignment.budget
    async with ctx.transaction() as tx:
        await tx.fetch(HOLD, (ctx.root_id, ctx.key.tenant, budget.maxCostUsd, budget.maxTokens))
        payload = {**task.payload, ASSIGNMENT: envelope}
        tx.delegate(Delegate(to=task.to, payload=payload, ttl_ms=assignment.ttl_ms))


def bounded(asked: Assignment, policy: ExecutorSettings) -> Assignment:
    """The assignment within the executor's own limits. Raises ModelDenied."""
    if asked.model and policy.models and asked.model not in policy.models:
        raise errors.ModelDenied(f"{asked.model!r} is not among the executor's models {list(policy.models)}")
    budget = msgspec.structs.replace(
        asked.budget,
        maxCostUsd=_least(asked.budget.maxCostUsd, policy.max_cost_usd),
        maxTokens=_least(asked.budget.maxTokens, policy.max_tokens),
    )
    return msgspec.structs.replace(asked, budget=budget, ttl_ms=_least(asked.ttl_ms, policy.max_ttl_ms))


def _least(asked: _Number | None, limit: _Number) -> _Number:
    return limit if asked is None else min(asked, limit)


@hookimpl
def cogo_settings() -> type[ExecutorSettings]:
    """`[plugins.executor]`."""
    return ExecutorSettings


@hookimpl
def cogo_role() -> Role:
    """Consumes orchestrator/execute."""
    return Role("orchestrator", "execute", handle=execute, concurrency=32, events="execute")
