"""Role executor, lane orchestrator/execute: applies policy, writes the assignment and publishes to the target.

It is the only writer of `__assignment`. What the target does within it is enforced by core: ttl by
both clocks, budget by the ledger, model by `ctx.spend`. What is under way at a target, how that ended
and what was retried is known to the database, so all executors obey one limit (docs/adr/0014).
"""

from __future__ import annotations

import random
from typing import Annotated, Any, Final, TypeVar

import msgspec

from cogo import Assignment, Context, Delegate, Reject, Retry, Role, errors, hookimpl

ASSIGNMENT = "__assignment"
_Number = TypeVar("_Number", int, float)
_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Target = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]{0,62}/[a-z][a-z0-9_-]{0,62}$")]

FIRST_S: Final = 0.2
LONGEST_S: Final = 30.0
SHARE: Final = 0.25
"""Of the time that a message has waited: it waits no more than about so much longer than it had to."""


class ExecutorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[plugins.executor]`: upper bounds that no decision may exceed. A target is a service/role, all its shards."""

    max_cost_usd: float = 1.0
    max_tokens: int = 1_000_000
    max_ttl_ms: int = 3_600_000
    models: tuple[str, ...] = ()
    """Allowed models; empty allows every one."""
    max_in_flight: _Count | None = None
    """Messages of one target that were handed out and have not ended, over all executors; None: any number."""
    max_in_flight_per_tenant: _Count | None = None
    """The same for one tenant's at one target."""
    concurrency: dict[_Target, _Count] = {}
    """max_in_flight of single targets: `{"gateway/chat" = 8}`."""
    retry_ratio: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.2
    """Retries of a target for each of its successes within a minute."""
    retry_floor: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 100
    """Retries of a target within a minute that are granted besides."""
    breaker_failures: Annotated[int, msgspec.Meta(ge=0, le=100)] = 5
    """So many failures in a row open a target's breaker; 0: it has none."""
    breaker_open_s: Annotated[float, msgspec.Meta(gt=0, le=300)] = 30.0
    """How long it is left alone then; twice as long after each probe that fails, 300 s at most."""


class Execute(msgspec.Struct, frozen=True):
    """What the orchestrator decided: where to, with what, within which limits."""

    to: str
    payload: dict[str, Any]
    assignment: Assignment = Assignment()
    decision_id: int | None = None


class Refusal(msgspec.Struct, frozen=True):
    """Why a message may not be handed out now."""

    refused: str
    why: str
    wait_ms: float
    """Before that no other try is worth it."""
    waited_ms: float
    left_ms: float
    """Of its time to live."""


DISPATCH = """
SELECT * FROM cogo.dispatch(%(id)s, %(fence)s, %(root)s, %(tenant)s, %(service)s, %(role)s, %(cost)s::numeric,
  %(tokens)s, %(ttl_ms)s, %(most)s::integer, %(most_of_tenant)s::integer, %(failures)s, %(open_ms)s::float8,
  %(retry_ratio)s, %(retry_floor)s)
"""


async def execute(task: Execute, ctx: Context) -> None:
    """Bound the assignment by policy, open its budget, and let the target answer for this message."""
    if ASSIGNMENT in task.payload:
        raise Reject("the task already carries an assignment", code=errors.AssignmentForbidden.code)
    policy = ctx.settings or ExecutorSettings()
    assignment = bounded(task.assignment, policy)
    envelope = msgspec.to_builtins(assignment)
    ctx.event("execute_enqueued", to=task.to, decision_id=task.decision_id, assignment=envelope)
    params = asked(task.to, assignment, policy, ctx)
    async with ctx.transaction() as tx:
        refusals = await tx.fetch(DISPATCH, params)
        if not refusals:
            payload = {**task.payload, ASSIGNMENT: envelope}
            tx.delegate(Delegate(to=task.to, payload=payload, ttl_ms=assignment.ttl_ms))
    if refusals:
        raise refused(msgspec.convert(refusals[0], Refusal))


def asked(to: str, assignment: Assignment, policy: ExecutorSettings, ctx: Context) -> dict[str, Any]:
    """What DISPATCH takes. Raises RoutingInvalid."""
    target, message = ctx.routed(to), ctx.message
    return {
        "id": message.id, "fence": message.fence, "root": ctx.root_id, "tenant": ctx.key.tenant,
        "service": target.service, "role": target.role,
        "cost": assignment.budget.maxCostUsd, "tokens": assignment.budget.maxTokens, "ttl_ms": assignment.ttl_ms,
        "most": policy.concurrency.get(f"{target.service}/{target.role}", policy.max_in_flight),
        "most_of_tenant": policy.max_in_flight_per_tenant,
        "failures": policy.breaker_failures, "open_ms": policy.breaker_open_s * 1000,
        "retry_ratio": policy.retry_ratio, "retry_floor": policy.retry_floor,
    }  # fmt: skip


def refused(refusal: Refusal) -> Retry | errors.CogoError:
    """Put off, which doesn't count; an error when the time to live is over before that could help."""
    if refusal.left_ms <= refusal.wait_ms:
        return errors.CODES[refusal.refused](refusal.why)
    after_s = put_off_s(refusal.waited_ms / 1000, refusal.wait_ms / 1000, refusal.left_ms / 1000)
    return Retry(f"{refusal.refused}: {refusal.why}", after=after_s, counted=False)


def put_off_s(waited_s: float, least_s: float, left_s: float) -> float:
    """Seconds until the next try: a share of what it has waited, so it grows; with jitter, and within the time to live."""
    step_s = min(max(waited_s * SHARE, FIRST_S), LONGEST_S)
    return min(least_s + step_s * random.uniform(0.5, 1.5), left_s)


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
