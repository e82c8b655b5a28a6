"""Update: what the outcomes of a tenant's decisions say about its arms, and how sure that is.

For each arm linear models foretell four things of a task: whether the run succeeds, what it costs (in list prices),
how long it takes (logarithm of ms), and how good it is if it succeeds (the verdict). Three models of each kind
stand side by side: `steady` with a long memory, `recent` with a short one, and `intent`, which knows the task's own
intent alone. How much each counts is what its forecasts were worth lately, so that a world that stays gets the long
memory, one that changed the short one, and nobody has to say when.

Everything is a sum of terms that a decision and its outcome determine, with forward decay (Cormode et al. 2009): a
term's weight grows with the number of tasks whose outcomes were known when its decision was made, and only ratios of
weights count. So the order in which outcomes arrive makes no difference, and replicas that have read the same rows
believe the same. What an arm has shown leans on what all arms of the tenant have shown, by ridge regression
toward the pooled model: a new arm begins as the average one, with a wide uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .model import RUN_TARGETS, TARGETS, Forecast, Modules, Past, Record, Task

Floats = npt.NDArray[np.float64]

STEADY, RECENT, INTENT = 0, 1, 2
RUNS, VERDICTS = 0, 1
MEMORY: Final = np.array([5_000.0, 200.0, 5_000.0])
"""Tasks of the tenant after which a term of each model counts 1/e."""
RIDGE: Final = (1.0, 3.0, 6.0)
"""Of the intercept, an intent, a feature: how many outcomes' worth of evidence the pooled model is."""
PRIOR: Final = np.array([0.95, 1.0, math.log(1_500), 0.6])
"""What an arm is taken for before anything is known: of TARGETS."""
NOISE: Final = np.array([0.06, 0.2, 0.25, 0.09])
"""Variance of a single outcome around its forecast, worth NOISE_MASS outcomes; then as it was seen."""
NOISE_MASS: Final = 5.0
NOISE_MEMORY: Final = 300.0
LOSS_MEMORY: Final = (30.0, 200.0)
"""For how many tasks forecasts are judged: of all arms together, and of one arm."""
LOSS_MAX: Final = 1e4
"""Of one outcome: however far it was off, the sums stay finite."""
LOSS_SHARE: Final = 4.0
"""How much the losses of all arms say about the models of one, beside its own."""
LOSS_PRIOR: Final = np.array([0.0, 1.0, 1.5])
"""In nats: without reasons the long memory counts."""
KG_MASS: Final = 5.0
"""So many tasks' worth of nothing in particular about a module."""
KG_NOISE: Final = 0.1
"""Variance of what a task was worth around what was expected of it."""
MODULES_MAX: Final = 2_000
"""Of which an arm's work is remembered; the lightest are forgotten."""
INTENTS_MAX: Final = 32
"""Intents that have a place of their own; more share the last one."""
SQUASH: Final = 4.0
_FAR: Final = 40.0  # exp of it is far from overflow, and a new landmark is rarely needed


def squashed(feature: float) -> float:
    """As it is up to 4, then logarithmic: no caller's scale may rule the sums."""
    size = abs(feature)
    return feature if size <= SQUASH else math.copysign(SQUASH + math.log(size / SQUASH), feature)


class _Sums:
    """Of weighted outcomes: x xᵀ and x yᵀ, of runs and of verdicts (whose one target is the first), for each memory."""

    def __init__(self, memories: int, width: int) -> None:
        self.xx = np.zeros((2, memories, width, width))
        self.xy = np.zeros((2, memories, width, len(RUN_TARGETS)))

    def add(self, kind: int, x: Floats, y: Floats, weights: Floats) -> None:
        self.xx[kind] += weights[:, None, None] * np.outer(x, x)
        self.xy[kind, ..., : len(y)] += weights[:, None, None] * np.outer(x, y)

    def scale(self, by: Floats) -> None:
        self.xx *= by[:, None, None]
        self.xy *= by[:, None, None]

    def widen(self, width: int) -> None:
        more = width - self.xx.shape[-1]
        self.xx = np.pad(self.xx, ((0, 0), (0, 0), (0, more), (0, more)))
        self.xy = np.pad(self.xy, ((0, 0), (0, 0), (0, more), (0, 0)))


class _Space:
    """All sums over tasks with the same number of features. x = [1, log(1 + depth), features…, intents…]."""

    def __init__(self, features: int) -> None:
        self.features = features
        self.places = 4
        self.intents: dict[str, int] = {}
        self.sums: dict[tuple[str, ...], _Sums] = {}

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
                for sums in self.sums.values():
                    sums.widen(self.width)
        return self.intents.get(intent)

    def of(self, key: tuple[str, ...], memories: int) -> _Sums:
        if key not in self.sums:
            self.sums[key] = _Sums(memories, self.width)
        return self.sums[key]

    def stacked(self, keys: Sequence[tuple[str, ...]], fade: Floats) -> tuple[Floats, Floats]:
        """Xx and xy of (key, kind, memory); zeros where nothing is known."""
        xx = np.zeros((len(keys), 2, len(fade), self.width, self.width))
        xy = np.zeros((len(keys), 2, len(fade), self.width, len(RUN_TARGETS)))
        for i, key in enumerate(keys):
            if (found := self.sums.get(key)) is not None:
                xx[i], xy[i] = found.xx, found.xy
        return xx * fade[:, None, None], xy * fade[:, None, None]


