"""Money of a decision: reserved in the tenant's budget, and put into the ledger of the work's root message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cogo import Assignment, errors

from . import plan, queries

if TYPE_CHECKING:
    from .brain import Decision
    from .model import Reader
    from .plan import Request


async def reserve(tx: Reader, request: Request, decision: Decision) -> tuple[Decision, float]:
    """Take what the work may cost out of the tenant's budget; the assignment is bound by what was granted.

    Raises BudgetRefused when others were faster.
    """
    if not decision.has_budget:
        return decision, 0.0
    wanted = decision.assignment.budget.maxCostUsd
    left = decision.inputs.left_usd or 0.0
    granted = await _granted(
        tx, decision.tenant, decision.least_usd, left if wanted is None else wanted, decision.now_ms
    )
    bound = plan.assignment(request, decision.arm_chosen, max_cost_usd=granted)
    return msgspec.structs.replace(decision, assignment=bound), granted


async def reserve_for(
    tx: Reader, row: dict[str, Any], assignment: Assignment
) -> tuple[Assignment, float | None]:
    """As `reserve`, for a logged decision; None: the tenant has no budget."""
    if row["left_usd"] is None:
        return assignment, None
    wanted, least = assignment.budget.maxCostUsd, plan.MARGIN * (row["cost_usd"] or 0.0)
    granted = await _granted(
        tx, row["tenant"], least, max(row["left_usd"], 0.0) if wanted is None else wanted, None
    )
    budget = msgspec.structs.replace(assignment.budget, maxCostUsd=granted)
    return msgspec.structs.replace(assignment, budget=budget), granted


async def _granted(tx: Reader, tenant: str, least: float, wanted: float, now_ms: int | None) -> float:
    params = {"tenant": tenant, "now_ms": now_ms, "least": min(least, wanted), "most": wanted}
    granted: float | None = (await tx.fetch(queries.RESERVE, params))[0]["granted"]
    if granted is None:
        raise errors.BudgetRefused(f"${wanted:.4g} are asked for, and the budget of {tenant!r} has less left")
    return granted


async def hold(tx: Reader, decision: Decision, root: int, reserved: float) -> None:
    """Open the ledger of a root message with what was reserved for it; the executor's comes too late then."""
    if decision.has_budget:
        await hold_for(tx, root, decision.tenant, decision.assignment, reserved)


async def hold_for(tx: Reader, root: int, tenant: str, assignment: Assignment, reserved: float) -> None:
    """Open the ledger of a root message."""
    budget = assignment.budget
    params = {
        "root": root, "tenant": tenant, "cost": budget.maxCostUsd, "tokens": budget.maxTokens, "reserved": reserved,
    }  # fmt: skip
    await tx.fetch(queries.HOLD, params)
