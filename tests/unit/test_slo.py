"""Proves how fast an error budget is said to burn, when that is a page, and that few runs are no proof."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cogo.plugins.orchestrator.model import Forecast, Past, Task
from cogo.plugins.orchestrator.slo import BUCKET_MS, Runs

PAST = Past(
    arm="a", task=Task("do"), n=0, at_ms=0, forecast=Forecast(means=[], spreads=[], shares=[]), ok=True
)
HOUR = 3_600_000


def ran(runs: Runs, n: int, at_ms: int, **about: Any) -> None:
    for _ in range(n):
        runs.note(msgspec.structs.replace(PAST, at_ms=at_ms, **about))


def test_rates_are_shares_of_what_the_target_allows() -> None:
    runs = Runs()
    ran(runs, 190, 10 * HOUR)
    ran(runs, 10, 10 * HOUR, ok=False)
    found = runs.burn(10 * HOUR, 0.95)
    assert found.rates == pytest.approx(dict.fromkeys(found.rates, 1.0))
    assert found.page is None
    later = runs.burn(12 * HOUR, 0.95).rates
    assert (later["1h"], later["6h"]) == (None, pytest.approx(1.0))
    assert runs.burn(100 * HOUR, 0.95).rates["3d"] is None


def test_a_fast_burn_is_a_page_and_few_runs_are_not() -> None:
    runs = Runs()
    ran(runs, 3, HOUR, ok=False)
    assert runs.burn(HOUR, 0.95).page is None, "three runs"
    ran(runs, 60, HOUR, ok=False)
    page = runs.burn(HOUR, 0.95).page
    assert page is not None
    assert "1h" in page
    ran(runs, 500, HOUR + 6 * BUCKET_MS)
    assert runs.burn(HOUR + 6 * BUCKET_MS, 0.95).page is None, "its last five minutes are good"


def test_late_runs_are_bad_and_callers_faults_are_none() -> None:
    runs = Runs()
    ran(runs, 10, HOUR, latency_ms=200.0, slo_ms=100.0)
    ran(runs, 10, HOUR, latency_ms=50.0, slo_ms=100.0)
    ran(runs, 10, HOUR, ok=False, error_class="caller")
    assert runs.burn(HOUR, 0.5).rates["1h"] == pytest.approx(1.0)