class Foretold(NamedTuple):
    """Of the arms of a task: (arm, model, target), as in Forecast."""

    means: Floats
    spreads: Floats
    shares: Floats

    def of(self, i: int) -> Forecast:
        """What a decision writes down of its arm."""
        return Forecast(
            means=self.means[i].tolist(), spreads=self.spreads[i].tolist(), shares=self.shares[i].tolist()
        )


class Beliefs:
    """What a tenant's outcomes say. `n` counts them; it is what decisions write down as what they knew. Ages go by `clock`."""

    def __init__(self) -> None:
        self.n = 0
        self._rows = [0, 0]
        self._landmark = 0.0
        self._spaces: dict[int, _Space] = {}
        self._loss: dict[str, Floats] = {}
        self._loss_of_all = np.zeros((3, len(TARGETS)))
        self._noise = np.zeros((2, len(TARGETS)))
        self._evidence: dict[str, float] = {}
        self._code: dict[str, dict[str, Floats]] = {}
        """Of an arm and a module: how much was done there, and how much better than expected it was, weighed."""

    @property
    def clock(self) -> int:
        """How many tasks the outcomes are of: a run and the verdict on it are two rows, and time passes once."""
        return max(self._rows)

    # -- learning ---------------------------------------------------------------------------------

    def fold(self, past: Past) -> None:
        """Add one outcome. What isn't the arm's fault teaches nothing about it, but counts."""
        self.n += 1
        self._rows[RUNS if past.ok is not None else VERDICTS] += 1
        if past.excused or (past.ok is None and past.reward is None):
            return
        self._move_landmark(past.n)
        age = past.n - self._landmark
        weights = np.exp(age / MEMORY)
        space = self._spaces.setdefault(len(past.task.features), _Space(len(past.task.features)))
        x = space.x(past.task, past.depth, learn=True)
        y = past.targets()
        self._note_code(past, math.exp(age / MEMORY[STEADY]))
        keys = (("pool",), ("arm", past.arm), ("arm", past.arm, past.task.intent))
        for key, among in zip(keys, (weights[:2], weights[:2], weights[2:]), strict=True):
            sums = space.of(key, len(among))
            if past.ok is not None:
                sums.add(RUNS, x, y[:3], among)
            if past.reward is not None:
                sums.add(VERDICTS, x, y[3:], among * past.weight)
        self._judge(past, y, age)

    def _note_code(self, past: Past, weight: float) -> None:
        """How much better than expected the work was, for each module that it touched; of successes a verdict says it."""
        if not past.task.modules or (past.ok is not False and past.reward is None):
            return
        ok, _, _, quality = (np.array(past.forecast.means) * past.forecast.shares).sum(0)
        better = 0.0 - ok * quality if past.reward is None else past.reward - quality
        code = self._code.setdefault(past.arm, {})
        for module, share in past.task.modules:
            code[module] = code.get(module, np.zeros(2)) + weight * share * np.array([1.0, better])
        if len(code) > MODULES_MAX:
            kept = sorted(code.items(), key=lambda one: (-one[1][0], one[0]))[: MODULES_MAX // 2]
            self._code[past.arm] = dict(kept)

    def _judge(self, past: Past, y: Floats, age: float) -> None:
        """How far the forecasts that the decision was made by were from what happened."""
        if past.ok is not None:
            self._evidence[past.arm] = self._evidence.get(past.arm, 0.0) + math.exp(age / MEMORY[0])
        known = ~np.isnan(y)
        means, spreads = np.array(past.forecast.means), np.array(past.forecast.spreads)
        error = np.where(known, means - y, 0.0) ** 2
        wide = 1 + spreads
        loss = np.where(known, np.minimum(error / (NOISE * wide) + np.log(wide), LOSS_MAX) / 2, 0.0)
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
            for sums in space.sums.values():
                sums.scale(fade[:2] if sums.xx.shape[1] == 2 else fade[2:])
        self._loss_of_all *= math.exp(-age / LOSS_MEMORY[0])
        self._loss = {arm: loss * math.exp(-age / LOSS_MEMORY[1]) for arm, loss in self._loss.items()}
        self._noise *= math.exp(-age / NOISE_MEMORY)
        self._evidence = {arm: n * fade[0] for arm, n in self._evidence.items()}
        for arm, code in self._code.items():
            self._code[arm] = {module: both * fade[STEADY] for module, both in code.items()}

    # -- foretelling ------------------------------------------------------------------------------

    def noise(self) -> Floats:
        """Variance of single outcomes around their forecasts, of TARGETS."""
        total, mass = self._noise * math.exp(-(self.clock - self._landmark) / NOISE_MEMORY)
        found: Floats = (total + NOISE_MASS * NOISE) / (mass + NOISE_MASS)
        return found

    def evidence(self, arm: str) -> float:
        """Runs of the arm, those long ago for less."""
        return float(self._evidence.get(arm, 0.0) * math.exp(-(self.clock - self._landmark) / MEMORY[0]))

    def on_code(self, arm: str, modules: Modules) -> tuple[float, float, float]:
        """By how much better than elsewhere the arm's work on these modules is, its standard deviation, and the evidence."""
        known, fade = self._code.get(arm, {}), math.exp(-(self.clock - self._landmark) / MEMORY[STEADY])
        mass, better = 0.0, 0.0
        for module, share in modules:
            if module in known:
                mass += share * float(known[module][0]) * fade
                better += share * float(known[module][1]) * fade
        return better / (mass + KG_MASS), math.sqrt(KG_NOISE / (mass + KG_MASS)), mass

    def arms(self) -> list[str]:
        """Whoever has shown something."""
        return sorted(self._evidence)

    def record(self, arm: str) -> Record:
        """How an arm's runs went on the mean: the first column of x is 1, so its sums are sums of outcomes."""
        fade = math.exp(-(self.clock - self._landmark) / MEMORY[STEADY])
        runs, ok, log_ms, verdicts, reward = np.zeros(5)
        for space in self._spaces.values():
            if (sums := space.sums.get(("arm", arm))) is not None:
                runs += sums.xx[RUNS, STEADY, 0, 0]
                ok += sums.xy[RUNS, STEADY, 0, 0]
                log_ms += sums.xy[RUNS, STEADY, 0, 2]
                verdicts += sums.xx[VERDICTS, STEADY, 0, 0]
                reward += sums.xy[VERDICTS, STEADY, 0, 0]
        return Record(
            float(runs * fade), float(ok / runs) if runs else None, float(reward / verdicts) if verdicts else None,
            math.exp(log_ms / runs) if runs else None,
        )  # fmt: skip

    def foretell(self, task: Task, arms: Sequence[tuple[str, int | None]]) -> Foretold:
        """What to expect of each arm (its name, its queue's depth or None) for the task."""
        space = self._spaces.get(len(task.features)) or _Space(len(task.features))
        fade = np.exp(-(self.clock - self._landmark) / MEMORY)
        xs = np.array([space.x(task, depth) for _, depth in arms])
        names = [arm for arm, _ in arms]
        ridge, start = space.ridge(), np.zeros((1, 2, 1, space.width, len(RUN_TARGETS)))
        start[..., RUNS, 0, 0, :], start[..., VERDICTS, 0, 0, 0] = PRIOR[:3], PRIOR[3]
        pooled, _ = _solved(*space.stacked([("pool",)], fade[:2]), ridge, start, xs[:1])
        theta, reach = _solved(*space.stacked([("arm", arm) for arm in names], fade[:2]), ridge, pooled, xs)
        of_intent, reach_of_intent = _solved(
            *space.stacked([("arm", arm, task.intent) for arm in names], fade[2:]), ridge, theta[:, :, :1], xs
        )
        means = np.einsum("aw,akmwt->akmt", xs, np.concatenate([theta, of_intent], axis=2))
        spreads = np.einsum("aw,akmw->amk", xs, np.concatenate([reach, reach_of_intent], axis=2))
        return Foretold(
            np.concatenate([means[:, RUNS], means[:, VERDICTS, :, :1]], axis=-1),
            np.repeat(spreads, (len(RUN_TARGETS), 1), axis=-1),
            self._shares(names),
        )

    def drift(self, arm: str) -> dict[str, float]:
        """How much the recent model of the arm counts, by target: near 1 it isn't what it was."""
        return dict(zip(TARGETS, self._shares([arm])[0][RECENT].tolist(), strict=True))

    def _shares(self, arms: list[str]) -> Floats:
        """How much each model counts, of (arm, model, target)."""
        age = self.clock - self._landmark
        nothing = np.zeros_like(self._loss_of_all)
        loss = LOSS_PRIOR[:, None] + LOSS_SHARE * self._loss_of_all * math.exp(-age / LOSS_MEMORY[0])
        own = np.array([self._loss.get(arm, nothing) for arm in arms]) * math.exp(-age / LOSS_MEMORY[1])
        shares = np.exp((loss + own).min(1, keepdims=True) - loss - own)
        found: Floats = shares / shares.sum(1, keepdims=True)
        return found


def _solved(xx: Floats, xy: Floats, ridge: Floats, toward: Floats, xs: Floats) -> tuple[Floats, Floats]:
    """Ridge regression toward other coefficients: A⁻¹(xy + ridge toward), and A⁻¹x, of (arm, kind, memory, …)."""
    x = np.broadcast_to(xs[:, None, None, :, None], (*xx.shape[:4], 1))
    both = np.concatenate([xy + ridge[:, None] * toward, x], axis=-1)
    found: Floats = np.asarray(np.linalg.solve(xx + np.diag(ridge), both), np.float64)
    return found[..., :-1], found[..., -1]
