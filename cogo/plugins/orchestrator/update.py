"""Update: what the outcomes of a tenant's decisions say about its arms, and how sure that is.

For each arm linear models foretell four things of a task: whether the run succeeds, what it costs (in list prices),
how long it takes (logarithm of ms), and how good it is if it succeeds (the verdict). Three models of each kind
stand side by side: `steady` with a long memory, `recent` with a short one, and `intent`, which knows the task's own
intent alone. How much each counts is what its forecasts were worth lately, so that a world that stays gets the long
memory, one that changed the short one, and nobody has to say when.

Everything is a sum of terms that a decision and its outcome determine, with forward decay (Cormode et al. 2009): a
term's weight grows with the number of outcomes that were known when its decision was made, and only ratios of
weights count. So the order in which outcomes arrive makes no difference, and replicas that have read the same rows
believe the same. What an arm has shown leans on what all arms of the tenant have shown, by ridge regression
toward the pooled model: a new arm begins as the average one, with a wide uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from .model import RUN_TARGETS, TARGETS, Forecast, Past, Record, Task

Floats = npt.NDArray[np.float64]

STEADY, RECENT, INTENT = 0, 1, 2
MEMORY: Final = np.array([5_000.0, 200.0, 5_000.0])
"""Outcomes of the tenant after which a term of each model counts 1/e."""
RIDGE: Final = (1.0, 3.0, 6.0)
"""Of the intercept, an intent, a feature: how many outcomes' worth of evidence the pooled model is."""
PRIOR: Final = np.array([0.95, 1.0, math.log(1_500), 0.6])
"""What an arm is taken for before anything is known: of TARGETS."""
NOISE: Final = np.array([0.06, 0.2, 0.25, 0.09])
"""Variance of a single outcome around its forecast, worth NOISE_MASS outcomes; then as it was seen."""
NOISE_MASS: Final = 5.0
NOISE_MEMORY: Final = 300.0
LOSS_MEMORY: Final = (30.0, 200.0)
"""For how many outcomes forecasts are judged: of all arms together, and of one arm."""
LOSS_SHARE: Final = 2.0
"""How much the losses of all arms say about the models of one, beside its own."""
LOSS_PRIOR: Final = np.array([0.0, 2.0, 2.0])
"""In nats: without reasons the long memory counts."""
INTENTS_MAX: Final = 32
"""Intents that have a place of their own; more share the last one."""
SQUASH: Final = 4.0
_FAR: Final = 40.0  # exp of it is far from overflow, and a new landmark is rarely needed


def squashed(feature: float) -> float:
    """As it is up to 4, then logarithmic: no caller's scale may rule the sums."""
    size = abs(feature)
    return feature if size <= SQUASH else math.copysign(SQUASH + math.log(size / SQUASH), feature)


class _Sums:
    """Of weighted outcomes: x xᵀ and x yᵀ, for each memory."""

    def __init__(self, memories: int, width: int, targets: int) -> None:
        self.xx = np.zeros((memories, width, width))
        self.xy = np.zeros((memories, width, targets))

    def add(self, x: Floats, y: Floats, weights: Floats) -> None:
        self.xx += weights[:, None, None] * np.outer(x, x)
        self.xy += weights[:, None, None] * np.outer(x, y)

    def scale(self, by: Floats) -> None:
        self.xx *= by[:, None, None]
        self.xy *= by[:, None, None]

    def widen(self, width: int) -> None:
        more = width - self.xx.shape[1]
        self.xx = np.pad(self.xx, ((0, 0), (0, more), (0, more)))
        self.xy = np.pad(self.xy, ((0, 0), (0, more), (0, 0)))


class _Space:
    """All sums over tasks with the same number of features. x = [1, log(1 + depth), features…, intents…]."""

    def __init__(self, features: int) -> None:
        self.features = features
        self.places = 4
        self.intents: dict[str, int] = {}
        self.sums: dict[tuple[str, ...], tuple[_Sums, _Sums]] = {}

    @property
    def width(self) -> int:
        return 2 + self.features + self.places

    def ridge(self) -> Floats:
        ridge = np.full(self.width, RIDGE[1])
        ridge[0] = RIDGE[0]
        ridge[1 : 2 + self.features] = RIDGE[2]
        return ridge

    def x(self, task: Task, depth: int | None, *, learn: bool = False) -> Floats:
        place = self.place(task.intent, learn=learn)
        x = np.zeros(self.width)
        x[0] = 1.0
        x[1] = math.log1p(depth or 0)
        x[2 : 2 + self.features] = [squashed(feature) for feature in task.features]
        if place is not None:
            x[2 + self.features + place] = 1.0
        return x

    def place(self, intent: str, *, learn: bool) -> int | None:
        if intent not in self.intents and learn:
            self.intents[intent] = min(len(self.intents), INTENTS_MAX - 1)
            if self.intents[intent] >= self.places:
                self.places *= 2
                for both in self.sums.values():
                    for sums in both:
                        sums.widen(self.width)
        return self.intents.get(intent)

    def of(self, key: tuple[str, ...], memories: int) -> tuple[_Sums, _Sums]:
        """The sums of runs, and those of verdicts."""
        if key not in self.sums:
            self.sums[key] = (
                _Sums(memories, self.width, len(RUN_TARGETS)),
                _Sums(memories, self.width, 1),
            )
        return self.sums[key]


