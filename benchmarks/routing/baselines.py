"""Routers to compare with, each in its first setting: nothing is tuned on these worlds.

MABWiser's linear policies stand there twice: with the package's alpha of 1, which is wide for utilities that scatter by
0.2, and with 0.3.

The peers learn from the utility that came of a task, which holds its cost and its time, and see what COGO sees: the
intent one-hot, the features, and the depth of every arm's queue where there is one. Of an outcome without a verdict no
utility is known, unless it failed; the peers have no way to take half of it. Whatever isn't numpy is imported when a
router is made, so this file can be imported without it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import driving
import numpy as np
import worlds

PACKAGES = ("mabwiser==2.7.4", "vowpalwabbit==9.11.9", "paretobandit==0.1.1")
LOWEST = -2.0
"""Utilities are clipped to this for the router that wants a range."""


def worth(outcome: worlds.Outcome) -> float | None:
    """The utility that came of it; None: it isn't known."""
    if outcome.reward is None and outcome.ok:
        return None
    return worlds.utility(outcome.ok, outcome.reward or 0.0, outcome.cost_usd, outcome.latency_ms)


class Features:
    """A task as numbers, of the same length throughout a world."""

    def __init__(self, world: worlds.World) -> None:
        tasks = [world.task(n) for n in range(min(world.tasks, 400))]
        self.intents = sorted({task.intent for task in tasks} | {world.task(world.tasks - 1).intent})
        self.depths = world.n_arms if tasks[0].arms[0].queue_depth is not None else 0

    def of(self, task: worlds.Task) -> np.ndarray:
        one_hot = [float(task.intent == intent) for intent in self.intents]
        depths = [math.log1p(arm.queue_depth or 0) for arm in task.arms[: self.depths]]
        return np.array([*one_hot, *task.features, *depths])


class Baseline:
    """Learns nothing."""

    ledger = False

    def __init__(self, world: worlds.World) -> None:
        self.rng = np.random.default_rng([world.seed, 8_001])

    def choose(self, task: worlds.Task) -> int:
        raise NotImplementedError

    def learn(self, task: worlds.Task, index: int, outcome: worlds.Outcome, now_ms: int) -> None:
        pass


class Random(Baseline):
    def choose(self, task: worlds.Task) -> int:
        return int(self.rng.integers(len(task.arms)))


class RoundRobin(Baseline):
    def choose(self, task: worlds.Task) -> int:
        return task.n % len(task.arms)


class LeastLoaded(Baseline):
    """The shortest queue, ties at random; without queues that is random choice."""

    def choose(self, task: worlds.Task) -> int:
        depths = np.array([arm.queue_depth or 0 for arm in task.arms])
        return int(self.rng.choice(np.flatnonzero(depths == depths.min())))


class Cheapest(Baseline):
    """By list price."""

    def choose(self, task: worlds.Task) -> int:
        return int(np.argmin([arm.list_price_usd for arm in task.arms]))


class Fixed(Baseline):
    """One arm for everything, and while that isn't there the first."""

    def __init__(self, world: worlds.World, index: int) -> None:
        super().__init__(world)
        self.index = index

    def choose(self, task: worlds.Task) -> int:
        return self.index if self.index < len(task.arms) else 0


class Knowing(Baseline):
    """The arm with the highest expected utility, which nobody is told: a limit. It knows nothing of budgets."""

    def __init__(self, world: worlds.World) -> None:
        super().__init__(world)
        self.world = world

    def choose(self, task: worlds.Task) -> int:
        return int(np.argmax(self.world.expected(task.n)))


class MabWiser(Baseline):
    """MABWiser with one of its policies; it has to be fitted before it can predict, so the first task is random."""

    def __init__(self, world: worlds.World, policy: str, **settings: float) -> None:
        super().__init__(world)
        from mabwiser.mab import MAB, LearningPolicy

        self.features = Features(world)
        self.arms = [arm.agent_id for arm in world.task(0).arms]
        self.mab = MAB(list(self.arms), getattr(LearningPolicy, policy)(**settings), seed=world.seed)
        self.contextual = policy.startswith("Lin")
        self.fitted = False

    def _context(self, task: worlds.Task) -> dict[str, Any]:
        return {"contexts": [self.features.of(task)]} if self.contextual else {}

    def choose(self, task: worlds.Task) -> int:
        names = [arm.agent_id for arm in task.arms]
        for name in names:
            if name not in self.arms:
                self.arms.append(name)
                self.mab.add_arm(name)
        if not self.fitted:
            return int(self.rng.integers(len(names)))
        return names.index(self.mab.predict(**self._context(task)))

    def learn(self, task: worlds.Task, index: int, outcome: worlds.Outcome, now_ms: int) -> None:  # noqa: ARG002
        if (value := worth(outcome)) is None:
            return
        fit = self.mab.partial_fit if self.fitted else self.mab.fit
        fit([task.arms[index].agent_id], [value], **self._context(task))
        self.fitted = True


