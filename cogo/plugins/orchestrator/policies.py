"""How scores become probabilities, and what may not be chosen at all.

The probabilities are exact: what a policy says is what the choice is drawn by, and what is logged as propensity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BOLDNESS: Final = 0.25
"""Of the posterior's standard deviation: Thompson sampling with all of it explores longer than it pays."""
GRID: Final = 129
REACH: Final = 5.0  # standard deviations
GAMMA: Final = 200.0
SURE_SD: Final = 1.2816
"""A lower bound that holds in nine of ten cases."""
AFFORD_MIN: Final = 0.01
"""Nothing that may be chosen has no chance at all."""
FLOOR: Final = 0.8
"""Tasks of medium risk go to arms that succeed at least so often, with that certainty."""


# -- explore --------------------------------------------------------------------------------------


def thompson(means: Floats, sds: Floats) -> Floats:
    """Probability that each is the best, when each utility is drawn from its own normal posterior.

    p_a = ∫ φ_a(u) Π_b≠a Φ_b(u) du, by the trapezoid rule: no draws, so the propensity is known.
    """
    sds = np.maximum(sds * BOLDNESS, 1e-6)
    low = (means - REACH * sds).max()  # below the highest lower end nobody wins
    u = np.linspace(low, max((means + REACH * sds).max(), low + 1e-9), GRID)
    z = (u - means[:, None]) / sds[:, None]
    below = np.maximum(normal_cdf(z), 1e-300)
    density = np.exp(-z * z / 2) / sds[:, None]
    p = (density * np.exp(np.log(below).sum(0) - np.log(below))).sum(1)
    total = float(p.sum())
    found: Floats = np.asarray(p / total if total > 0 else _best(means), np.float64)
    return found


def epsilon_greedy(means: Floats, sds: Floats) -> Floats:  # noqa: ARG001 (as every policy)
    """The best one; the floor does the exploring."""
    return _best(means)


def inverse_gap(means: Floats, sds: Floats) -> Floats:  # noqa: ARG001
    """The further behind the best, the less likely (SquareCB: 1 / (K + gamma * gap))."""
    p = 1 / (len(means) + GAMMA * (means.max() - means))
    best = int(means.argmax())
    p[best] = 0
    p[best] = 1 - p.sum()
    found: Floats = p
    return found


EXPLORE: Final[dict[str, Callable[[Floats, Floats], Floats]]] = {
    "thompson": thompson, "epsilon-greedy": epsilon_greedy, "inverse-gap": inverse_gap,
}  # fmt: skip


def floored(p: Floats, exploration: float, afford: Floats) -> Floats:
    """With a share of all tasks spread over all, so that what other policies would have done can be told from the log.

    Evenly, as far as each can be afforded (0..1): under a budget the dearest arms would eat it by being explored.
    """
    share = exploration * afford / len(p)
    found: Floats = (1 - share.sum()) * p + share
    return found


def affordable(costs: Floats, usd_a_task: float | None) -> Floats:
    """What a task may cost on the mean, of what each costs, at most 1: so exploring costs no more than its share."""
    if usd_a_task is None:
        return np.ones(len(costs))
    found: Floats = np.clip(usd_a_task / np.maximum(costs, 1e-12), AFFORD_MIN, 1)
    return found


def annealed(exploration: float, start: float, n: float) -> float:
    """Of epsilon-greedy: from `start` down to the floor as outcomes come in."""
    return max(exploration, start / math.sqrt(1 + n / 50))


def _best(means: Floats) -> Floats:
    found: Floats = (means == means.max()).astype(float)
    found /= float(found.sum())
    return found


def normal_cdf(z: Floats) -> Floats:
    """Of the normal distribution, within 1e-7 (Abramowitz and Stegun 7.1.26): math.erf takes no arrays."""
    x = np.abs(z) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    upper = series * np.exp(-x * x) / 2
    found: Floats = np.where(z >= 0, 1 - upper, upper)
    return found


# -- risk -----------------------------------------------------------------------------------------


def risk_floor(success: float, sd: float) -> str | None:
    """Why an arm may not take a task of medium risk."""
    sure = success - SURE_SD * sd
    return None if sure >= FLOOR else f"risk: succeeds in {max(sure, 0):.0%} for sure, {FLOOR:.0%} are asked"


# -- budget ---------------------------------------------------------------------------------------


def paced(tasks: Sequence[tuple[Floats, Floats]], usd_a_task: float) -> float:
    """What a dollar has to cost extra so that the best choices cost no more than this a task on the mean.

    `tasks` are utilities and costs (USD) of the candidates of recent tasks; the dual price of the budget is found by
    bisection on them, which settles at once where steps along the gradient take hundreds of tasks.
    """
    if not tasks or usd_a_task <= 0:
        return 0.0
    width = max(len(worth) for worth, _ in tasks)
    worths = np.array([np.pad(worth, (0, width - len(worth)), constant_values=-np.inf) for worth, _ in tasks])
    costs = np.array([np.pad(cost, (0, width - len(cost))) for _, cost in tasks])
    rows = np.arange(len(tasks))

    def spent(price: float) -> float:
        return float(costs[rows, (worths - price * costs).argmax(axis=1)].mean())

    if spent(0.0) <= usd_a_task:
        return 0.0
    low, high = 0.0, 1.0
    while spent(high) > usd_a_task and high < 1e9:
        low, high = high, high * 4
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > usd_a_task else (low, middle)
    return high
