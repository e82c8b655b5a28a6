"""The gates, in the order in which they run."""

from __future__ import annotations

from bench import Gate

from . import fair, history, pickup, produce, scale, steady, throughput, wal, writers

GATES: tuple[Gate, ...] = (
    throughput.DRAIN,
    throughput.END_TO_END,
    throughput.HELD,
    produce.BULK,
    produce.SINGLE,
    pickup.PICKUP,
    wal.WAL,
    steady.PINNED,
    history.HISTORY,
    writers.WRITERS,
    scale.SCALE,
    fair.FAIR,
)