class Beliefs:
    """What a tenant's outcomes say. `n` counts them; it is what decisions write down as what they knew."""

    def __init__(self) -> None:
        self.n = 0
        self._landmark = 0.0
        self._spaces: dict[int, _Space] = {}
        self._loss: dict[str, Floats] = {}
        self._loss_of_all = np.zeros((3, len(TARGETS)))
        self._noise = np.zeros((2, len(TARGETS)))
        self._evidence: dict[str, float] = {}

    # -- learning ---------------------------------------------------------------------------------

    def fold(self, past: Past) -> None:
        """Add one outcome. What isn't the arm's fault teaches nothing about it, but counts."""
        self.n += 1
        if past.excused or (past.ok is None and past.reward is None):
            return
        self._move_landmark(past.n)
        age = past.n - self._landmark
        weights = np.exp(age / MEMORY)
        space = self._spaces.setdefault(len(past.task.features), _Space(len(past.task.features)))
        x = space.x(past.task, past.depth, learn=True)
        y = past.targets()
        keys = (("pool",), ("arm", past.arm), ("arm", past.arm, past.task.intent))
        for key, among in zip(keys, (weights[:2], weights[:2], weights[2:]), strict=True):
            runs, verdicts = space.of(key, len(among))
            if past.ok is not None:
                runs.add(x, y[:3], among)
            if past.reward is not None:
                verdicts.add(x, y[3:], among * past.weight)
        self._judge(past, y, age)

    def _judge(self, past: Past, y: Floats, age: float) -> None:
        """How far the forecasts that the decision was made by were from what happened."""
        if past.ok is not None:
            self._evidence[past.arm] = self._evidence.get(past.arm, 0.0) + math.exp(age / MEMORY[0])
        known = ~np.isnan(y)
        means, spreads = np.array(past.forecast.means), np.array(past.forecast.spreads)
        error = np.where(known, means - y, 0.0) ** 2
        wide = 1 + spreads
        loss = np.where(known, (error / (NOISE * wide) + np.log(wide)) / 2, 0.0)
        loss_of_all, loss_of_arm = (math.exp(age / memory) for memory in LOSS_MEMORY)
        self._loss_of_all += loss_of_all * loss
        self._loss[past.arm] = self._loss.get(past.arm, np.zeros_like(loss)) + loss_of_arm * loss
        shares = np.array(past.forecast.shares)
        residual = np.where(known, (shares * means).sum(0) - y, 0.0) ** 2 / (shares * wide).sum(0)
        self._noise += math.exp(age / NOISE_MEMORY) * np.array([np.minimum(residual, 25 * NOISE), known])

    def _move_landmark(self, n: float) -> None:
        shortest = min(*MEMORY, *LOSS_MEMORY, NOISE_MEMORY)
        if (age := n - self._landmark) < _FAR * shortest:
            return
        self._landmark = n
        fade = np.exp(-age / MEMORY)
        for space in self._spaces.values():
            for both in space.sums.values():
                for sums in both:
                    sums.scale(fade[:2] if len(sums.xx) == 2 else fade[2:])
        self._loss_of_all *= math.exp(-age / LOSS_MEMORY[0])
        self._loss = {arm: loss * math.exp(-age / LOSS_MEMORY[1]) for arm, loss in self._loss.items()}
        self._noise *= math.exp(-age / NOISE_MEMORY)
        self._evidence = {arm: n * fade[0] for arm, n in self._evidence.items()}

    # -- foretelling ------------------------------------------------------------------------------

    def noise(self) -> Floats:
        """Variance of single outcomes around their forecasts, of TARGETS."""
        total, mass = self._noise * math.exp(-(self.n - self._landmark) / NOISE_MEMORY)
        found: Floats = (total + NOISE_MASS * NOISE) / (mass + NOISE_MASS)
        return found

    def evidence(self, arm: str) -> float:
        """Runs of the arm, those long ago for less."""
        return float(self._evidence.get(arm, 0.0) * math.exp(-(self.n - self._landmark) / MEMORY[0]))

    def arms(self) -> list[str]:
        """Whoever has shown something."""
        return sorted(self._evidence)

    def record(self, arm: str) -> Record:
        """How an arm's runs went on the mean: the first column of x is 1, so its sums are sums of outcomes."""
        fade = math.exp(-(self.n - self._landmark) / MEMORY[STEADY])
        runs, ok, log_ms, verdicts, reward = np.zeros(5)
        for space in self._spaces.values():
            if ("arm", arm) in space.sums:
                ran, judged = space.sums["arm", arm]
                runs += ran.xx[STEADY, 0, 0]
                ok += ran.xy[STEADY, 0, 0]
                log_ms += ran.xy[STEADY, 0, 2]
                verdicts += judged.xx[STEADY, 0, 0]
                reward += judged.xy[STEADY, 0, 0]
        return Record(
            float(runs * fade), float(ok / runs) if runs else None, float(reward / verdicts) if verdicts else None,
            math.exp(log_ms / runs) if runs else None,
        )  # fmt: skip

    def foretell(self, task: Task, arms: Sequence[tuple[str, int | None]]) -> list[Forecast]:
        """What to expect of each arm (its name, its queue's depth or None) for the task."""
        space = self._spaces.get(len(task.features)) or _Space(len(task.features))
        fade = np.exp(-(self.n - self._landmark) / MEMORY)
        xs = np.array([space.x(task, depth) for _, depth in arms])
        kinds = [_kind(space, task, [arm for arm, _ in arms], kind, fade, xs) for kind in (0, 1)]
        means = np.concatenate([kind[0] for kind in kinds], axis=2)
        spreads = np.repeat(np.stack([kind[1] for kind in kinds], axis=2), (len(RUN_TARGETS), 1), axis=2)
        return [
            Forecast(means=means[i].tolist(), spreads=spreads[i].tolist(), shares=self._shares(arm).tolist())
            for i, (arm, _) in enumerate(arms)
        ]

    def _shares(self, arm: str) -> Floats:
        """How much each model counts, for each target."""
        age = self.n - self._landmark
        loss = LOSS_PRIOR[:, None] + LOSS_SHARE * self._loss_of_all * math.exp(-age / LOSS_MEMORY[0])
        if arm in self._loss:
            loss = loss + self._loss[arm] * math.exp(-age / LOSS_MEMORY[1])
        shares = np.exp(loss.min(0) - loss)
        found: Floats = shares / shares.sum(0)
        return found


