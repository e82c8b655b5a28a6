"""What a system under test is asked, and how its answers are scored."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cogo.knowledge import tokens

if TYPE_CHECKING:
    import sets

TOP = 10

Span = tuple[str, int, int]
"""Path, first and last line."""
Find = Callable[[str], Awaitable[Sequence[Span]]]
"""The best spans for a question, best first."""


@dataclass(frozen=True)
class Score:
    """Means over the queries; `hard` is nDCG@10 of those that share no word with the target's name."""

    ndcg: float
    recall: float
    mrr: float
    hard: float | None
    hard_queries: int
    p50_ms: float
    p95_ms: float


async def score(find: Find, queries: Sequence[sets.Query]) -> Score:
    """Ask one question after the other."""
    await find(queries[0].text)  # a cold model or cache is nobody's p95
    places, times = list[int | None](), list[float]()
    for query in queries:
        began = time.perf_counter()
        spans = await find(query.text)
        times.append(1_000 * (time.perf_counter() - began))
        places.append(next((i for i, span in enumerate(spans[:TOP]) if matches(span, query)), None))
    gains = [0.0 if place is None else 1 / math.log2(place + 2) for place in places]
    hard = [gain for gain, query in zip(gains, queries, strict=True) if is_hard(query)]
    times.sort()
    return Score(
        ndcg=statistics.mean(gains), recall=statistics.mean(place is not None for place in places),
        mrr=statistics.mean(0.0 if place is None else 1 / (place + 1) for place in places),
        hard=statistics.mean(hard) if hard else None, hard_queries=len(hard),
        p50_ms=times[len(times) // 2], p95_ms=times[int(len(times) * 0.95)],
    )  # fmt: skip


def is_hard(query: sets.Query) -> bool:
    return not set(tokens.terms(query.text)) & set(tokens.terms(query.name))


def matches(span: Span, query: sets.Query) -> bool:
    """The span overlaps the target by half of the shorter of both."""
    path, start, end = span
    shared = min(end, query.end) - max(start, query.start) + 1
    shorter = min(end - start, query.end - query.start) + 1
    return path == query.path and shared >= shorter / 2
