"""Worlds to route tasks in: what a router may see, what happens to a task, and what only the judge knows.

Every world draws its random numbers per task and arm beforehand, so that two routers that make the same choice see
the same outcome, and a seed gives the same world again. Nothing here knows about COGO.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

INTENTS = ("summarise", "extract", "code", "review", "plan")
FEATURES = 6
W_QUALITY, W_COST, W_SLO, C_REF_USD, SLO_MS = 1.0, 0.25, 0.25, 0.01, 4_000.0
OBJECTIVE = {
    "w_quality": W_QUALITY,
    "w_cost": W_COST,
    "c_ref_usd": C_REF_USD,
    "w_slo": W_SLO,
    "slo_ms": SLO_MS,
}
TIMEOUT_MS = 30_000.0


@dataclass(frozen=True)
class Arm:
    """A candidate as a caller describes it."""

    agent_id: str
    list_price_usd: float
    queue_depth: int | None = None


@dataclass(frozen=True)
class Task:
    """What a router is told."""

    n: int
    now_ms: int
    intent: str
    features: list[float]
    arms: list[Arm]


@dataclass(frozen=True)
class Outcome:
    """What came of it, and when the router may hear of it; reward None: no verdict ever comes."""

    ok: bool
    reward: float | None
    cost_usd: float
    latency_ms: float
    heard_after: int = 0
    """Tasks later."""


def utility(ok: bool, reward: float, cost_usd: float, latency_ms: float) -> float:
    """The declared objective."""
    missed = not ok or latency_ms > SLO_MS
    return W_QUALITY * reward * ok - W_COST * cost_usd / C_REF_USD - W_SLO * missed


@dataclass
class World:
    """Arms with skills that are linear in features behind a logistic curve; subclasses change one thing."""

    seed: int
    tasks: int = 2_000
    n_arms: int = 6
    gap_ms: float = 2_000.0
    name: str = "stationary"
    rng: np.random.Generator = field(init=False)
    depths: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rng = rng = np.random.default_rng([self.seed, 7_001])
        n, arms = self.tasks, self.n_arms
        self.intents = rng.integers(0, len(INTENTS), n)
        self.features = rng.normal(0, 1, (n, FEATURES)).clip(-3, 3)
        self.now = np.cumsum(rng.exponential(self.gap_ms, n)).astype(int) + 1_000_000
        price = np.exp(rng.uniform(math.log(0.0005), math.log(0.02), arms))
        order = np.argsort(price)
        price = price[order]
        self.price = price
        # Dearer ones tend to be better, and every one has its own bents.
        self.base = np.linspace(-0.3, 0.9, arms) + rng.normal(0, 0.5, arms)
        self.skill = rng.normal(0, 0.7, (arms, len(INTENTS)))
        self.weights = rng.normal(0, 0.5, (arms, FEATURES))
        self.fails = rng.uniform(0.01, 0.08, arms)
        self.latency = np.exp(rng.uniform(math.log(500), math.log(3_500), arms))
        self.size = rng.normal(0, 0.3, len(INTENTS))
        self.u_ok = rng.uniform(0, 1, (n, arms))
        self.z_reward = rng.normal(0, 1, (n, arms))
        self.z_cost = rng.normal(0, 0.2, (n, arms))
        self.z_latency = rng.normal(0, 0.4, (n, arms))
        self.depths = np.zeros(arms)

    # -- what holds at a task; subclasses bend these -------------------------------------------

    def who(self, n: int) -> np.ndarray:  # noqa: ARG002 (worlds that change look at it)
        """Whose skills each arm has."""
        return np.arange(self.n_arms)

    def fail(self, n: int) -> np.ndarray:  # noqa: ARG002 (worlds that change look at it)
        return self.fails

    def prices(self, n: int) -> np.ndarray:  # noqa: ARG002 (worlds that change look at it)
        return self.price

    def present(self, n: int) -> np.ndarray:  # noqa: ARG002 (worlds that change look at it)
        return np.arange(self.n_arms)

    # -- the middle of things ------------------------------------------------------------------

    def quality(self, n: int) -> np.ndarray:
        who = self.who(n)
        logit = self.base[who] + self.skill[who, self.intents[n]] + self.weights[who] @ self.features[n]
        return 1 / (1 + np.exp(-logit))

    def mean_cost(self, n: int) -> np.ndarray:
        return self.prices(n) * math.exp(self.size[self.intents[n]] + 0.3 * self.features[n, 0])

    def mean_latency(self, n: int) -> np.ndarray:
        return self.latency * math.exp(0.2 * self.features[n, 1]) * (1 + self.depths)

    # -- what the judge knows ------------------------------------------------------------------

    def expected(self, n: int) -> np.ndarray:
        """Expected utility of each arm that is present."""
        ok = 1 - self.fail(n)
        late = 0.5 * (1 - _erf(np.log(SLO_MS / self.mean_latency(n)) / (0.4 * math.sqrt(2))))
        cost = self.mean_cost(n) * math.exp(0.02)
        value = W_QUALITY * ok * self.quality(n) - W_COST * cost / C_REF_USD - W_SLO * (1 - ok * (1 - late))
        return value[self.present(n)]

    # -- what routers see ----------------------------------------------------------------------

    def task(self, n: int) -> Task:
        arms = [Arm(f"arm-{a}", round(float(self.price[a]), 6), self.seen_depth(a)) for a in self.present(n)]
        return Task(
            n,
            int(self.now[n]),
            INTENTS[self.intents[n]],
            [round(float(x), 4) for x in self.features[n]],
            arms,
        )

    def seen_depth(self, arm: int) -> int | None:  # noqa: ARG002
        return None

    def outcome(self, n: int, choice: int) -> Outcome:
        """What comes of the task when the arm at this place among the present ones does it."""
        a = self.present(n)[choice]
        ok = bool(self.u_ok[n, a] >= self.fail(n)[a])
        cost = float(self.mean_cost(n)[a] * math.exp(self.z_cost[n, a]))
        latency = float(self.mean_latency(n)[a] * math.exp(self.z_latency[n, a]))
        reward = self.verdict(n, choice) if ok else 0.0
        return Outcome(ok, reward, cost, min(latency, TIMEOUT_MS))

    def verdict(self, n: int, choice: int) -> float:
        """The reward of it if it succeeds, whether or not the router is told."""
        a = self.present(n)[choice]
        return float(np.clip(self.quality(n)[a] + 0.15 * self.z_reward[n, a], 0, 1))

    def chosen(self, n: int, choice: int | None) -> None:
        """The task went there: worlds with queues take note."""


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


class Drift(World):
    """In the middle the best and the worst arm change their skills, and so do the next two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        means = np.mean([self.expected(n) for n in range(0, self.tasks, 20)], axis=0)
        order = np.argsort(means)
        self.swapped = np.arange(self.n_arms)
        for a, b in ((order[0], order[-1]), (order[1], order[-2])):
            self.swapped[a], self.swapped[b] = b, a
        self.ready = True

    def who(self, n: int) -> np.ndarray:
        late = n >= self.tasks // 2 and getattr(self, "ready", False)
        return self.swapped if late else np.arange(self.n_arms)