class VowpalWabbit(Baseline):
    """cb_explore_adf: the arm and its depth are an action's features, everything else the task's; both are crossed."""

    def __init__(self, world: worlds.World, explore: str) -> None:
        super().__init__(world)
        from vowpalwabbit import Workspace

        self.vw = Workspace(f"--quiet --cb_explore_adf {explore} -q sa --random_seed {world.seed}")
        self.p: dict[int, float] = {}

    def _lines(self, task: worlds.Task) -> list[str]:
        shared = " ".join(f"f{i}:{x}" for i, x in enumerate(task.features))
        lines = [f"shared |s intent={task.intent} {shared}"]
        for arm in task.arms:
            depth = "" if arm.queue_depth is None else f" depth:{math.log1p(arm.queue_depth):.4f}"
            lines.append(f"|a id={arm.agent_id}{depth}")
        return lines

    def choose(self, task: worlds.Task) -> int:
        p = np.array(self.vw.predict(self._lines(task)))
        index = int(self.rng.choice(len(p), p=p / p.sum()))
        self.p[task.n] = float(p[index])
        return index

    def learn(self, task: worlds.Task, index: int, outcome: worlds.Outcome, now_ms: int) -> None:  # noqa: ARG002
        p = self.p.pop(task.n)
        if (value := worth(outcome)) is None:
            return
        lines = self._lines(task)
        lines[index + 1] = f"0:{-value:.6f}:{p:.6f} {lines[index + 1]}"
        self.vw.learn(lines)


class ParetoBandit(Baseline):
    """ParetoBandit without warm priors, so with a wider bonus (alpha 0.5) than goes with those.

    A task is a thousand tokens at the arm's list price; its pacer gets what the task cost. The utility holds the cost
    already, so there is no other penalty but the pacer's, which it has where there is a budget.
    """

    def __init__(self, world: worlds.World) -> None:
        super().__init__(world)
        from pareto_bandit import BanditRouter, FeatureService, RouterConfig
        from pareto_bandit.budget_pacer import BudgetPacer

        logging.getLogger("pareto_bandit").setLevel(logging.ERROR)
        self.features = Features(world)
        first = world.task(0)
        limit = driving.limit_of(world)
        self.router = BanditRouter.create(
            {arm.agent_id: self._price(arm) for arm in first.arms}, priors="none", alpha=0.5, cost_penalty=0.0,
            bandit_seed=world.seed, config=RouterConfig(reward_min=LOWEST, reward_max=1.0),
            feature_service=FeatureService.for_precomputed(dimension=len(self.features.of(first))),
            budget_pacer=BudgetPacer(limit / world.tasks) if math.isfinite(limit) else None,
        )  # fmt: skip
        self.names = [arm.agent_id for arm in first.arms]
        self.logs: dict[int, Any] = {}

    def _price(self, arm: worlds.Arm) -> dict[str, float]:
        usd = arm.list_price_usd * 1_000  # for a million tokens
        return {"input_cost_per_m": usd, "output_cost_per_m": usd}

    def choose(self, task: worlds.Task) -> int:
        names = [arm.agent_id for arm in task.arms]
        for arm in task.arms[len(self.names) :]:
            self.router.register_model(arm.agent_id, **self._price(arm))
        self.names = names
        name, self.logs[task.n] = self.router.route(
            self.features.of(task), input_tokens=500, output_tokens=500
        )
        return names.index(name)

    def learn(self, task: worlds.Task, index: int, outcome: worlds.Outcome, now_ms: int) -> None:  # noqa: ARG002
        log = self.logs.pop(task.n)
        log.cost_usd = outcome.cost_usd
        if (value := worth(outcome)) is not None:
            self.router.process_feedback(log.request_id, max(value, LOWEST))


SIMPLE: dict[str, Callable[[worlds.World], driving.Router]] = {
    "random": Random, "round robin": RoundRobin, "least loaded": LeastLoaded, "cheapest": Cheapest,
    "the best arm of each task": Knowing,
}  # fmt: skip
HINDSIGHT, KNOWING = "best single arm", "the best arm of each task"
PEERS: dict[str, Callable[[worlds.World], driving.Router]] = {
    "MABWiser LinUCB": lambda world: MabWiser(world, "LinUCB"),
    "MABWiser LinUCB 0.3": lambda world: MabWiser(world, "LinUCB", alpha=0.3),
    "MABWiser LinTS": lambda world: MabWiser(world, "LinTS"),
    "MABWiser LinTS 0.3": lambda world: MabWiser(world, "LinTS", alpha=0.3),
    "MABWiser epsilon-greedy": lambda world: MabWiser(world, "EpsilonGreedy"),
    "VW squarecb": lambda world: VowpalWabbit(world, "--squarecb"),
    "VW epsilon 0.05": lambda world: VowpalWabbit(world, "--epsilon 0.05"),
    "ParetoBandit": ParetoBandit,
}


def in_hindsight(made: Callable[[], worlds.World]) -> driving.Reading:
    """Of the routers that send everything to one arm, the one that lost the least."""
    readings = (driving.drive(world, Fixed(world, a)) for a in range(made().n_arms) if (world := made()))
    return min(readings, key=lambda reading: reading.regret)


def read(name: str, made: Callable[[], worlds.World]) -> driving.Reading:
    """One of the routers of this file through a world."""
    if name == HINDSIGHT:
        return in_hindsight(made)
    world = made()
    return driving.drive(world, (SIMPLE | PEERS)[name](world))


def main(arguments: Sequence[str]) -> None:
    """Run in a peer's environment: `ROUTERS WORLDS SEEDS TASKS WHEEL`, each a list in JSON or a value; prints a line for each reading."""
    routers, names, seeds, tasks, wheel = (json.loads(argument) for argument in arguments)
    for name in names:
        for seed in seeds:
            for router in routers:
                reading = read(router, lambda name=name, seed=seed: worlds.made(name, seed, tasks, wheel))
                row = {"router": router, "world": name, "seed": seed} | driving.as_json(reading)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
