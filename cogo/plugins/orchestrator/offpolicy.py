"""What a policy would have been worth, told from the log of another one. Pure: arrays in, estimates out.

Each decision was drawn with known probabilities, so an outcome counts by how much likelier the target would have made
the same choice: its weight. IPS is the mean of weighed outcomes, SNIPS divides by the sum of weights. DR (doubly
robust) begins with what was forecast of the target's choices before the outcomes, and weighs only what the forecasts
missed. Weights of DR end at CLIP * sqrt(n): one outcome of the exploration floor would outweigh hundreds. What that
leaves out is known exactly, and how uncertain forecasts were there widens the interval (docs/adr/0015).
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from .policies import Floats

CLIP: Final = 2.0
"""Times the square root of the number of decisions: the largest weight in DR."""
SURE: Final = 1.96
"""Standard errors on either side, for 95 %."""
USED_MIN: Final = 2
"""Decisions below which there is no standard error."""


class Log(NamedTuple):
    """Decisions with outcomes: (decision, candidate), padded with zeros where there are fewer candidates."""

    logged: Floats
    """Probabilities that choices were drawn by."""
    target: Floats
    """Probabilities of the policy that is asked about."""
    forecast: Floats
    """Utility that was expected of each, at the time of the decision."""
    sd: Floats
    """Standard deviation of that expectation."""
    chosen: npt.NDArray[np.int64]
    realised: Floats
    """Utility of what came of the choice."""

    @property
    def weights(self) -> Floats:
        rows = np.arange(len(self.chosen))
        found: Floats = self.target[rows, self.chosen] / self.logged[rows, self.chosen]
        return found

    @property
    def missed(self) -> Floats:
        """By how much the forecast of what was chosen was too low."""
        found: Floats = self.realised - self.forecast[np.arange(len(self.chosen)), self.chosen]
        return found

    @property
    def clip(self) -> float:
        return CLIP * math.sqrt(len(self.chosen))

    @property
    def unweighed(self) -> Floats:
        """Of each candidate the probability that clipped weights, or choices never made, don't account for."""
        found: Floats = np.maximum(self.target - self.clip * self.logged, 0)
        return found


class Estimate(msgspec.Struct, frozen=True):
    """Of a mean utility, with an interval of 95 %."""

    value: float
    se: float
    ci: tuple[float, float]


def ips(log: Log) -> Estimate:
    """Inverse propensity scoring: without bias, and of the largest variance."""
    return _mean(log.weights * log.realised)


def snips(log: Log) -> Estimate | None:
    """Self-normalised: steadier, of a small bias; None while the target would have chosen nothing that was chosen."""
    weights = log.weights
    total = float(weights.sum())
    if total <= 0:
        return None
    value = float((weights * log.realised).sum() / total)
    return _around(value, math.sqrt(float((weights**2 * (log.realised - value) ** 2).sum())) / total)


def dr(log: Log) -> Estimate:
    """Doubly robust, with clipped weights."""
    expected = (log.target * log.forecast).sum(1)
    return _mean(expected + np.minimum(log.weights, log.clip) * log.missed, _doubt(log))


def gain(log: Log) -> Estimate:
    """How much better than the logged policy's: both by DR on the same decisions, so that what they share cancels."""
    expected = ((log.target - log.logged) * log.forecast).sum(1)
    return _mean(expected + (np.minimum(log.weights, log.clip) - 1) * log.missed, _doubt(log))


def _doubt(log: Log) -> float:
    """Standard deviation of what the forecasts miss where no outcome tells; they miss alike, so it doesn't average out."""
    return float((log.unweighed * log.sd).sum(1).mean())


def _mean(values: Floats, doubt: float = 0.0) -> Estimate:
    se = float(values.std(ddof=1)) / math.sqrt(len(values))
    return _around(float(values.mean()), math.hypot(se, doubt))


def _around(value: float, se: float) -> Estimate:
    return Estimate(value, se, (value - SURE * se, value + SURE * se))


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy would have been worth on a tenant's decisions, beside what was logged on the same ones."""

    tenant: str
    policy: str
    decisions: int
    """That were looked at."""
    used: int
    left_out: dict[str, int]
    """How many, by why."""
    assumed: dict[str, int]
    """Outcomes without a cost or a time, which are what was forecast: how many."""
    policies: dict[str, int]
    """Which policies made the decisions that were used: how many each."""
    verdict: Literal["better", "worse", "undecided"]
    """Of the policy against the logged one, at 95 %."""
    logged: Estimate | None = None
    """The mean utility as it was; None, as all below, while fewer than two decisions can be used."""
    ips: Estimate | None = None
    snips: Estimate | None = None
    dr: Estimate | None = None
    gain: Estimate | None = None
    effective_sample_size: float | None = None
    """(sum of weights)² / sum of weights²: so many decisions of its own would say as much."""
    largest_weight: float | None = None
    clipped_at: float | None = None
    unweighed: float | None = None
    """Share of the target's choices that outcomes say nothing about, since weights were clipped or nobody chose so."""


def estimated(log: Log) -> dict[str, Any]:
    """The fields of Report that depend on arrays alone."""
    if len(log.chosen) < USED_MIN:
        return {"verdict": "undecided"}
    weights, difference = log.weights, gain(log)
    squares = float((weights**2).sum())
    return {
        "verdict": "better" if difference.ci[0] > 0 else "worse" if difference.ci[1] < 0 else "undecided",
        "logged": _mean(log.realised), "ips": ips(log), "snips": snips(log), "dr": dr(log), "gain": difference,
        "effective_sample_size": float(weights.sum()) ** 2 / squares if squares else 0.0,
        "largest_weight": float(weights.max()), "clipped_at": log.clip,
        "unweighed": float(log.unweighed.sum(1).mean()),
    }  # fmt: skip


# -- targets --------------------------------------------------------------------------------------


def uniform(utility: Floats, feasible: npt.NDArray[np.bool_]) -> Floats:  # noqa: ARG001 (as greedy)
    """Each that can be chosen alike."""
    found: Floats = feasible / feasible.sum()
    return found


def greedy(utility: Floats, feasible: npt.NDArray[np.bool_]) -> Floats:
    """The one of the highest utility."""
    found = np.zeros(len(utility))
    found[int(np.where(feasible, utility, -np.inf).argmax())] = 1.0
    return found