def _kind(
    space: _Space, task: Task, arms: list[str], kind: int, fade: Floats, xs: Floats
) -> tuple[Floats, Floats]:
    """Means (arm, model, target) and spreads (arm, model) of runs (0) or verdicts (1): xᵀθ and xᵀA⁻¹x."""
    prior = PRIOR[:3] if kind == 0 else PRIOR[3:]
    ridge = space.ridge()
    blank = np.zeros((2, space.width, space.width)), np.zeros((2, space.width, len(prior)))

    def sums(key: tuple[str, ...], among: Floats) -> tuple[Floats, Floats]:
        if key not in space.sums:
            return blank[0][: len(among)], blank[1][: len(among)]
        found = space.sums[key][kind]
        return found.xx * among[:, None, None], found.xy * among[:, None, None]

    start = np.zeros((space.width, len(prior)))
    start[0] = prior
    pooled = _solved(*sums(("pool",), fade[:2]), ridge, start)
    own = [sums(("arm", arm), fade[:2]) for arm in arms]
    xx = np.stack([found[0] for found in own])
    theta = _solved(xx, np.stack([found[1] for found in own]), ridge, pooled)
    own = [sums(("arm", arm, task.intent), fade[2:]) for arm in arms]
    of_intent = np.stack([found[0] for found in own])
    theta = np.concatenate(
        [theta, _solved(of_intent, np.stack([found[1] for found in own]), ridge, theta[:, :1])], axis=1
    )
    xx = np.concatenate([xx, of_intent], axis=1) + np.diag(ridge)
    reach = np.linalg.solve(xx, np.broadcast_to(xs[:, None, :, None], (*xx.shape[:3], 1)))[..., 0]
    return np.einsum("ad,amdt->amt", xs, theta), np.einsum("ad,amd->am", xs, reach)


def _solved(xx: Floats, xy: Floats, ridge: Floats, toward: Floats) -> Floats:
    """Ridge regression toward other coefficients."""
    found: Floats = np.asarray(np.linalg.solve(xx + np.diag(ridge), xy + ridge[:, None] * toward), np.float64)
    return found
