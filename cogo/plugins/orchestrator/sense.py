"""Sense: what changed since this process looked last. Only rows that are new are read, never the bus as a whole."""

from __future__ import annotations

import weakref
from collections import OrderedDict, defaultdict, deque
from typing import Any, Final

import anyio
import msgspec
import numpy as np

from cogo import Database

from . import queries
from .canary import Canary, Counts
from .diagnose import Breaker
from .model import SEPARATOR, Arm, Past, Reader
from .policies import Floats
from .registry import InForce, in_force
from .slo import Runs
from .update import Beliefs

TENANTS_MAX: Final = 256
"""Of which a process keeps in mind what they taught; who comes back later is read again."""
OUTCOMES_MAX: Final = 50_000
"""So many are read at first: ten times the longest memory."""
BEHIND: Final = 10_000
"""Ids that transactions which were still running may have taken."""
RECENT_TASKS: Final = 200


class BudgetLeft(msgspec.Struct, frozen=True):
    """A tenant's budget as it stands."""

    left_usd: float
    tasks_left: float | None
    """Expected within the window; None while nothing tells."""
    lambda_cost: float


class Sensed(msgspec.Struct, frozen=True):
    """The time, the id of the decision to come, the budget, canaries, and policies. What was learnt is in the mind."""

    now_ms: int
    decision_id: int
    budget: BudgetLeft | None
    canaries: list[Canary]
    policies: InForce


class Mind:
    """What a tenant's outcomes say, as far as this process has read them."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.beliefs = Beliefs()
        self.breakers: defaultdict[str, Breaker] = defaultdict(Breaker)
        self.counts: dict[int, Counts] = {}
        """Of canaries that run."""
        self.recent: deque[tuple[Floats, Floats]] = deque(maxlen=RECENT_TASKS)
        """Utilities (cost at its price) and costs of the last tasks' candidates."""
        self.runs = Runs()
        self.seen: str | None = None
        self._after = 0

    async def sense(self, db: Reader, tenant: str, now_ms: int | None) -> Sensed:
        """Learn what is new. Hold `lock` from here to the choice, so that `seen` says what it was made by."""
        params = {
            "tenant": tenant,
            "now_ms": now_ms,
            "seen": self.seen,
            "after": self._after,
            "limit": OUTCOMES_MAX,
        }
        rows = await db.fetch(queries.SENSE_FIRST if self.seen is None else queries.SENSE_NEW, params)
        first = rows[0]
        new = [row for row in rows if row["id"] is not None]
        if self.seen is None:
            new.reverse()
            self._after = max((row["id"] for row in new), default=0) - BEHIND
        self.seen = first["seen"]
        for row in new:
            self.fold(row)
        canaries = msgspec.json.decode(first["canaries"] or "[]", type=list[Canary])
        self._forget_counts({canary.id for canary in canaries if canary.state == "running"})
        return Sensed(
            first["now_ms"], first["decision_id"], _budget(first), canaries, in_force(first["policies"])
        )

    def fold(self, row: dict[str, Any]) -> None:
        """Learn from an outcome."""
        past = past_of(row)
        self.breakers[past.arm].note(past, self.beliefs.clock)
        self.beliefs.fold(past)
        self.runs.note(past)
        if past.tried is not None:
            counts = self.counts.get(past.tried.id)
            if counts is None or counts.run < past.tried.run:
                counts = self.counts[past.tried.id] = Counts(past.tried.run)
            if counts.run == past.tried.run:
                counts.note(row["of_decision"], past, past.tried)

    def _forget_counts(self, running: set[int]) -> None:
        for id in [id for id in self.counts if id not in running]:
            del self.counts[id]

    def state_of(self, arm: Arm, now_ms: int) -> str:
        """Of its breaker: closed, open or half_open."""
        breaker = self.breakers.get(arm.key)
        return "closed" if breaker is None else breaker.state(now_ms, self.beliefs.clock)

    def broken(self, arm: Arm, now_ms: int) -> str | None:
        """Why its breaker is open, if it is."""
        breaker = self.breakers.get(arm.key)
        return (
            breaker.cause
            if breaker is not None and breaker.state(now_ms, self.beliefs.clock) == "open"
            else None
        )

    def about(self, arm: Arm, now_ms: int) -> dict[str, Any]:
        """The breaker of an arm, and how its runs went on the whole."""
        breaker = self.breakers.get(arm.key) or Breaker()
        found = self.beliefs.record(arm.key)
        return {
            "breaker": {"state": breaker.state(now_ms, self.beliefs.clock), "cause": breaker.cause, "times": breaker.times},
            "n_eff": found.runs, "success": found.success, "reward": found.reward,
            "latency_ms": found.latency_ms, "drift": self.beliefs.drift(arm.key),
        }  # fmt: skip


