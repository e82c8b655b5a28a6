"""Proves that whatever a watermark has passed over is looked at again soon, and that looking back stays cheap."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from cogo.core.watermark import COST_SHARE, OPEN_LONG_S, LongTransactions, Watermark


@dataclass
class Clock:
    """A clock that stands until the test moves it."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


def claims(mark: Watermark, clock: Clock, *seqs: int, full: bool = True, took_s: float = 0.0) -> int:
    """One claim that brings these seqs at priority 2; from where it looked."""
    after = mark.after()[2]
    clock.now += took_s
    mark.claimed([(2, seq) for seq in seqs], full=full)
    return after


def test_the_first_claim_looks_at_everything_and_the_next_starts_at_the_front() -> None:
    clock = Clock()
    mark = Watermark(clock)
    assert claims(mark, clock, 5, 6, 7) == 0
    clock.now += 0.01
    assert claims(mark, clock, 8, 9) == 7
    assert list(mark.after()) == [0, 0, 9, 0]


def test_each_priority_has_a_front_of_its_own() -> None:
    clock = Clock()
    mark = Watermark(clock)
    mark.after()
    mark.claimed([(0, 90), (2, 7), (2, 8)], full=True)
    clock.now += 0.01
    assert list(mark.after()) == [90, 0, 8, 0]


def test_a_short_claim_looks_back_at_once() -> None:
    """Its lane has time, and what was passed over a moment ago may have been committed since."""
    clock = Clock()
    mark = Watermark(clock)
    claims(mark, clock, 5)
    clock.now += 0.3
    claims(mark, clock, 10)
    clock.now += 0.01
    claims(mark, clock, 11, full=False)
    clock.now += 0.01
    assert claims(mark, clock, full=False) <= 5


def test_sweep_looks_at_everything() -> None:
    clock = Clock()
    mark = Watermark(clock)
    claims(mark, clock, 5)
    clock.now += 0.01
    assert claims(mark, clock, 6) == 5
    mark.sweep()
    assert claims(mark, clock, 7) == 0


def test_a_lane_that_is_not_read_in_order_has_no_watermark() -> None:
    clock = Clock()
    mark = Watermark(clock)
    for _ in range(5):
        assert mark.after()[2] == 0
        mark.claimed(None, full=True)


@pytest.mark.parametrize("full", [True, False], ids=["a busy lane", "a lane that comes short"])
@pytest.mark.parametrize("seed", range(20))
def test_what_commits_late_is_looked_at_soon_after(seed: int, full: bool) -> None:
    """Claims come every 1 to 20 ms; a message that the front passed shows d seconds later."""
    rng = random.Random(seed)
    clock = Clock()
    mark = Watermark(clock)
    seq = 0
    for late_s, within_s in ((0.01, 0.1), (0.1, 0.1), (1.0, 0.6), (20.0, 2.1), (300.0, 10.1)):
        seq += rng.randrange(1, 500)
        claims(mark, clock, seq, full=full)
        hidden, shows = max(1, seq - rng.randrange(0, 300)), clock.now + late_s
        while clock.now < shows + within_s:
            clock.now += rng.uniform(0.001, 0.02)
            seq += rng.randrange(1, 50)
            if claims(mark, clock, seq, full=full) < hidden and clock.now >= shows:
                break
        else:
            pytest.fail(f"not looked at within {within_s} s after {late_s} s")


def test_an_expensive_look_back_becomes_seldom() -> None:
    clock = Clock()
    mark = Watermark(clock)
    spent_s = {True: 0.0, False: 0.0}
    for seq in range(1, 20_000):
        looks_back = mark.after()[2] < seq - 1
        took_s = 0.2 if looks_back else 0.001
        spent_s[looks_back] += took_s
        clock.now += took_s
        mark.claimed([(2, seq)], full=True)
    # Each of the four ways to look back may take 1/COST_SHARE of the time.
    assert spent_s[True] <= 5 / COST_SHARE * (spent_s[True] + spent_s[False])


def test_the_past_does_not_grow() -> None:
    clock = Clock()
    mark = Watermark(clock)
    for seq in range(1, 50_000):
        clock.now += 0.02
        claims(mark, clock, seq)
    assert len(mark._past) < 2_000


def test_the_end_of_a_long_transaction_is_noticed_once() -> None:
    clock = Clock()
    long = LongTransactions(clock)
    assert not long.ended([7, 8])
    clock.now += OPEN_LONG_S / 2
    assert not long.ended([7, 9]), "8 was short"
    clock.now += OPEN_LONG_S
    assert long.ended([9])
    assert not long.ended([9])