class Outage(World):
    """The arm that is best on the whole fails in a fifth of the time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.broken = -1
        self.broken = int(np.argmax(np.mean([self.expected(n) for n in range(0, self.tasks, 20)], axis=0)))

    def out(self, n: int) -> bool:
        return self.tasks * 2 // 5 <= n < self.tasks * 3 // 5

    def fail(self, n: int) -> np.ndarray:
        fails = self.fails
        if self.broken >= 0 and self.out(n):
            fails = fails.copy()
            fails[self.broken] = 0.98
        return fails


class CostShock(World):
    """In the middle the arm that is best on the whole costs five times as much; its list price stays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dear = -1
        self.dear = int(np.argmax(np.mean([self.expected(n) for n in range(0, self.tasks, 20)], axis=0)))

    def prices(self, n: int) -> np.ndarray:
        price = self.price
        if self.dear >= 0 and n >= self.tasks // 2:
            price = price.copy()
            price[self.dear] *= 5
        return price


class Delayed(World):
    """Verdicts come 50 tasks late on the mean, and three in ten never."""

    def outcome(self, n: int, choice: int) -> Outcome:
        found = super().outcome(n, choice)
        rng = np.random.default_rng([self.seed, 9_001, n])
        reward = None if rng.uniform() < 0.3 else found.reward
        return Outcome(found.ok, reward, found.cost_usd, found.latency_ms, int(rng.exponential(50)))


