"""Evaluate: what decisions were worth, and what would have changed them."""

from __future__ import annotations

from typing import Any

import msgspec

from .model import Inputs, Scored


def worth(score: Scored) -> float:
    """How good its work is if it succeeds: on the code at hand, if the task names any."""
    return score.quality if score.kg is None else score.kg


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest change of one thing by which another candidate would have had the highest utility.

    quality: by so much better verdicts of it; cost_usd: by so much cheaper runs of it. None: no such change is possible.
    """

    agent_id: str
    version: str | None
    model: str | None
    behind: float
    """Utility that it lacks."""
    quality: float | None
    cost_usd: float | None


def flips(inputs: Inputs, scores: list[Scored]) -> list[Flip]:
    """Of each candidate that could be chosen and wasn't the best one, nearest first."""
    feasible = [score for score in scores if score.excluded_by is None]
    if not feasible:
        return []
    best = max(feasible, key=lambda score: score.utility)
    found = []
    for score in feasible:
        if score is best:
            continue
        behind = best.utility - score.utility
        a_verdict = inputs.objective.w_quality * score.health
        quality = behind / a_verdict if a_verdict else None
        usd = behind / inputs.a_dollar if inputs.a_dollar else None
        found.append(Flip(
            agent_id=score.agent_id, version=score.version, model=score.model, behind=behind,
            quality=quality if quality is not None and worth(score) + quality <= 1 else None,
            cost_usd=usd if usd is not None and usd <= score.cost_usd else None,
        ))  # fmt: skip
    return sorted(found, key=lambda flip: flip.behind)


def explained(inputs: Inputs, scores: list[Scored], chosen: int, reason: str) -> dict[str, Any]:
    """Every candidate with every term of its utility, what excluded it, and what would have made it the best."""
    objective = inputs.objective
    rows = []
    for i, score in enumerate(scores):
        terms = {
            "quality": objective.w_quality * score.health * score.quality,
            "kg": objective.w_quality * score.health * (worth(score) - score.quality),
            "cost": -objective.w_cost / objective.c_ref_usd * score.cost_usd,
            "budget": -inputs.lambda_cost * score.cost_usd,
            "slo": -objective.w_slo * score.p_slo_miss,
        }
        rows.append(msgspec.to_builtins(score) | {"chosen": i == chosen, "terms": terms})
    rows.sort(key=lambda row: (row["excluded_by"] is not None, -row["utility"]))
    return {
        "reason": reason, "candidates": rows, "a_dollar_costs": inputs.a_dollar,
        "flips": msgspec.to_builtins(flips(inputs, scores)), "breakers": inputs.breakers,
        "budget_left_usd": inputs.left_usd, "objective": msgspec.to_builtins(objective),
    }  # fmt: skip
