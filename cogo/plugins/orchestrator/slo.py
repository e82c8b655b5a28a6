"""How fast a tenant's error budget burns: the share of bad runs over several windows, against what the target allows.

1 is as fast as the target allows for ever. A page is a burn above 14.4 within an hour and within its last five minutes, or
above 6 within six hours and their last thirty minutes (the multiwindow alerts of the SRE workbook).
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from .canary import Side, p_below
from .model import Past

TARGET: Final = 0.95
"""Share of good runs, unless the settings say another."""
BUCKET_MS: Final = 300_000
WINDOWS: Final = {"5m": 1, "30m": 6, "1h": 12, "6h": 72, "3d": 864}
"""Buckets of each; the one that runs counts as a whole one."""
PAGES: Final = ((14.4, "1h", "5m"), (6.0, "6h", "30m"))
LEAST, FEW = 10, 100
"""Fewer runs say nothing; with fewer than FEW it must be sure by SURE that it burns so fast."""
SURE: Final = 0.95


class Burn(msgspec.Struct, frozen=True):
    """Rates by window, None where nothing ran; `page`: what burns too fast, if anything."""

    target: float
    rates: dict[str, float | None]
    page: str | None


class Runs:
    """Of a tenant, by five minutes, for three days."""

    def __init__(self) -> None:
        self._buckets: deque[list[int]] = deque(
            maxlen=WINDOWS["3d"] + 1
        )  # [which, runs, bad ones], oldest first

    def note(self, past: Past) -> None:
        """A run ended. What isn't the arm's fault is no error of the service."""
        if past.ok is None or past.excused:
            return
        bad = not past.ok or (past.slo_ms is not None and (past.latency_ms or 0) > past.slo_ms)
        which = past.at_ms // BUCKET_MS
        if not self._buckets or self._buckets[-1][0] < which:
            self._buckets.append([which, 0, 0])
        # One that was late counts in the newest bucket: it is heard of now.
        self._buckets[-1][1] += 1
        self._buckets[-1][2] += bad

    @property
    def newest_ms(self) -> int:
        """When the newest five minutes begin; 0 while nothing ran."""
        return self._buckets[-1][0] * BUCKET_MS if self._buckets else 0

    def burn(self, now_ms: int, target: float) -> Burn:
        """As of now."""
        counts = {name: self._counts(now_ms, size) for name, size in WINDOWS.items()}
        allowed = 1 - target
        rates = {name: bad / n / allowed if n else None for name, (n, bad) in counts.items()}
        page = next(
            (f"{rates[long]:.1f} times as fast as allowed within {long}" for limit, long, short in PAGES
             if all(_burns(*counts[name], limit * allowed) for name in (long, short))),
            None,
        )  # fmt: skip
        return Burn(target, rates, page)

    def _counts(self, now_ms: int, size: int) -> tuple[int, int]:
        first = now_ms // BUCKET_MS - size + 1
        found = [bucket for bucket in self._buckets if bucket[0] >= first]
        return sum(bucket[1] for bucket in found), sum(bucket[2] for bucket in found)


def _burns(n: int, bad: int, ratio: float) -> bool:
    if n < LEAST or bad / n <= ratio:
        return False
    return n >= FEW or p_below(Side(n, n - bad), 1 - ratio) > SURE
