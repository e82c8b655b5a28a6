"""Role orchestrator, lane orchestrator/decide: decides who does the work, and says why."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cogo import Context, Delegate, Role, hookimpl

from . import brain


class Decide(msgspec.Struct, frozen=True):
    """A request as the ingress enqueues it."""

    intent: str
    payload: dict[str, Any] = {}


async def decide(task: Decide, ctx: Context) -> None:
    """Decide, log the decision, and delegate to the executor: one commit, or nothing."""
    request = brain.Request(tenant=ctx.key.tenant, intent=task.intent, payload=task.payload)
    async with ctx.transaction() as tx:
        decision = await brain.decide(tx, request)
        decision = await brain.record(tx, decision, message_id=ctx.message_id, trace_id=ctx.trace_id)
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
def cogo_role() -> Role:
    """Consumes orchestrator/decide."""
    return Role("orchestrator", "decide", handle=decide, concurrency=32, events="orchestrate")


@hookimpl
def cogo_routes() -> Sequence[Any]:
    """/api/orchestrator/*"""
    from .routes import ROUTES

    return ROUTES
