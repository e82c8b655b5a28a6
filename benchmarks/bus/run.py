"""COGO's bus beside its peers: every gate of the bus, measured in one run on one machine.

    python benchmarks/bus/run.py [--gates drain,single] [--peers all|none|a,b] [--rounds 3] [--messages N]
                                 [--seconds 30] [--done 1000000] [--quick] [--json] [--write] [--from FILE]

Starts a Postgres of its own (fsync on) in a temporary folder, installs what is missing of the peers below
benchmarks/bus/.peers (from PyPI and npm, pinned), and gives every measurement a fresh database. Within a
round all peers follow one another, so that drift of the machine hits all; medians of the rounds count.
--quick is one round of few messages with the peers that are installed. --json prints the whole document,
--write renders it as docs/benchmarks.md and as the README's table; with --from an earlier document is rendered, nothing is measured.
Linux only: it reads /proc. Exit code 1 when a bar does not hold, 0 otherwise; skipped peers fail nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import cluster
import machine
import report
from bench import Bench, Gate, Options, Reading
from drive import Failed, Runner
from gates import GATES
from install import ROOT, runner
from roster import COGO, FLOOR, PEERS, Peer

PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
QUICK = Options(messages=4_000, rounds=1, seconds=6, done=100_000)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def chosen(names: str, known: list[str], what: str) -> list[str]:
    if names in {"all", "none"}:
        return known if names == "all" else []
    found = [name.strip() for name in names.split(",") if name.strip()]
    if wrong := [name for name in found if name not in known]:
        raise SystemExit(f"no such {what}: {', '.join(wrong)}; there are: {', '.join(known)}")
    return found


def prepare(names: list[str], *, install: bool) -> tuple[dict[str, Runner], dict[str, str]]:
    """Runners of COGO and the peers; and why others can't be run."""
    runners, skipped = {FLOOR.name: runner(FLOOR)}, {}
    for peer in (COGO, *(peer for peer in PEERS if peer.name in names)):
        try:
            runners[peer.name] = runner(peer, install=install)
        except Failed as error:
            skipped[peer.name] = str(error)
            say(f"{peer.name}: skipped, {error}")
    return runners, skipped


def measure(bench: Bench, gate: Gate) -> dict[str, Any]:
    """All rounds of one gate: readings and failures by peer."""
    peers = [peer for peer in (COGO, *PEERS) if peer.name in bench.runners and (gate.peers or peer.is_cogo)]
    readings: dict[str, list[Reading]] = {}
    failed: dict[str, str] = {}
    for number in range(bench.options.rounds):
        turn = number % len(peers)
        for name, step in steps(bench, gate, peers[turn:] + peers[:turn]):
            if name in failed:
                continue
            try:
                reading = step()
            except Exception as error:  # noqa: BLE001 (one peer's trouble never stops the run)
                failed[name] = f"{error}" if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
                say(f"  {name}: failed, {failed[name]}")
            else:
                readings.setdefault(name, []).append(reading)
                say(
                    f"  {name}: "
                    + ", ".join(f"{key} {report.figure(value)}" for key, value in reading.items())
                )
    return report.gate(gate, readings, failed) | {"load_after": round(os.getloadavg()[0], 2)}


def steps(bench: Bench, gate: Gate, peers: list[Peer]) -> list[tuple[str, Any]]:
    found = [(peer.name, lambda peer=peer: gate.measure(bench, peer)) for peer in peers]
    return found if gate.limit is None else [("limit", lambda: gate.limit(bench)), *found]


def run(gates: list[Gate], options: Options, names: list[str], *, install: bool) -> dict[str, Any]:
    runners, skipped = prepare(names, install=install)
    document = {"machine": machine.describe(runners), "options": dataclasses.asdict(options), "gates": []}
    with cluster.running() as server:
        document["machine"]["postgres"] = server.value("SHOW server_version")
        bench = Bench(server, runners, options)
        for gate in gates:
            say(f"{gate.name}: {gate.title}")
            document["gates"].append(measure(bench, gate))
    return document | {"settings": report.settings(runners), "skipped": skipped}


def judged_again(document: dict[str, Any]) -> dict[str, Any]:
    """An earlier document with its readings, and the titles and bars of today."""
    by_name = {gate.name: gate for gate in GATES}
    gates = [
        found | report.gate(by_name[found["name"]], found["readings"], found["failed"])
        for found in document["gates"]
    ]
    return document | {"gates": gates}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gates", default="all")
    parser.add_argument("--peers", default="all")
    for field in dataclasses.fields(Options):
        if field.name != "batch":
            parser.add_argument(f"--{field.name}", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--from", dest="file", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.file is not None:
        document = judged_again(json.loads(args.file.read_text()))
    else:
        names = chosen(args.gates, [gate.name for gate in GATES], "gate")
        given = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(Options)}
        base = QUICK if args.quick else Options()
        options = dataclasses.replace(
            base, **{name: value for name, value in given.items() if value is not None}
        )
        document = run(
            [gate for gate in GATES if gate.name in names], options,
            chosen(args.peers, [peer.name for peer in PEERS], "peer"), install=not args.quick,
        )  # fmt: skip
    if args.write:
        if {found["name"] for found in document["gates"]} != {gate.name for gate in GATES}:
            sys.exit("--write needs a run of all gates: the page and the README show all of them")
        PAGE.write_text(report.page(document))
        README.write_text(report.into_readme(README.read_text(), document))
    print(json.dumps(document) if args.json else report.summary(document))
    sys.exit(0 if report.passed(document) else 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
