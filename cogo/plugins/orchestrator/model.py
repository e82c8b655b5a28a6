"""What the phases hand to each other."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

RUN_TARGETS: Final = ("ok", "cost", "latency")
TARGETS: Final = (*RUN_TARGETS, "quality")
EXCUSED: Final = frozenset({"caller", "budget", "infra"})
"""Classes of errors that aren't the arm's fault."""

COST_MAX: Final = 1e6
"""Prices that an outcome may cost: however wrong a list price is, the sums stay finite."""
LEAST_USD: Final = 1e-9
"""That costs are measured in."""
SEPARATOR: Final = "\x1f"
"""Between the parts of an arm's key; no name has it."""

NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Reader(Protocol):
    """What both a Database and a Transaction offer."""

    async def fetch(self, sql: str, params: Any = ()) -> list[dict[str, Any]]: ...


class Objective(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a task is worth: w_quality * quality - w_cost * cost / c_ref_usd - w_slo * P(fails or takes longer than slo_ms)."""

    w_quality: NotNegative = 0.5
    w_cost: NotNegative = 0.25
    w_slo: NotNegative = 0.25
    c_ref_usd: Annotated[float, msgspec.Meta(ge=1e-9, le=1e6)] = 0.01
    slo_ms: Annotated[float, msgspec.Meta(ge=1, le=1e9)] = 10_000.0


Modules = tuple[tuple[str, float], ...]
"""Of code, with weights that sum to 1."""


class Task(msgspec.Struct, frozen=True):
    """What is known of a task before it is done."""

    intent: str
    features: tuple[float, ...] = ()
    modules: Modules = ()
    """That it touches."""


class Forecast(msgspec.Struct, frozen=True):
    """What the models expect of an arm: [model][target], with models as in update, targets as in TARGETS.

    `spreads` is the uncertainty of the mean in units of one outcome's variance; `shares` is how much each model counts.
    """

    means: list[list[float]]
    spreads: list[list[float]]
    shares: list[list[float]]


class Tried(msgspec.Struct, frozen=True):
    """The task was one that either side of a running canary could have taken."""

    id: int
    run: int
    canary: bool


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome, or the verdict on one, with what its decision knew."""

    arm: str
    task: Task
    n: int
    """Tasks whose outcomes were known when the decision was made."""
    at_ms: int
    ok: bool | None = None
    """None: only a verdict."""
    error_class: str | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    reward: float | None = None
    weight: float = 1.0
    price: float = 1.0
    """USD that costs are measured in: the list price, or what the objective refers to."""
    depth: int | None = None
    forecast: Forecast
    probe: bool = False
    tried: Tried | None = None
    slo_ms: float | None = None

    @property
    def excused(self) -> bool:
        return self.error_class in EXCUSED or (self.probe and self.ok is False)

    def targets(self) -> npt.NDArray[np.float64]:
        """Of TARGETS, nan for what isn't known. Where the caller reports no cost or latency, it is what was expected."""
        usual = (np.array(self.forecast.means) * self.forecast.shares).sum(0)
        y = np.full(len(TARGETS), np.nan)
        if self.ok is not None:
            y[0] = float(self.ok)
            y[1] = usual[1] if self.cost_usd is None else min(self.cost_usd / self.price, COST_MAX)
            y[2] = usual[2] if self.latency_ms is None else math.log(max(self.latency_ms, 1.0))
        if self.reward is not None:
            y[3] = self.reward
        return y


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate, with what is known of it at the time of the decision."""

    agent_id: str
    version: str | None = None
    model: str | None = None
    list_price_usd: float | None = None
    lane: str | None = None
    """Where its work goes; None for an arm that the caller runs itself."""
    depth: int | None = None
    holders: int | None = None
    excluded_by: str | None = None
    timeout_ms: int | None = None

    @property
    def key(self) -> str:
        """What outcomes are learnt under."""
        return SEPARATOR.join((self.agent_id, self.version or "", self.model or ""))

    def price(self, objective: Objective) -> float:
        """What its costs are measured in."""
        return max(self.list_price_usd or objective.c_ref_usd, LEAST_USD)


class Record(msgspec.Struct, frozen=True):
    """How an arm's runs went, those long ago for less; None while there are none."""

    runs: float
    success: float | None
    reward: float | None
    latency_ms: float | None


class Uncertainty(msgspec.Struct, frozen=True, kw_only=True):
    """Standard deviations of the means of scores."""

    health: float
    quality: float
    cost: float
    p_slo_miss: float
    kg: float | None = None


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate with all that speaks for and against it. Scores are in 0..1, `utility` is the objective's."""

    agent_id: str
    version: str | None
    model: str | None
    lane: str | None
    depth: int | None
    holders: int | None
    health: float
    quality: float
    cost: float
    kg: float | None
    """Worth of its work on the code that the task touches, in 0..1; None: the task names none."""
    p_slo_miss: float
    uncertainty: Uncertainty
    cost_usd: float
    """Expected of one run."""
    latency_ms: float
    """Of one run, as a rule."""
    utility: float
    sd: float
    """Of the utility's mean, as the policy weighs it."""
    ci: tuple[float, float]
    evidence: float
    p: float
    excluded_by: str | None = None
    reason: str = ""


class Trial(msgspec.Struct, frozen=True):
    """A running canary: places of its base and of itself among the arms, and its share of its base's tasks."""

    id: int
    run: int
    base: int
    canary: int
    weight: float


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """What a choice depends on beside the outcomes: written down with each decision, so that it can be made again."""

    task: Task
    objective: Objective
    arms: list[Arm]
    lambda_cost: float = 0.0
    """What a dollar costs more than its price, so that the tenant's budget lasts."""
    left_usd: float | None = None
    """Of the tenant's budget; None: no budget."""
    usd_a_task: float | None = None
    """That lets the budget last; None: nothing tells."""
    breakers: dict[str, str] = {}
    """Arms whose breaker isn't closed: `open`, or `probe` where this task shall try it."""
    deadline_ms: float | None = None
    trials: list[Trial] = []
    """Canaries that run; none for a task of high risk."""
    policy: str = "thompson"
    exploration: float = 0.02
    risk: str = "low"

    @property
    def a_dollar(self) -> float:
        """Utility that a dollar costs."""
        return self.objective.w_cost / self.objective.c_ref_usd + self.lambda_cost


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What Allocate came to."""

    index: int
    scores: list[Scored]
    propensity: float
    explored: bool
    reason: str
    forecast: Forecast
    tried: Tried | None
