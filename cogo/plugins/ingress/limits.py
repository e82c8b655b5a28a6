"""Backpressure at the door: a token bucket per key and tenant, and the depth of the lane behind it."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from cogo import errors

if TYPE_CHECKING:
    from cogo import Bus

BUCKETS_MAX = 10_000
"""Buckets kept; the one that was used longest ago goes first, and is full again by then."""
DEPTH_AGE_S = 1.0
DEPTH_RETRY_S = 5

LANE = "orchestrator/decide"


class Buckets:
    """Token buckets by name: `rate` a second on average, twice that in a burst."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = max(1.0, 2 * rate)
        self._clock = clock
        self._filled: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def take(self, name: tuple[str, str]) -> None:
        """Take one token. Raises RateLimited, with the seconds until there is one."""
        now = self._clock()
        level, at = self._filled.pop(name, (self.burst, now))
        level = min(self.burst, level + (now - at) * self.rate)
        taken = level >= 1
        self._filled[name] = (level - 1 if taken else level, now)
        if len(self._filled) > BUCKETS_MAX:
            self._filled.popitem(last=False)
        if not taken:
            wait = max(1, math.ceil((1 - level) / self.rate))
            raise errors.RateLimited(f"more than {self.rate:g} requests a second", retry_after_s=wait)


class Depth:
    """Whether more than `limit` messages wait in the ingress lane, looked up once a second."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._checked_at = -math.inf
        self._over = False

    async def check(self, bus: Bus) -> None:
        """Raises RateLimited while the lane is too deep."""
        if time.monotonic() - self._checked_at > DEPTH_AGE_S:
            self._checked_at = time.monotonic()
            self._over = await bus.depth(LANE, at_most=self.limit + 1) > self.limit
        if self._over:
            raise errors.RateLimited(
                f"more than {self.limit} messages are waiting", retry_after_s=DEPTH_RETRY_S
            )
