"""`cogo explain ID`: why a decision came out as it did. It reads the database directly; no role has to run."""

from __future__ import annotations

from typing import Any

import msgspec

from cogo.commands.base import duration, say, table


async def explanation(id: int) -> dict[str, Any]:
    """The decision with every candidate, term and flip, and its outcomes. Raises NotFound."""
    import cogo
    from cogo.plugins.orchestrator import evaluate, queries
    from cogo.plugins.orchestrator.model import Inputs, Scored

    async with cogo.connect() as bus:
        row = await bus.db.fetch_one(queries.DECISION, {"id": id, "tenants": None})
        if row is None or row["inputs"] is None:
            raise cogo.errors.NotFound(
                f"there is no decision {id} that kept what it was made by",
                hint="The log of the orchestrator and the events `orchestrate_decision` name decisions.",
            )
        outcomes = await bus.db.fetch(queries.OUTCOMES_OF, (id,))
    inputs = msgspec.json.decode(row["inputs"], type=Inputs)
    scores = msgspec.json.decode(row["candidates"], type=list[Scored])
    names = (
        "id",
        "tenant",
        "intent",
        "lane",
        "message_id",
        "propensity",
        "explored",
        "policy_version",
        "seed",
        "known",
    )
    about = {name: row[name] for name in names} | {"created_at": row["created_at"].isoformat()}
    about["assignment"] = msgspec.json.decode(row["assignment"])
    told = [outcome | {"at": outcome["at"].isoformat()} for outcome in outcomes]
    return about | evaluate.explained(inputs, scores, row["chosen"], row["reason"]) | {"outcomes": told}


def show(found: dict[str, Any]) -> None:
    """Print it."""
    say(f"decision {found['id']}: {found['intent']!r} of {found['tenant']}", bold=True)
    say(f"  {found['reason']}")
    budget, ttl = found["assignment"]["budget"], found["assignment"]["ttl_ms"]
    say(f"  assignment: at most ${budget['maxCostUsd']:g}, {budget['maxTokens']} tokens, {duration(ttl)}"
        if budget["maxCostUsd"] is not None else f"  assignment: {budget['maxTokens']} tokens, {duration(ttl)}")  # fmt: skip
    say(
        f"  by {found['policy_version']}, which knew {found['known']} outcomes; chosen with p {found['propensity']:.3g}"
    )
    say()
    table([_candidate(row) for row in found["candidates"]],
          head=("", "candidate", "utility", "quality", "cost", "budget", "too late", "p", "left out by"))  # fmt: skip
    for flip in found["flips"]:
        say(f"  {_named(flip)} lacks {flip['behind']:.3f}: {_flip(flip)}")
    for outcome in found["outcomes"]:
        say(f"  came of it: {_outcome(outcome)}")


def _named(row: dict[str, Any]) -> str:
    return "@".join(str(part) for part in (row["agent_id"], row["version"], row["model"]) if part)


def _candidate(row: dict[str, Any]) -> tuple[str, ...]:
    terms = row["terms"]
    numbers = (
        row["utility"],
        terms["quality"] + terms["kg"],
        terms["cost"],
        terms["budget"],
        terms["slo"],
        row["p"],
    )
    mark = "->" if row["chosen"] else ""
    return (
        mark,
        row["lane"] or _named(row),
        *(f"{number:.3f}" for number in numbers),
        row["excluded_by"] or "",
    )


def _flip(flip: dict[str, Any]) -> str:
    ways = []
    if flip["quality"] is not None:
        ways.append(f"verdicts better by {flip['quality']:.3f}")
    if flip["cost_usd"] is not None:
        ways.append(f"runs cheaper by ${flip['cost_usd']:.4g}")
    return (
        f"{' or '.join(ways)} would have made it the best"
        if ways
        else "no single change would have made it the best"
    )


def _outcome(outcome: dict[str, Any]) -> str:
    if outcome["ok"] is None:
        return f"a verdict of {outcome['reward']:.2f} ({outcome['source']})"
    cost = "" if outcome["cost_usd"] is None else f", ${outcome['cost_usd']:.4g}"
    return (
        f"{'done' if outcome['ok'] else outcome['error_class']} after {duration(outcome['latency_ms'])}{cost}"
    )
