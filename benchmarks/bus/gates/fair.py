"""One hot tenant with nine tenths of the load beside a hundred small ones, on one lane of COGO."""

from __future__ import annotations

from collections import Counter
from typing import Any

import cogo
from bench import (
    LIMIT_S,
    POLL_S,
    UNBOUNDED,
    Bench,
    Gate,
    Medians,
    Reading,
    Verdict,
    ask_until,
    at_least,
    own,
    percentile,
)
from drive import Failed, Runner
from install import runner
from roster import COGO_FAIR, Peer

from .pickup import WARM

HOT = ["hot"]
SMALL = [f"small-{number}" for number in range(100)]
HANDLER = {"concurrency": 20, "handle_ms": 5}
SERVED = "SELECT NOT EXISTS (SELECT FROM public.agent_messages WHERE tenant <> 'hot' AND status = 'queued')"
EACH = 40
"""Messages of each small tenant where shares are counted; the hot one has nine times as many as all of them."""
PACED = 200
"""Messages of small tenants where latency is measured, one every 15 to 25 ms."""
BACKLOG = 24_000
"""Of the hot tenant meanwhile: more than the handlers can do in that time."""


def fair(bench: Bench, peer: Peer) -> Reading:
    if "fair" not in cogo.Role.__struct_fields__:
        raise Failed("not yet: Role has no `fair`")
    solo, beside = _small_p99_ms(bench, peer, hot=False), _small_p99_ms(bench, peer, hot=True)
    return {
        "jain": _jain(bench, peer),
        "solo_p99_ms": solo,
        "beside_p99_ms": beside,
        "p99_ratio": beside / solo,
    }


def _enqueue(bench: Bench, dsn: str, tenants: list[str], first: int, count: int) -> None:
    options: dict[str, Any] = {"tenants": tenants, "first": first, "count": count}
    _runner().call("enqueue", dsn, LIMIT_S, batch=bench.options.batch, **options)


def _runner() -> Runner:
    return runner(COGO_FAIR)


def _jain(bench: Bench, peer: Peer) -> float:
    """Of what each tenant got by the time when the first small one had all of its own.

    Until then all 101 have work waiting, and a fair lane gives each the same.
    """
    small = EACH * len(SMALL)
    hot = 9 * small
    with bench.database(peer) as dsn:
        _enqueue(bench, dsn, HOT, 0, hot)
        _enqueue(bench, dsn, SMALL, hot, small)
        with _runner().worker(dsn, UNBOUNDED, **HANDLER) as worker:
            ask_until(SERVED, dsn, 10 * POLL_S)
            starts = sorted(worker.stop()["starts"], key=lambda start: start[1])
    got: Counter[int] = Counter()
    for number, _ in starts:
        tenant = -1 if number < hot else number % len(SMALL)
        got[tenant] += 1
        if tenant >= 0 and got[tenant] == EACH:
            break
    return sum(got.values()) ** 2 / ((len(SMALL) + 1) * sum(n * n for n in got.values()))


def _small_p99_ms(bench: Bench, peer: Peer, *, hot: bool) -> float:
    """From the enqueue's return to the handler's start, of small tenants' messages that come one by one."""
    with bench.database(peer, waking=True) as dsn, _runner().worker(dsn, UNBOUNDED, **HANDLER) as worker:
        if hot:
            _enqueue(bench, dsn, HOT, WARM + PACED, BACKLOG)
        options = {"tenants": SMALL, "count": WARM + PACED, "min_ms": 15, "max_ms": 25}
        sent = _runner().call("pace", dsn, LIMIT_S, **options)["sent"]
        ask_until(SERVED, dsn, POLL_S)
        starts = dict(worker.stop()["starts"])
    return percentile([(starts[n] - returned) / 1e6 for n, _, returned in sent[WARM:]], 0.99)


def judge(medians: Medians) -> list[Verdict]:
    ratio = own(medians, "p99_ratio")
    found = at_least("Jain index over 101 tenants", own(medians, "jain"), 0.95)
    if ratio is not None:
        found.append(Verdict("small tenants' p99, of solo", ratio, "< 2", ratio < 2))
    return found


FAIR = Gate(
    name="fair",
    title="A hot tenant with 90% of the load beside 100 small ones on one lane of COGO",
    columns={
        "jain": "Jain index",
        "solo_p99_ms": "small alone, p99, ms",
        "beside_p99_ms": "small beside hot, p99, ms",
    },
    bar="Jain index 0.95; small tenants' p99, from the enqueue to the handler's start, below 2x of alone",
    measure=fair,
    judge=judge,
    peers=False,
)