def arm_of(key: str) -> Arm:
    """The arm whose key this is."""
    agent_id, version, model = key.split(SEPARATOR)
    return Arm(agent_id=agent_id, version=version or None, model=model or None)


def past_of(row: dict[str, Any]) -> Past:
    """A row of outcomes, with what its decision wrote down."""
    past = msgspec.json.decode(row["past"], type=Past)
    return msgspec.structs.replace(
        past, at_ms=row["at_ms"], ok=row["ok"], error_class=row["error_class"], cost_usd=row["cost_usd"],
        latency_ms=row["latency_ms"], reward=row["reward"], weight=row["weight"],
    )  # fmt: skip


def _budget(row: dict[str, Any]) -> BudgetLeft | None:
    if row["limit_usd"] is None:
        return None
    over = row["window_left_ms"] is None or row["window_left_ms"] <= 0
    tasks, left_ms = (0, row["window_ms"]) if over else (row["tasks"], row["window_left_ms"])
    spent = 0.0 if over else row["spent_usd"]
    if row["expected_tasks"] is not None:
        tasks_left: float | None = max(row["expected_tasks"] - tasks, 1)
    else:
        passed = row["window_ms"] - left_ms
        tasks_left = tasks * left_ms / passed if tasks >= 20 and passed > 0 else None
    left = row["limit_usd"] - spent - row["reserved_usd"]
    return BudgetLeft(left, tasks_left, row["lambda_cost"])


class Minds:
    """Of the tenants that a process decided for lately."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Mind] = OrderedDict()

    def of(self, tenant: str) -> Mind:
        """What is known about the tenant; forgets whom nobody asked about the longest."""
        if (mind := self._known.get(tenant)) is None:
            mind = self._known[tenant] = Mind()
        self._known.move_to_end(tenant)
        if len(self._known) > TENANTS_MAX:
            self._known.popitem(last=False)
        return mind


_MINDS: weakref.WeakKeyDictionary[Database, Minds] = weakref.WeakKeyDictionary()


def minds_of(db: Database) -> Minds:
    """What this process has learnt out of a database."""
    return _MINDS.setdefault(db, Minds())


async def lanes(db: Reader, intent: str | None) -> list[Arm]:
    """Every lane that answers the intent (None: any) as an arm; what is paused or has no process is excluded."""
    rows = await db.fetch(queries.LANES, {"intent": intent})
    return [arm for row in rows if row["intents"] for arm in _lane(row)]


class Agent(msgspec.Struct, frozen=True):
    """A version that does a lane's work, as it is registered."""

    version: str | None = None
    model: str | None = None
    status: str = "active"
    list_price_usd: float | None = None


def _lane(row: dict[str, Any]) -> list[Arm]:
    """An arm for each version that is registered, or one."""
    excluded = "paused" if row["paused"] else "no live process serves it" if not row["holders"] else None
    name = f"{row['service']}/{row['role']}"
    agents = msgspec.json.decode(row["agents"], type=list[Agent]) if row["agents"] else [Agent()]
    return [
        Arm(
            agent_id=name, version=agent.version, model=agent.model, list_price_usd=agent.list_price_usd,
            lane=f"{name}/{row['shard']}", depth=row["depth"], holders=row["holders"],
            excluded_by=excluded or (None if agent.status == "active" else agent.status), timeout_ms=row["timeout_ms"],
        )
        for agent in agents
    ]  # fmt: skip


def remembered(utilities: list[float], costs: list[float], lambda_cost: float) -> tuple[Floats, Floats]:
    """Candidates of a task for pacing: their utilities without what the budget added to a dollar, and their costs."""
    usd = np.array(costs)
    return np.array(utilities) + lambda_cost * usd, usd
