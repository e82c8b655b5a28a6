"""Two COGO processes against one, and where the CPU seconds of a message go."""

from __future__ import annotations

from contextlib import ExitStack

from bench import UNBOUNDED, Bench, Gate, Reading, ask_until_finished, at_least, own
from cluster import cpu_s
from roster import Peer

POLL_S = 0.05


def scale(bench: Bench, peer: Peer) -> Reading:
    one, two = _drain(bench, peer, 1), _drain(bench, peer, 2)
    reading = {f"one_{name}": value for name, value in one.items()}
    reading |= {f"two_{name}": value for name, value in two.items()}
    return reading | {"two_of_one": two["per_s"] / one["per_s"]}


def _drain(bench: Bench, peer: Peer, processes: int) -> Reading:
    """The database is asked all the time here: no process knows how many the other one has handled."""
    count = bench.count(peer, 2.0)
    with bench.database(peer) as dsn:
        bench.enqueue(peer, dsn, count)
        bench.cluster.admin.execute("CHECKPOINT")
        server_s = bench.cluster.cpu_s()
        with ExitStack() as stack:
            workers = [
                stack.enter_context(bench.runner(peer).start("work", dsn, total=UNBOUNDED))
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


SCALE = Gate(
    name="scale",
    title="COGO's drain with two processes against one, and CPU time a message",
    columns={
        "one_per_s": "one, msg/s",
        "two_per_s": "two, msg/s",
        "one_client_us": "one, client CPU, us",
        "one_server_us": "one, server CPU, us",
        "two_client_us": "two, client CPU, us",
        "two_server_us": "two, server CPU, us",
    },
    bar="1.6x (the server shares the cores: on two cores this may be out of reach)",
    measure=scale,
    judge=lambda medians: at_least("two processes, of one", own(medians, "two_of_one"), 1.6),
    peers=False,
)