class Load(World):
    """Each arm works off its own queue; a task waits for those before it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rng = np.random.default_rng([self.seed, 9_002])
        self.latency = np.exp(rng.uniform(math.log(500), math.log(1_800), self.n_arms))
        # Together they can do one and a half times what comes.
        rate = self.gap_ms / self.latency
        self.rate = rate * 1.5 / rate.sum()
        self.queue = np.zeros(self.n_arms)
        burst = 1 + 0.8 * np.sin(np.arange(self.tasks) / 60)
        self.drain = 1 / np.clip(burst, 0.4, None)

    def chosen(self, n: int, choice: int | None) -> None:
        if choice is not None:
            self.queue[choice] += 1
        self.queue = np.maximum(self.queue - self.rate * self.drain[n], 0)
        self.depths = np.floor(self.queue)

    def seen_depth(self, arm: int) -> int | None:
        return int(self.depths[arm])


class NewArm(World):
    """After a third of the time one more arm comes: the best of all, or the worst."""

    good = True

    def __post_init__(self) -> None:
        super().__post_init__()
        last = self.n_arms - 1
        self.price[last], self.fails[last], self.latency[last] = 0.004, 0.03, 1_500.0
        self.base[last] = 2.2 if self.good else -2.2

    def present(self, n: int) -> np.ndarray:
        return np.arange(self.n_arms if n >= self.tasks // 3 else self.n_arms - 1)


class BadNewArm(NewArm):
    good = False


class Budget(World):
    """Three tenths of what the best choices would cost may be spent."""

    limit_usd: float

    def __post_init__(self) -> None:
        super().__post_init__()
        costs = [self.mean_cost(n)[int(np.argmax(self.expected(n)))] for n in range(self.tasks)]
        cheapest = [self.mean_cost(n).min() for n in range(self.tasks)]
        self.limit_usd = round(max(0.3 * sum(costs), 1.3 * sum(cheapest)), 6)

    def best_within(self) -> float:
        """What could be had within the limit by who knows everything: the linear programme's value."""
        values = np.array([self.expected(n) for n in range(self.tasks)])
        costs = np.array([self.mean_cost(n) * math.exp(0.02) for n in range(self.tasks)])
        low, high = 0.0, 10_000.0
        for _ in range(60):
            middle = (low + high) / 2
            choice = np.argmax(values - middle * costs, axis=1)
            spent = costs[np.arange(self.tasks), choice].sum()
            low, high = (middle, high) if spent > self.limit_usd else (low, middle)
        choice = np.argmax(values - high * costs, axis=1)
        return float(values[np.arange(self.tasks), choice].sum())


class Replay(World):
    """Graded answers of three models to 1,824 prompts, with what each cost, from the wheel of `paretobandit`."""

    graded: list[dict[str, Any]]

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, 7_002])
        order = self.rng.permutation(len(self.graded))
        self.graded = [self.graded[i] for i in order]
        self.tasks = len(self.graded)
        self.names = sorted(self.graded[0]["arms"])
        self.n_arms = len(self.names)
        self.price = np.array(
            [np.mean([row["arms"][a]["cost"] for row in self.graded[:50]]) for a in self.names]
        )
        self.depths = np.zeros(self.n_arms)

    def expected(self, n: int) -> np.ndarray:
        return np.array([self._value(n, a) for a in range(self.n_arms)])

    def _value(self, n: int, a: int) -> float:
        arm = self.graded[n]["arms"][self.names[a]]
        return utility(True, arm["reward"], arm["cost"], 0)

    def task(self, n: int) -> Task:
        row = self.graded[n]
        arms = [Arm(name, float(price)) for name, price in zip(self.names, self.price, strict=True)]
        return Task(n, 1_000_000 + n * 2_000, row["source"].partition("/")[0], crude(row["prompt"]), arms)

    def verdict(self, n: int, choice: int) -> float:
        return float(self.graded[n]["arms"][self.names[choice]]["reward"])

    def outcome(self, n: int, choice: int) -> Outcome:
        arm = self.graded[n]["arms"][self.names[choice]]
        return Outcome(True, float(arm["reward"]), float(arm["cost"]), 1_000.0)


def crude(prompt: str) -> list[float]:
    """What can be counted in a prompt without a model."""
    words = prompt.split()
    return [
        round(math.log1p(len(words)) - 4, 3), float(any(c in prompt for c in "{}();=")), float("\n" in prompt),
        float(any(c.isdigit() for c in prompt)), float("?" in prompt), float("ption" in prompt),
    ]  # fmt: skip


def graded(wheel: Path) -> list[dict[str, Any]]:
    """The graded prompts in a wheel of `paretobandit`."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("pareto_bandit/data/examples/val.jsonl").decode()
    return [json.loads(line) for line in text.split("\n") if line]  # prompts hold other line ends


WORLDS: dict[str, Callable[..., World]] = {
    "stationary": World, "drift": Drift, "outage": Outage, "cost shock": CostShock, "delayed": Delayed, "load": Load,
    "new version": NewArm, "bad new version": BadNewArm, "budget": Budget,
}  # fmt: skip


def made(name: str, seed: int, tasks: int, wheel: str | Path | None = None) -> World:
    """The world of this name; the replay needs the wheel with the graded prompts, and has as many tasks as those."""
    if name == "replay":
        if not hasattr(Replay, "graded"):
            Replay.graded = graded(Path(wheel or ""))
        return Replay(seed)
    return WORLDS[name](seed, tasks=tasks)
