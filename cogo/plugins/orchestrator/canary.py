"""Canary: one version of an agent gets a share of another's work, is compared with it, and moves by what it shows.

running -> the next step's share -> … -> promoted at 100 %
running -> paused: it is worse, dearer, or broken -> running again by itself, RESUMES times at most -> rolled back

Only tasks that either could have taken count, since the canary's last move, so both met the same world. Every process
folds the same outcomes into the same counts and finds the same; the move is made by whoever comes first.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import msgspec
import numpy as np

from . import queries
from .model import Arm, Past, Reader, Tried

State = Literal["running", "paused", "promoted", "rolled_back"]
STEPS: Final = (1.0, 5.0, 25.0, 50.0, 100.0)
PRIOR: Final = 10.0
"""A new version begins as its base: so many tasks' worth."""
LOOK_FIRST, LOOK_EVERY = 15, 5
"""Tasks of the canary at which it is looked at."""
DOUBT: Final = 0.006
"""It is paused when it is worse with a probability above 1 - DOUBT; after DOUBT_TASKS looks add up, and less is
allowed at each. Of 1,500 simulated canaries as good as their base (95 %, 500 tasks) 1 % were paused; of those that
succeed in 80 % half were paused within 35 tasks."""
DOUBT_TASKS: Final = 30
STEP_TASKS: Final = 30
"""Before the next step."""
MARGIN: Final = 0.05
MARGIN_DOUBT: Final = 0.15
"""The next step asks that it isn't worse by the margin, but for this much doubt."""
DEARER: Final = 2.0
"""Times as much for a success as its base."""
GOOD_VERDICT: Final = 0.5
RESUME_MS: Final = 300_000
RESUMES: Final = 3
DECISIONS_MAX: Final = 10_000
"""Of which it is known whether they passed, in case a verdict comes later."""
GRID: Final = 400


class Canary(msgspec.Struct, frozen=True, kw_only=True):
    """A row of cogo.canaries."""

    id: int
    agent_id: str
    base_version: str | None
    base_model: str | None
    canary_version: str | None
    canary_model: str | None
    steps: list[float]
    step: int
    state: State
    run: int
    cause: str | None
    resumes: int
    resume_ms: int | None

    @property
    def weight(self) -> float:
        """Share of its base's tasks."""
        return self.steps[self.step] / 100 if self.state == "running" else float(self.state == "promoted")

    def is_base(self, arm: Arm) -> bool:
        return self._is(arm, self.base_version, self.base_model)

    def is_canary(self, arm: Arm) -> bool:
        return self._is(arm, self.canary_version, self.canary_model)

    def _is(self, arm: Arm, version: str | None, model: str | None) -> bool:
        return arm.agent_id == self.agent_id and arm.version == version and model in (None, arm.model)


