"""The plain decision: by intent and the health of the lanes that answer it, with its reason.

Learning comes later; what it will need is kept from the first day: every candidate with its score
and why it was left out, the assignment, the policy's version.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from cogo import Assignment, Budget, errors

POLICY_VERSION = "plain-1"
TTL_MS = 60_000
"""Time to live of a request, unless its lane's own timeout is longer."""

LANES = """
SELECT l.service, l.role, s.shard, l.intents, l.timeout_ms, l.paused_at IS NOT NULL AS paused,
       (SELECT count(*) FROM cogo.bus_holders h WHERE h.lease_until > cogo.now()
          AND (l.service || '/' || l.role || '/' || s.shard) = ANY (h.lanes)) AS holders,
       (SELECT count(*) FROM (SELECT 1 FROM public.agent_messages m
          WHERE m.service = l.service AND m.role = l.role AND m.shard = s.shard
            AND m.status = 'queued' AND m.retry_at IS NULL LIMIT 1001) q) AS depth
FROM cogo.bus_lanes l CROSS JOIN LATERAL (
  SELECT DISTINCT split_part(lane, '/', 3)::integer AS shard
  FROM cogo.bus_holders h CROSS JOIN unnest(h.lanes) AS lane
  WHERE h.lease_until > cogo.now() AND lane LIKE l.service || '/' || l.role || '/%%'
  UNION SELECT 0
) s
WHERE %(intent)s::text IS NULL OR %(intent)s = ANY (l.intents)
ORDER BY l.service, l.role, s.shard
"""

RECENT = """
SELECT service, role, coalesce(sum(n) FILTER (WHERE status = 'done'), 0)::float8 AS done,
       coalesce(sum(n) FILTER (WHERE status = 'failed'), 0)::float8 AS failed
FROM cogo.bus_counts WHERE minute > cogo.now() - interval '15 minutes' GROUP BY 1, 2
"""

INSERT = """
INSERT INTO cogo.decisions
  (tenant, message_id, trace_id, intent, lane, arm, assignment, candidates, reason, policy_version)
VALUES (%s, %s, %s, %s, %s, %s::jsonb, %s::jsonb, %s::jsonb, %s, %s) RETURNING id
"""


class Reader(Protocol):
    """What both a Database and a Transaction offer."""

    async def fetch(self, sql: str, params: Any = ()) -> list[dict[str, Any]]: ...


class Request(msgspec.Struct, frozen=True):
    """What is to be decided."""

    tenant: str
    intent: str
    payload: dict[str, Any] = {}
    model: str | None = None
    budget: Budget = Budget(maxCostUsd=0.10, maxTokens=200_000)
    ttl_ms: int | None = None
    """None: TTL_MS, or the run time that the lane allows one attempt if that is longer."""


class Candidate(msgspec.Struct, frozen=True):
    """A lane that answers the intent. score 0..1; excluded_by says why it can't be chosen."""

    lane: str
    score: float
    holders: int
    depth: int
    """Queued messages, counted up to 1,001."""
    failure_rate: float
    excluded_by: str | None = None
    timeout_ms: int | None = None


class Decision(msgspec.Struct, frozen=True):
    """Where the work goes, and why."""

    tenant: str
    intent: str
    lane: str
    arm: dict[str, Any]
    assignment: Assignment
    candidates: list[Candidate]
    reason: str
    policy_version: str = POLICY_VERSION
    id: int | None = None


async def decide(db: Reader, request: Request) -> Decision:
    """Choose the healthiest live lane for the intent. Raises UnknownIntent, NoFeasibleArm."""
    candidates = await candidates_for(db, request.intent)
    if not candidates:
        known = await intents(db)
        raise errors.UnknownIntent(
            f"no role answers the intent {request.intent!r}; known: {', '.join(known) or 'none'}"
        )
    feasible = [candidate for candidate in candidates if candidate.excluded_by is None]
    if not feasible:
        why = "; ".join(f"{candidate.lane}: {candidate.excluded_by}" for candidate in candidates)
        raise errors.NoFeasibleArm(f"no lane can take {request.intent!r} now ({why})")
    best = max(feasible, key=lambda candidate: (candidate.score, candidate.lane))
    assignment = Assignment(agent_id=best.lane.rsplit("/", 1)[0], model=request.model, budget=request.budget,
                            ttl_ms=request.ttl_ms or max(TTL_MS, best.timeout_ms or 0))  # fmt: skip
    return Decision(
        tenant=request.tenant,
        intent=request.intent,
        lane=best.lane,
        arm={"agent_id": assignment.agent_id, "version": None, "model": request.model},
        assignment=assignment,
        candidates=candidates,
        reason=explain(request.intent, best, len(feasible), len(candidates)),
    )


async def candidates_for(db: Reader, intent: str | None) -> list[Candidate]:
    """Every lane that answers the intent (None: any), with its health."""
    recent = {(row["service"], row["role"]): row for row in await db.fetch(RECENT)}
    return [_candidate(row, recent) for row in await db.fetch(LANES, {"intent": intent}) if row["intents"]]


def _candidate(row: dict[str, Any], recent: dict[Any, dict[str, Any]]) -> Candidate:
    ends = recent.get((row["service"], row["role"]), {"done": 0.0, "failed": 0.0})
    # One prior failure and nine successes, so that the first failure of a lane isn't its end.
    failure_rate = (ends["failed"] + 1) / (ends["done"] + ends["failed"] + 10)
    load = min(row["depth"] / (100 * max(1, row["holders"])), 1.0)
    excluded = "paused" if row["paused"] else "no live process serves it" if not row["holders"] else None
    return Candidate(
        lane=f"{row['service']}/{row['role']}/{row['shard']}",
        score=round((1 - failure_rate) * (1 - 0.5 * load), 4),
        holders=row["holders"],
        depth=row["depth"],
        failure_rate=round(failure_rate, 4),
        excluded_by=excluded,
        timeout_ms=row["timeout_ms"],
    )


def explain(intent: str, best: Candidate, feasible: int, known: int) -> str:
    """One sentence that a person understands."""
    rivals = "the only lane" if known == 1 else f"the best of {feasible} live lanes ({known} known)"
    return (
        f"{best.lane} is {rivals} for {intent!r}: score {best.score:.2f} from a failure rate of "
        f"{best.failure_rate:.0%} in 15 minutes, {best.depth} queued, {best.holders} live holder(s)"
    )


async def intents(db: Reader) -> list[str]:
    """Every intent that some known lane answers."""
    rows = await db.fetch("SELECT DISTINCT unnest(intents) AS intent FROM cogo.bus_lanes ORDER BY 1")
    return [row["intent"] for row in rows]


async def record(db: Reader, decision: Decision, *, message_id: int | None, trace_id: str | None) -> Decision:
    """Log the decision; with its id."""
    to_json = msgspec.json.encode
    args = (
        decision.tenant, message_id, trace_id, decision.intent, decision.lane, to_json(decision.arm).decode(),
        to_json(decision.assignment).decode(), to_json(decision.candidates).decode(), decision.reason,
        decision.policy_version,
    )  # fmt: skip
    rows = await db.fetch(INSERT, args)
    return msgspec.structs.replace(decision, id=rows[0]["id"])
