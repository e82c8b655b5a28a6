"""Role orchestrator, lane orchestrator/decide: decides who does the work, says why, and learns from what comes of it.

Seven phases, each a module: sense, diagnose, plan, allocate (with scorers and policies), observe, evaluate, update;
`brain` is the way of a decision through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cogo import Context, Delegate, Role, errors, hookimpl

if TYPE_CHECKING:
    from .brain import OrchestratorSettings


class Decide(msgspec.Struct, frozen=True):
    """A request as the ingress enqueues it."""

    intent: str
    payload: dict[str, Any] = {}


async def decide(task: Decide, ctx: Context) -> None:
    """Decide, log the decision, and delegate to the executor: one commit, or nothing."""
    from . import brain, ledger, plan

    request = plan.Request(tenant=ctx.key.tenant, intent=task.intent, payload=task.payload)
    async with ctx.transaction() as tx:
        decision = await brain.decide(ctx.db, tx, request, ctx.settings or brain.OrchestratorSettings())
        if decision.lane is None:
            raise errors.NoFeasibleArm
        decision, reserved = await ledger.reserve(tx, request, decision)
        await brain.record(tx, decision, message_id=ctx.message_id, trace_id=ctx.trace_id)
        await ledger.hold(tx, decision, ctx.root_id, reserved)
        ctx.event("orchestrate_decision", decision_id=decision.id, intent=task.intent, lane=decision.lane,
                  reason=decision.reason)  # fmt: skip
        ctx.log.info(
            "decision id=%s intent=%s lane=%s: %s", decision.id, task.intent, decision.lane, decision.reason
        )
        order = {
            "to": decision.lane,
            "payload": task.payload,
            "assignment": msgspec.to_builtins(decision.assignment),
            "decision_id": decision.id,
        }
        tx.delegate(Delegate(to="orchestrator/execute/0", payload=order))


@hookimpl
def cogo_settings() -> type[OrchestratorSettings]:
    """`[plugins.orchestrator]`."""
    from .brain import OrchestratorSettings

    return OrchestratorSettings


@hookimpl
def cogo_role() -> Role:
    """Consumes orchestrator/decide."""
    return Role("orchestrator", "decide", handle=decide, concurrency=32, events="orchestrate")


@hookimpl
def cogo_routes(settings: Any) -> Sequence[Any]:
    """/api/orchestrator/*"""
    from .routes import routes

    return routes(settings)