class Side(msgspec.Struct):
    """How the tasks of one of the two went."""

    n: int = 0
    passed: int = 0
    cost_usd: float = 0.0


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a canary."""

    state: State
    step: int
    resumes: int
    resume_ms: int | None = None
    cause: str
    analysis: dict[str, Any] | None = None


class Counts:
    """Of a canary since its last move. A task passes when its run succeeds and no verdict calls it bad."""

    def __init__(self, run: int) -> None:
        self.run = run
        self.base, self.canary = Side(), Side()
        self.finding: tuple[str, dict[str, Any]] | None = None
        """`worse`, `dearer` or `good`, and why, since the last move; a bad one stays."""
        self._passed: dict[int, bool] = {}

    def note(self, decision: int, past: Past, tried: Tried) -> None:
        """A run ended, or a verdict came."""
        if past.excused:
            return
        side = self.canary if tried.canary else self.base
        passed = past.ok is not False and (past.reward is None or past.reward >= GOOD_VERDICT)
        before = self._passed.get(decision)
        if before is None:
            side.n += 1
            side.passed += passed
        elif before and not passed:
            side.passed -= 1
        side.cost_usd += past.cost_usd or 0.0
        self._passed[decision] = passed and before is not False
        if len(self._passed) > DECISIONS_MAX:
            del self._passed[next(iter(self._passed))]
        if tried.canary and before is None and side.n >= LOOK_FIRST and side.n % LOOK_EVERY == 0:
            self._look()

    def _look(self) -> None:
        found = self.analysis()
        if found["verdict"] != "inconclusive" and (self.finding is None or self.finding[0] == "good"):
            self.finding = (
                found["verdict"],
                found,
            )  # what was good may turn out worse, where no step is left to take

    def analysis(self) -> dict[str, Any]:
        """The comparison as it stands."""
        base, canary = self.base, self.canary
        worse = p_worse(base, canary)
        by_margin = p_worse(base, canary, MARGIN)
        threshold = 1 - DOUBT * min(1.0, DOUBT_TASKS / max(canary.n, 1))
        ratio = _per_success(canary) / _per_success(base) if _per_success(base) > 0 else None
        verdict = "inconclusive"
        if canary.n >= LOOK_FIRST and worse > threshold:
            verdict = "worse"
        elif canary.n >= LOOK_FIRST and base.n >= LOOK_FIRST and (ratio or 0) > DEARER:
            verdict = "dearer"
        elif canary.n >= STEP_TASKS and by_margin < MARGIN_DOUBT:
            verdict = "good"
        return {
            "verdict": verdict, "p_worse": worse, "threshold": threshold, "p_worse_by_margin": by_margin,
            "cost_ratio": ratio, "base": msgspec.to_builtins(base), "canary": msgspec.to_builtins(canary),
        }  # fmt: skip


def p_worse(base: Side, canary: Side, margin: float = 0.0) -> float:
    """Probability that the canary passes less often than its base does, less the margin.

    Beta posteriors on a grid; the canary's prior is its base's own rate, worth PRIOR tasks.
    """
    x = (np.arange(GRID) + 0.5) / GRID
    like_base = (base.passed + 1) / (base.n + 1.1), (base.n - base.passed + 0.1) / (base.n + 1.1)
    ours = _beta(x, canary.passed + PRIOR * like_base[0], canary.n - canary.passed + PRIOR * like_base[1])
    theirs = _beta(x, base.passed + 1, base.n - base.passed + 0.1)
    below = np.interp(x - margin, x, np.cumsum(ours) - ours / 2, left=0.0)
    return float(np.clip((theirs * below).sum(), 0, 1))


def p_below(side: Side, rate: float) -> float:
    """Probability that it passes less often than at this rate, by an even prior."""
    x = (np.arange(GRID) + 0.5) / GRID
    p = _beta(x, side.passed + 1, side.n - side.passed + 1)
    return float(np.interp(rate, x, np.cumsum(p) - p / 2))


def _beta(x: Any, a: float, b: float) -> Any:
    log = (a - 1) * np.log(x) + (b - 1) * np.log1p(-x)
    p = np.exp(log - log.max())
    return p / p.sum()


def _per_success(side: Side) -> float:
    return side.cost_usd / side.passed if side.passed else 0.0


def due(
    canary: Canary,
    counts: Counts | None,
    broken: str | None,
    now_ms: int,
    shared: bool,
    page: str | None = None,
) -> Move | None:
    """What its outcomes, its breaker and the time ask for.

    shared: its base is in trouble as well; page: how fast the tenant's error budget burns, when that is too fast.
    """
    if canary.state == "paused":
        if canary.resume_ms is None or now_ms < canary.resume_ms or shared or page:
            return None
        return Move(state="running", step=0, resumes=canary.resumes, cause="tried again")
    if canary.state != "running":
        return None
    if broken is not None and not shared:
        return _stopped(canary, f"its breaker is open: {broken}", None, now_ms)
    if page is not None:
        return _stopped(canary, f"the error budget burns {page}", None, now_ms)
    if counts is None or counts.run != canary.run or counts.finding is None:
        return None
    verdict, analysis = counts.finding
    if verdict == "good":
        return _advanced(canary, analysis)
    return _stopped(canary, _said(verdict, analysis), analysis, now_ms)


def _advanced(canary: Canary, analysis: dict[str, Any]) -> Move | None:
    step = canary.step + 1
    if step >= len(canary.steps):
        return None  # the last share was less than everything: a person promotes
    whole = canary.steps[step] >= 100
    return Move(
        state="promoted" if whole else "running", step=step, resumes=canary.resumes, analysis=analysis,
        cause=f"as good as its base at {canary.steps[canary.step]:g} %",
    )  # fmt: skip


def _stopped(canary: Canary, cause: str, analysis: dict[str, Any] | None, now_ms: int) -> Move:
    if canary.resumes >= RESUMES:
        cause = f"{cause}; it had been tried again {RESUMES} times"
        return Move(
            state="rolled_back", step=canary.step, resumes=canary.resumes, cause=cause, analysis=analysis
        )
    return Move(
        state="paused", step=canary.step, resumes=canary.resumes + 1, cause=cause, analysis=analysis,
        resume_ms=now_ms + RESUME_MS * 2**canary.resumes,
    )  # fmt: skip


def _said(verdict: str, analysis: dict[str, Any]) -> str:
    base, canary = analysis["base"], analysis["canary"]
    if verdict == "dearer":
        return f"a success costs {analysis['cost_ratio']:.1f} times as much as its base's"
    return (
        f"{canary['passed']} of {canary['n']} tasks passed, of its base {base['passed']} of {base['n']}: "
        f"worse with a probability of {math.floor(analysis['p_worse'] * 1e4) / 1e4:.4f}"
    )


async def make(reader: Reader, canary: Canary, move: Move, by: str) -> bool:
    """Move it, unless somebody else has moved it since it was read: then false."""
    rows = await reader.fetch(
        queries.MOVE_CANARY,
        msgspec.to_builtins(move) | {
            "id": canary.id, "run": canary.run, "by": by,
            "analysis": None if move.analysis is None else msgspec.json.encode(move.analysis).decode(),
        },
    )  # fmt: skip
    return bool(rows[0]["moved"])


def after(canary: Canary, move: Move) -> Canary:
    """As the move leaves it."""
    return msgspec.structs.replace(
        canary, state=move.state, step=move.step, resumes=move.resumes, resume_ms=move.resume_ms, cause=move.cause,
        run=canary.run + 1,
    )  # fmt: skip


def applied(arms: list[Arm], canaries: list[Canary], risk: str) -> tuple[list[Arm], list[Canary]]:
    """The arms without those that a canary keeps out, and the canaries that run among them; none at high risk."""
    why: dict[int, str] = {}
    running: list[Canary] = []
    for canary in canaries:  # in their order: what a later one says of an arm counts
        base = next((i for i, arm in enumerate(arms) if canary.is_base(arm)), None)
        ours = next((i for i, arm in enumerate(arms) if canary.is_canary(arm)), None)
        if base is None or ours is None:
            continue
        why.pop(base, None)
        why.pop(ours, None)
        if canary.state == "promoted":
            why[base] = f"canary {canary.id}: superseded by version {arms[ours].version}"
        elif canary.state == "running" and risk == "high":
            why[ours] = f"canary {canary.id}: a task of high risk"
        elif canary.state == "running":
            running.append(canary)
        else:
            why[ours] = f"canary {canary.id}: {canary.state.replace('_', ' ')}, {canary.cause}"
    kept = [
        msgspec.structs.replace(arm, excluded_by=arm.excluded_by or why.get(i)) for i, arm in enumerate(arms)
    ]
    return kept, running
