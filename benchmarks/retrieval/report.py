"""The run's tables: who finds what, and how far COGO is from each bar."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks-retrieval.md"
WORDS, BOTH = "COGO, words", "COGO, words and vectors"
BARS = [
    ("code", WORDS, "ndcg", 0.45, None), ("code", BOTH, "ndcg", 0.58, 0.63), ("code", BOTH, "recall", 0.78, None),
    ("code", BOTH, "hard", 0.37, None), ("docs", WORDS, "ndcg", 0.60, None), ("docs", BOTH, "ndcg", 0.68, 0.72),
    ("docs", BOTH, "recall", 0.86, None),
]  # fmt: skip
"""Kind of set, system, measure, bar, aim."""
P95_MS, P95_CHUNKS = 60, 10_000
COLUMNS = {
    "ndcg": "nDCG@10",
    "recall": "recall@10",
    "mrr": "MRR",
    "hard": "hard",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
}


def table(row: dict[str, Any]) -> str:
    """One set in Markdown."""
    hard = next(iter(row["scores"].values()))["hard_queries"]
    spans = f"{row['chunks']:,} spans, {row['queries']} queries" + (f", {hard} of them hard" if hard else "")
    lines = [
        f"### {row['set'].capitalize()}: {row['name']}",
        "",
        spans,
        "",
        _line(["", *COLUMNS.values()]),
        _rule(),
    ]
    for system, score in row["scores"].items():
        lines.append(_line([system, *(_number(measure, score[measure]) for measure in COLUMNS)]))
    return "\n".join(lines) + "\n"


def bars(rows: list[dict[str, Any]]) -> str:
    """Means over the sets of a kind against the bars, and the sets that miss them by themselves."""
    lines = ["| bar | mean of the sets | lowest | state |", "| --- | --- | --- | --- |"]
    for kind, system, measure, bar, aim in BARS:
        found = [
            score
            for row in rows
            if row["set"] == kind and system in row["scores"]
            if (score := row["scores"][system][measure]) is not None
        ]
        if found:
            mean, wanted = statistics.mean(found), f">= {bar}" + (f", aim {aim}" if aim else "")
            state = "pass" if mean >= bar else "FAIL"
            lines.append(
                f"| {kind}, {system}: {COLUMNS[measure]} {wanted} | {mean:.3f} | {min(found):.3f} | {state} |"
            )
    for row in rows:
        p95 = row["scores"].get(BOTH, {}).get("p95_ms")
        if p95 is not None and row["chunks"] <= P95_CHUNKS:
            state = "pass" if p95 < P95_MS else "FAIL"
            lines.append(
                f"| {row['name']}: p95 < {P95_MS} ms at up to {P95_CHUNKS:,} spans | {p95:.0f} | | {state} |"
            )
    return "\n".join(lines) + "\n"


def write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """The page of the documentation."""
    asked = f"{args.queries} queries (or as many as there are), seed {args.seed}"
    text = f"""# Benchmark of the retrieval

This page is written by `python benchmarks/retrieval/run.py --write`; do not edit it. It shows one run on one machine.
How sets, hits and peers are made is said in `benchmarks/retrieval/run.py` and `peers.py`: {asked};
every system searches the same spans. "hard" is nDCG@10 of the queries that share no word with the target's name.
A set of 400 queries has a standard error of about 0.02.

## Bars

{bars(rows)}
## Sets

"""
    PAGE.write_text(text + "\n".join(table(row) for row in rows))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule() -> str:
    return _line(["---"] * (len(COLUMNS) + 1))


def _number(measure: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if measure.endswith("_ms") else f"{value:.3f}"
