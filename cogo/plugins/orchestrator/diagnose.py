"""Diagnose: which arms are broken now. The posteriors are too slow for an outage; this looks at the last few runs.

closed -> open: FAILURES in a row, or more than half of five or more within a minute
open -> half open: EJECTED_MS and EJECTED_TASKS later, each times how often it opened in a row
half open: one task at a time tries it; PROBES successes close it, a failure opens it again
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from .model import Past

FAILURES: Final = 4
WINDOW_MS: Final = 60_000
WINDOW_RUNS: Final = 5
EJECTED_MS: Final = 30_000
EJECTED_TASKS: Final = 20
"""Time alone would let a probe through at each task where tasks are rare."""
TIMES_MAX: Final = 10
PROBES: Final = 2
PROBE_EVERY: Final = 30
"""Tasks after which a probe that nobody answered for may be repeated."""


class Breaker(msgspec.Struct):
    """Of one arm."""

    failures: int = 0
    open: bool = False
    times: int = 0
    successes: int = 0
    until_ms: int = 0
    until_n: int = 0
    cause: str = ""
    recent: deque[tuple[int, bool]] = msgspec.field(default_factory=lambda: deque(maxlen=20))

    def note(self, past: Past, n: int) -> None:
        """A run ended; `n` tasks' outcomes are known."""
        if past.ok is None or (past.excused and not past.probe):
            return
        self.recent.append((past.at_ms, past.ok))
        if past.ok:
            self.failures = 0
            if self.open:
                self._succeeded(past.at_ms, n)
            return
        self.failures += 1
        if self.open:
            if past.probe:
                self._eject(past.at_ms, n, f"a probe failed: {past.error_class or 'callee'}")
        elif self.failures >= FAILURES:
            self._eject(past.at_ms, n, f"{self.failures} failures in a row")
        elif self._mostly_failing(past.at_ms):
            self._eject(past.at_ms, n, "more than half of the last minute's runs failed")

    def state(self, now_ms: int, n: int) -> str:
        """closed, open or half_open."""
        if not self.open:
            return "closed"
        return "half_open" if now_ms >= self.until_ms and n >= self.until_n else "open"

    def probing(self, n: int) -> None:
        """A probe is under way."""
        self.until_n = n + PROBE_EVERY

    def _succeeded(self, at_ms: int, n: int) -> None:
        self.successes += 1
        if self.successes >= PROBES:
            self.open, self.times, self.successes, self.cause = False, 0, 0, ""
            self.recent.clear()
        else:
            self.until_ms, self.until_n = at_ms, n

    def _eject(self, at_ms: int, n: int, cause: str) -> None:
        self.times = min(self.times + 1, TIMES_MAX)
        self.open, self.successes, self.cause = True, 0, cause
        self.until_ms, self.until_n = at_ms + EJECTED_MS * self.times, n + EJECTED_TASKS * self.times

    def _mostly_failing(self, now_ms: int) -> bool:
        runs = [ok for at, ok in self.recent if at > now_ms - WINDOW_MS]
        return len(runs) >= WINDOW_RUNS and runs.count(False) * 2 > len(runs)
