"""Where a claim starts to look: behind the entries of messages that have left the lane already.

While somebody holds a snapshot, vacuum can't remove the index entries of claimed messages, and a claim
that starts at the front of the index walks over all of them. So each consumer remembers, per lane and
priority, the highest seq that it was given, and asks for what comes after it. That alone would overlook
messages: a seq is taken when a row is inserted, but the row shows only when its transaction commits, maybe
after others with a higher seq were claimed; and a row that another claimer had locked may come back.
Therefore claims look back again and again, the less far the more often (LOOKS), and at everything after a
lost connection and when a transaction ends that was open for long. A look back that turns out to be
expensive comes more seldom.

Truth is always in the table. A watermark that is wrong makes a message late, never lost.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

PRIORITIES = 4
NEVER = float("-inf")
LOOKS = (  # seconds back, at most every … seconds while the lane is full, and while it comes short
    (float("inf"), 10.0, 0.5),
    (30.0, 2.0, 0.2),
    (2.0, 0.5, 0.05),
    (0.2, 0.05, 0.0),
)
COST_SHARE = 100.0
"""A look back is repeated only after so many times what the last one took beyond a usual claim."""
NOTE_EVERY_S = 0.05
OPEN_LONG_S = 20.0
"""A transaction of this age gets a sweep when it ends: looks back may not reach that far."""


class Look:
    """One way to look back: how far, how often at most, and when it was last done."""

    def __init__(self, back_s: float, every_s: float, short_every_s: float) -> None:
        self.back_s = back_s
        self.every_s = every_s
        self.short_every_s = short_every_s
        self.last = NEVER
        self.extra_s = 0.0

    def due(self, now: float, *, short: bool) -> bool:
        every_s = self.short_every_s if short else self.every_s
        return now - self.last >= max(every_s, COST_SHARE * self.extra_s)


class Watermark:
    """The memory of one consumer about one lane."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        looks: Sequence[tuple[float, float, float]] = LOOKS,
    ) -> None:
        self._clock = clock
        self._about = looks
        self._usual_s = 0.0
        self.sweep()

    def sweep(self) -> None:
        """Forget everything: the next claim looks at all. What lies behind the front may have changed."""
        self._looks = [Look(*about) for about in self._about]
        self._front = [0] * PRIORITIES
        self._past: list[tuple[float, tuple[int, ...]]] = []
        """(time, front): from that time on the front was there or further."""
        self._looking: Look | None = None
        self._began = 0.0
        self._short = True

    def after(self) -> Sequence[int]:
        """The seq, for each priority, after which the next claim has to look."""
        now = self._began = self._clock()
        # The deepest first: a deep look is a look at the shallow parts as well.
        self._looking = next((look for look in self._looks if look.due(now, short=self._short)), None)
        return self._front if self._looking is None else self._front_at(now - self._looking.back_s)

    def claimed(self, marks: Sequence[tuple[int, int]] | None, *, full: bool) -> None:
        """What the claim brought: (priority, seq) of each message; full: as many as were asked for.

        marks None: the lane is not read in order of seq, so nothing can be concluded.
        """
        if marks is None:
            self.sweep()
            return
        now = self._clock()
        self._note_cost(now)
        self._short = not full
        if not self._past or now - self._past[-1][0] >= NOTE_EVERY_S:
            self._past.append((now, tuple(self._front)))
            if self._past[0][0] < now - 90.0:  # a third is older than any look back needs
                del self._past[: bisect_right(self._past, now - 45.0, key=itemgetter(0)) - 1]
        for priority, seq in marks:
            self._front[priority] = max(self._front[priority], seq)

    def _note_cost(self, now: float) -> None:
        took_s = now - self._began
        if self._looking is None:
            self._usual_s += 0.2 * (took_s - self._usual_s)
            return
        self._looking.extra_s = max(0.0, took_s - self._usual_s)
        for look in self._looks:
            if look.back_s <= self._looking.back_s:
                look.last = now

    def _front_at(self, moment: float) -> Sequence[int]:
        """The front as it was at that moment, or earlier."""
        index = bisect_right(self._past, moment, key=itemgetter(0))
        return self._past[index - 1][1] if index else [0] * PRIORITIES


class LongTransactions:
    """Notices the end of transactions that were open for long: they may have put messages behind us."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[int, float] = {}

    def ended(self, open_now: Iterable[int]) -> bool:
        """True when one that was open for OPEN_LONG_S or more is no longer among these xids."""
        now = self._clock()
        before, self._since = self._since, {}
        for xid in open_now:
            self._since[xid] = before.pop(xid, now)
        return any(now - since >= OPEN_LONG_S for since in before.values())
