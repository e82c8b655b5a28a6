"""What every gate needs: databases, drivers, and one rule for when a job counts as done."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from cluster import Cluster
from drive import Driver, Failed, Runner
from roster import COGO, Peer

Reading = dict[str, float]
"""One measurement of one peer: figures by name."""
Medians = Mapping[str, Reading]
"""By peer; "limit" is what the SQL alone does."""

LIMIT_S = 180.0
"""The longest that one step of a measurement may take."""
POLL_S = 0.01
UNBOUNDED = 1 << 40
"""As a worker's total: it is stopped, it never ends by itself."""
LABELS = {"per_s": "rate", "last_per_s": "rate of the last quarter", "p50_ms": "p50", "p99_ms": "p99"}


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    messages: int = 20_000
    rounds: int = 3
    seconds: int = 30
    rate: int = 2_000
    done: int = 1_000_000
    batch: int = 500


@dataclass(frozen=True)
class Verdict:
    """One bar: what was compared, and whether it holds."""

    what: str
    value: float
    bar: str
    passed: bool
    aim: bool = False
    """An aim is reported, and fails nothing."""


@dataclass(frozen=True)
class Gate:
    """One question with its bar. `measure` is called once a round for each peer (or for COGO alone)."""

    name: str
    title: str
    columns: Mapping[str, str]
    """Figure -> heading, for the table."""
    bar: str
    measure: Callable[[Bench, Peer], Reading]
    judge: Callable[[Medians], list[Verdict]]
    peers: bool = True
    limit: Callable[[Bench], Reading] | None = None


@dataclass
class Bench:
    """The cluster, and how to run each peer."""

    cluster: Cluster
    runners: dict[str, Runner]
    options: Options
    _templates: set[str] = field(default_factory=set)

    @contextmanager
    def database(self, peer: Peer, *, waking: bool = False) -> Iterator[str]:
        """A fresh database with the peer's schema; `waking`: the measurement has a worker that waits."""
        template = f"t_{re.sub(r'[^a-z]', '_', peer.name)}{'_w' * waking}"
        if template not in self._templates:
            dsn = self.cluster.create(template)
            self.runner(peer).call("setup", dsn, LIMIT_S, waking=waking)
            self._templates.add(template)
        with self.cluster.database(template) as dsn:
            yield dsn

    def runner(self, peer: Peer) -> Runner:
        return self.runners[peer.name]

    def count(self, peer: Peer, factor: float = 1.0) -> int:
        """How many messages this peer is measured with: whole batches, so that rates compare."""
        batches = self.options.messages * peer.share * factor / self.options.batch
        return max(1, round(batches)) * self.options.batch

    def enqueue(self, peer: Peer, dsn: str, count: int) -> dict[str, Any]:
        """Bulk, one batch after the other."""
        return self.runner(peer).call("enqueue", dsn, LIMIT_S, count=count, batch=self.options.batch)

    def drain(self, peer: Peer, dsn: str, count: int, **options: Any) -> tuple[list[int], int]:
        """A worker process on a full queue: the starts of its handlers, in order, and the end (ns)."""
        with self.runner(peer).worker(dsn, count, **options) as worker:
            ended = until_finished(peer, dsn, count, worker)
            return starts_of(worker.stop()), ended


def starts_of(message: Mapping[str, Any]) -> list[int]:
    """When handlers started, in order (ns)."""
    return sorted(ns for _, ns in message["starts"])


def until_finished(peer: Peer, dsn: str, total: int, worker: Driver) -> int:
    """When the last job was completed in the database (ns).

    The same rule for all: the worker says when its last handler has started; from then on the database
    is asked every 10 ms. Before that nobody looks, so that looking costs nobody anything.
    """
    worker.wait("all", LIMIT_S)
    return ask_until_finished(peer, dsn, total, POLL_S)


def ask_until_finished(peer: Peer, dsn: str, total: int, poll_s: float) -> int:
    """The same without a worker's word."""
    return ask_until(peer.finished.format(total=total), dsn, poll_s)


def ask_until(sql: str, dsn: str, poll_s: float) -> int:
    """When a question was first answered with yes (ns). Raises Failed."""
    end = time.monotonic() + LIMIT_S
    with psycopg.connect(make_conninfo(dsn), autocommit=True) as conn:
        while time.monotonic() < end:
            row = conn.execute(sql.encode()).fetchone()
            if row and row[0]:
                return time.monotonic_ns()
            time.sleep(poll_s)
    raise Failed(f"its table did not say within {LIMIT_S:.0f} s that all is done")


# -- judging -----------------------------------------------------------------------------------


def best_peer(medians: Medians, figure: str, *, least: bool = False) -> tuple[str, float] | None:
    """The best of the others in this run."""
    others = {
        name: reading[figure]
        for name, reading in medians.items()
        if name not in {COGO.name, "limit"} and figure in reading
    }
    if not others:
        return None
    name = (min if least else max)(others, key=lambda name: others[name])
    return name, others[name]


def against_best(
    medians: Medians,
    figure: str,
    factor: float,
    *,
    least: bool = False,
    strict: bool = False,
    aim: bool = False,
) -> list[Verdict]:
    """COGO's figure over the best peer's; nothing without peers or without COGO."""
    best = best_peer(medians, figure, least=least)
    own = medians.get(COGO.name, {}).get(figure)
    if best is None or own is None or best[1] <= 0:
        return []
    ratio = own / best[1]
    passed = ratio <= factor if least else (ratio > factor if strict else ratio >= factor)
    sign = "<=" if least else (">" if strict else ">=")
    return [
        Verdict(
            f"{LABELS[figure]} against the best peer ({best[0]})", ratio, f"{sign} {factor:g}", passed, aim
        )
    ]


def at_least(what: str, value: float | None, bar: float, *, aim: bool = False) -> list[Verdict]:
    return [] if value is None else [Verdict(what, value, f">= {bar:g}", value >= bar, aim)]


def at_most(what: str, value: float | None, bar: float) -> list[Verdict]:
    return [] if value is None else [Verdict(what, value, f"<= {bar:g}", value <= bar)]


def own(medians: Medians, figure: str) -> float | None:
    return medians.get(COGO.name, {}).get(figure)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
