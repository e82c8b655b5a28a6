"""What speaks for an arm: each scorer says a value in 0..1, its uncertainty, how much evidence there is, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from .model import Arm, Forecast, Objective

OK, COST, LATENCY, QUALITY = range(4)
LOWEST, HIGHEST = np.array([0, 0, -np.inf, 0]), np.array([1, np.inf, np.inf, 1])
"""What a forecast may mean; linear models know no bounds."""


class Score(msgspec.Struct, frozen=True):
    """`sd`: standard deviation of the value's mean."""

    value: float
    sd: float
    evidence: float
    reason: str


class Expected(msgspec.Struct, frozen=True):
    """The mixture of an arm's models: mean and variance of the mean, of TARGETS."""

    mean: list[float]
    var: list[float]


def expected(forecasts: Sequence[Forecast], noise: npt.NDArray[np.float64]) -> list[Expected]:
    """Mix the models of each arm: where they disagree, that is uncertainty, too."""
    means, spreads, shares = (
        np.array([getattr(forecast, part) for forecast in forecasts])
        for part in ("means", "spreads", "shares")
    )
    means = means.clip(LOWEST, HIGHEST)
    mean = (shares * means).sum(1)
    var = (shares * (noise * spreads + (means - mean[:, None]) ** 2)).sum(1)
    return [Expected(*both) for both in zip(mean.tolist(), var.tolist(), strict=True)]


def health(found: Expected, evidence: float) -> Score:
    """How likely a run succeeds."""
    value = found.mean[OK]
    return Score(value, math.sqrt(found.var[OK]), evidence, f"{value:.0%} of runs succeed")


def quality(found: Expected, evidence: float) -> Score:
    """How good the work is when it succeeds."""
    value = found.mean[QUALITY]
    return Score(value, math.sqrt(found.var[QUALITY]), evidence, f"verdicts of {value:.2f}")


def cost(found: Expected, arm: Arm, objective: Objective, evidence: float) -> Score:
    """1 is free, 0 is what the objective refers to, or dearer; of a run that succeeds."""
    usd = found.mean[COST] * arm.price(objective) / max(found.mean[OK], 0.05)
    sd = math.sqrt(found.var[COST]) * arm.price(objective) / objective.c_ref_usd
    return Score(1.0 - min(usd / objective.c_ref_usd, 1.0), sd, evidence, f"${usd:.4g} a success")


def slo_miss(found: Expected, noise: npt.NDArray[np.float64], objective: Objective) -> Score:
    """How likely a run fails or takes longer than the objective allows; times are lognormal."""
    in_time, density = _in_time(found, noise, objective)
    value = 1 - found.mean[OK] * in_time
    var = found.var[OK] * in_time**2 + (found.mean[OK] * density) ** 2 * found.var[LATENCY]
    return Score(value, math.sqrt(var), 0.0, f"{math.exp(found.mean[LATENCY]):.0f} ms as a rule")


def utility_sd(
    found: Expected, noise: npt.NDArray[np.float64], objective: Objective, a_dollar: float, price: float
) -> float:
    """Standard deviation of the mean utility, to first order: the same runs make health and quality uncertain."""
    in_time, density = _in_time(found, noise, objective)
    slopes = [0.0] * 4
    slopes[OK] = objective.w_quality * found.mean[QUALITY] + objective.w_slo * in_time
    slopes[QUALITY] = objective.w_quality * found.mean[OK]
    slopes[COST] = a_dollar * price
    slopes[LATENCY] = objective.w_slo * found.mean[OK] * density
    return math.sqrt(sum(slope**2 * var for slope, var in zip(slopes, found.var, strict=True)))


def _in_time(found: Expected, noise: npt.NDArray[np.float64], objective: Objective) -> tuple[float, float]:
    """How likely a run that succeeds does so in time, and how fast that changes with the logarithm of its duration."""
    sd = math.sqrt(float(noise[LATENCY]) + found.var[LATENCY])
    z = (math.log(objective.slo_ms) - found.mean[LATENCY]) / sd
    return (1 + math.erf(z / math.sqrt(2))) / 2, math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / sd
