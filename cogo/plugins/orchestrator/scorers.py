"""What speaks for an arm: each scorer says a value in 0..1, its uncertainty, how much evidence there is, and why."""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np

from .model import Arm, Objective
from .policies import Floats, normal_cdf
from .update import Foretold

NEVER: Final = 30.0
"""Logarithm of more ms than anybody waits; exp of more would overflow."""
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
    """The mixture of an arm's models: mean and variance of the mean, of TARGETS, and what follows for its time."""

    mean: list[float]
    var: list[float]
    in_time: float
    """How likely a run that succeeds does so in the objective's time; times are lognormal."""
    density: float
    """How fast that changes with the logarithm of its duration."""


def expected(found: Foretold, noise: Floats, objective: Objective) -> list[Expected]:
    """Mix the models of each arm: where they disagree, that is uncertainty, too."""
    means = found.means.clip(LOWEST, HIGHEST)
    mean = (found.shares * means).sum(1)
    var = (found.shares * (noise * found.spreads + (means - mean[:, None]) ** 2)).sum(1)
    sd = np.sqrt(noise[LATENCY] + var[:, LATENCY])
    z = (math.log(objective.slo_ms) - mean[:, LATENCY]) / sd
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) / sd
    columns = (mean.tolist(), var.tolist(), normal_cdf(z).tolist(), density.tolist())
    return [Expected(*one) for one in zip(*columns, strict=True)]


def health(found: Expected, evidence: float) -> Score:
    """How likely a run succeeds."""
    value = found.mean[OK]
    return Score(value, math.sqrt(found.var[OK]), evidence, f"{value:.0%} of runs succeed")


def quality(found: Expected, evidence: float) -> Score:
    """How good the work is when it succeeds."""
    value = found.mean[QUALITY]
    return Score(value, math.sqrt(found.var[QUALITY]), evidence, f"verdicts of {value:.2f}")


def kg(found: Expected, on_code: tuple[float, float, float]) -> Score:
    """How good the work is on the code that the task touches, as far as it did any there."""
    better, sd, evidence = on_code
    value = min(max(found.mean[QUALITY] + better, 0.0), 1.0)
    return Score(value, sd, evidence, f"{better:+.2f} on this code by {evidence:.1f} runs there")


def cost(found: Expected, arm: Arm, objective: Objective, evidence: float) -> Score:
    """1 is free, 0 is what the objective refers to, or dearer; of a run that succeeds."""
    usd = found.mean[COST] * arm.price(objective) / max(found.mean[OK], 0.05)
    sd = math.sqrt(found.var[COST]) * arm.price(objective) / objective.c_ref_usd
    return Score(1.0 - min(usd / objective.c_ref_usd, 1.0), sd, evidence, f"${usd:.4g} a success")


def usual_ms(found: Expected) -> float:
    """How long a run takes as a rule."""
    return math.exp(min(found.mean[LATENCY], NEVER))


def slo_miss(found: Expected) -> Score:
    """How likely a run fails or takes longer than the objective allows."""
    value = 1 - found.mean[OK] * found.in_time
    var = found.var[OK] * found.in_time**2 + (found.mean[OK] * found.density) ** 2 * found.var[LATENCY]
    return Score(value, math.sqrt(var), 0.0, f"{usual_ms(found):.0f} ms as a rule")


def utility_sd(found: Expected, objective: Objective, a_dollar: float, price: float) -> float:
    """Standard deviation of the mean utility, to first order: the same runs make health and quality uncertain."""
    slopes = (
        objective.w_quality * found.mean[QUALITY] + objective.w_slo * found.in_time,
        a_dollar * price,
        objective.w_slo * found.mean[OK] * found.density,
        objective.w_quality * found.mean[OK],
    )
    return math.sqrt(sum(slope**2 * var for slope, var in zip(slopes, found.var, strict=True)))
