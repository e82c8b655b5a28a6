"""Two COGO processes against one, and where the CPU seconds of a message go."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

from bench import UNBOUNDED, Bench, Gate, Medians, Reading, Verdict, ask_until_finished, at_least, own
from cluster import cpu_s
from roster import Peer

POLL_S = 0.05


WORK = {"sum_to": 50_000, "concurrency": 100}
"""A handler that keeps Python busy for about 1 ms: then it is the process that is the limit."""

LOOP_S = 2
LOOP = f"""
import time
end, done = time.monotonic() + {LOOP_S}, 0
while time.monotonic() < end:
    sum(range({WORK["sum_to"]}))
    done += 1
print(done)
"""


def scale(bench: Bench, peer: Peer) -> Reading:
    one, two = _drain(bench, peer, 1, 2.0), _drain(bench, peer, 2, 2.0)
    busy_one, busy_two = _drain(bench, peer, 1, 0.2, **WORK), _drain(bench, peer, 2, 0.2, **WORK)
    reading = {f"one_{name}": value for name, value in one.items()}
    reading |= {f"two_{name}": value for name, value in two.items()}
    return reading | {
        "busy_one_per_s": busy_one["per_s"],
        "busy_two_per_s": busy_two["per_s"],
        "busy_two_of_one": busy_two["per_s"] / busy_one["per_s"],
        "bare_two_of_one": sum(_loops(2)) / sum(_loops(1)),
        "two_of_one": two["per_s"] / one["per_s"],
    }


def _loops(processes: int) -> list[int]:
    """How often each of so many Python processes without a bus does a handler's work in LOOP_S."""
    begun = [
        subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return [int(process.communicate(timeout=60)[0]) for process in begun]


def _drain(bench: Bench, peer: Peer, processes: int, factor: float, **handler: int) -> Reading:
    """The database is asked all the time here: no process knows how many the other one has handled."""
    count = bench.count(peer, factor)
    with bench.database(peer) as dsn:
        bench.enqueue(peer, dsn, count)
        bench.cluster.admin.execute("CHECKPOINT")
        server_s = bench.cluster.cpu_s()
        with ExitStack() as stack:
            workers = [
                stack.enter_context(bench.runner(peer).start("work", dsn, total=UNBOUNDED, **handler))
                for _ in range(processes)
            ]
            for worker in workers:
                worker.wait("ready", 60)
            ended = ask_until_finished(peer, dsn, count, POLL_S)
            server_s = bench.cluster.cpu_s() - server_s
            client_s = sum(cpu_s(worker.pid) for worker in workers)
            starts = sorted(ns for worker in workers for _, ns in worker.stop()["starts"])
    return {
        "per_s": count / (ended - starts[0]) * 1e9,
        "client_us": client_s / count * 1e6,
        "server_us": server_s / count * 1e6,
    }


def judge(medians: Medians) -> list[Verdict]:
    return [
        *at_least("two processes, of one", own(medians, "two_of_one"), 1.6),
        *at_least("the same with handlers of 1 ms of Python", own(medians, "busy_two_of_one"), 1.6),
    ]


SCALE = Gate(
    name="scale",
    title="COGO's drain with two processes against one, and CPU time a message",
    columns={
        "busy_one_per_s": "one, 1 ms of Python each, msg/s",
        "busy_two_per_s": "two, 1 ms of Python each, msg/s",
        "busy_two_of_one": "two of one",
        "bare_two_of_one": "bare Python loops, two of one, for comparison",
        "one_per_s": "one, no-ops, msg/s",
        "two_per_s": "two, no-ops, msg/s",
        "two_of_one": "no-ops, two of one",
        "one_client_us": "one, client CPU, us",
        "one_server_us": "one, server CPU, us",
        "two_client_us": "two, client CPU, us",
        "two_server_us": "two, server CPU, us",
    },
    bar="1.6x (for no-ops the server, which shares the cores, is the limit)",
    measure=scale,
    judge=judge,
    peers=False,
)
