"""From readings to medians and verdicts, and from the document to a page and to a summary."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench import Gate, Reading
from drive import Runner
from machine import interpreter
from roster import COGO, FLOOR, PEERS

COMMAND = "python benchmarks/bus/run.py --write"
INTRODUCTION = f"""# Benchmarks of the bus

This page is written by `{COMMAND}`; do not edit it. It shows one run on one machine: read the ratios, which hold
to about 30% between runs on a shared machine, and not the absolute rates.

The command starts a Postgres of its own in a temporary folder (fsync on, the settings named below, the same
server for everybody over a unix socket), installs the peers at the pinned versions into environments of their
own, and gives every measurement a fresh database (the log is counted after 500 jobs in it). Each peer runs
with the settings that its documentation gives for throughput, with one worker process and logging off; its
driver is one short file in `benchmarks/bus/drivers`, and corrections to it are welcome. Within a round the
peers follow one another in changing order; the tables show the medians of the rounds.

How the figures are taken, by the same code for COGO and for the peers:

- A job does nothing but note its number and the time at which its handler started.
- Rates count from the first handler's start (or the first enqueue, where it says so) to the moment when the
  database, asked from outside, says that every job is completed. It is asked only after the worker has
  started its last handler, so that asking slows nobody. What a worker's first claim costs is not counted,
  whoever's it is.
- What a finished job leaves behind differs, and is part of its price: see the last column of the settings.
- "limit" is what the same kind of SQL does on a bare table without client work, by pgbench; for the pickup
  latency it is a bare psycopg loop of NOTIFY and claim.
- Peers that could not be installed or failed are listed as skipped with the reason.
"""


def figure(value: float) -> str:
    """Three significant digits or so; whole numbers from 100 on."""
    digits = next(digits for digits, least in enumerate((100, 10, 1, 0)) if abs(value) >= least)
    return f"{value:,.{digits}f}"


# -- one gate ----------------------------------------------------------------------------------


def gate(gate: Gate, readings: Mapping[str, list[Reading]], failed: Mapping[str, str]) -> dict[str, Any]:
    """The gate's part of the document. A peer that failed in one round has no median."""
    medians = {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in readings.items()
        if name not in failed
    }
    verdicts = [dataclasses.asdict(verdict) for verdict in gate.judge(medians)]
    return {
        "name": gate.name,
        "title": gate.title,
        "bar": gate.bar,
        "columns": dict(gate.columns),
        "peers": gate.peers,
        "readings": dict(readings),
        "medians": medians,
        "failed": dict(failed),
        "verdicts": verdicts,
    }


def state(found: Mapping[str, Any]) -> str:
    """pass, FAIL, or why there is no verdict."""
    hard = [verdict for verdict in found["verdicts"] if not verdict["aim"]]
    if hard:
        return "pass" if all(verdict["passed"] for verdict in hard) else "FAIL"
    reason = found["failed"].get(COGO.name)
    if reason is None:
        return "no peers to compare with"
    return reason if reason.startswith("not yet") else f"FAIL: {reason}"


def passed(document: Mapping[str, Any]) -> bool:
    return not any(state(found).startswith("FAIL") for found in document["gates"])


# -- the page ----------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])


def page(document: Mapping[str, Any]) -> str:
    parts = [
        INTRODUCTION,
        "## Gates\n",
        gates_table(document["gates"]) + "\n",
        *(gate_section(found) for found in document["gates"]),
        "## Settings\n",
        settings_table(document["settings"]) + "\n",
        skipped(document["skipped"]),
        "## Machine\n",
        machine(document) + "\n",
    ]
    return "\n".join(part for part in parts if part)


def gates_table(gates: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for found in gates:
        ratios = "; ".join(
            f"{verdict['what']}: {figure(verdict['value'])} ({verdict['bar']}{', aim' * verdict['aim']})"
            for verdict in found["verdicts"]
        )
        rows.append([found["name"], found["bar"], ratios or "-", state(found)])
    return table(["gate", "bar", "COGO's readings", "state"], rows)


def gate_section(found: Mapping[str, Any]) -> str:
    columns = found["columns"]
    rows = [
        [name, *(figure(median[key]) if key in median else "-" for key in columns)]
        for name, median in order(found["medians"])
    ]
    lines = [f"### {found['name']}\n", f"{found['title']}.\n"]
    if rows:
        lines.append(table(["", *columns.values()], rows) + "\n")
    lines += [f"- {name} is missing: {reason}" for name, reason in found["failed"].items()]
    return "\n".join(lines) + ("\n" if found["failed"] else "")


def order(medians: Mapping[str, Reading]) -> list[tuple[str, Reading]]:
    names = ["limit", COGO.name, *(peer.name for peer in PEERS)]
    return [(name, medians[name]) for name in names if name in medians]


def settings(runners: Mapping[str, Runner]) -> list[dict[str, str]]:
    """What was run with what, for the document."""
    return [
        {
            "name": peer.name,
            "version": peer.version or "this checkout",
            "interpreter": f"{'Node.js' if peer.language == 'node' else 'Python'} {interpreter(runners[peer.name])}",
            "settings": peer.settings,
            "share": f"{peer.share:g}",
            "keeps": peer.keeps,
        }
        for peer in (COGO, *PEERS, FLOOR)
        if peer.name in runners
    ]


def settings_table(found: Sequence[Mapping[str, str]]) -> str:
    head = ["", "version", "runs on", "settings", "share of the messages", "a finished job leaves"]
    rows = [
        [one[key] for key in ("name", "version", "interpreter", "settings", "share", "keeps")]
        for one in found
    ]
    return table(head, rows)


def skipped(found: Mapping[str, str]) -> str:
    return "\n".join(f"- {name} was skipped: {reason}" for name, reason in found.items()) + (
        "\n" if found else ""
    )


def machine(document: Mapping[str, Any]) -> str:
    found, options = document["machine"], document["options"]
    return (
        f"{found['date']}: {found['cpu']}, {found['cores']} cores, {found['memory_gb']} GB, Linux {found['kernel']}, "
        f"load {found['load_before']} before the run. Postgres {found['postgres']} with shared_buffers 256MB, "
        f"jit off, else its defaults. Python {found['python']}, Node.js {found['node'] or '-'}, psycopg "
        f"{found['psycopg']}, uvloop {found['uvloop']}, COGO {found['cogo']}. {options['messages']:,} messages, "
        f"rounds: {options['rounds']}, steady load {options['rate']:,} a second for {options['seconds']} s, "
        f"{options['done']:,} done rows."
    )


# -- the README --------------------------------------------------------------------------------

BEGIN, END = "<!-- benchmarks/bus/run.py --write -->\n", "<!-- end -->\n"
SHORT = (
    ("drain", "per_s", "drain, jobs/s"),
    ("end_to_end", "per_s", "end to end, jobs/s"),
    ("bulk", "per_s", "bulk enqueue, jobs/s"),
    ("single", "per_s", "single enqueue, jobs/s"),
    ("pickup", "p50_ms", "pickup p50, ms"),
    ("wal", "bytes", "WAL, bytes a job"),
)
"""What a reader of the README compares: gate, figure, heading."""


def into_readme(readme: str, document: Mapping[str, Any]) -> str:
    """The README with its table between BEGIN and END made anew."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md has no place for the table, between {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}{short_table(document)}\n{END}{after}"


def short_table(document: Mapping[str, Any]) -> str:
    gates = {found["name"]: found["medians"] for found in document["gates"]}
    names = dict.fromkeys(name for gate, _, _ in SHORT for name, _ in order(gates.get(gate, {})))
    rows = [
        [f"**{name}**" if name == COGO.name else name]
        + [figure(gates[gate][name][key]) if name in gates.get(gate, {}) else "-" for gate, key, _ in SHORT]
        for name in names
        if name != "limit"
    ]
    missed = [found["name"] for found in document["gates"] if state(found) != "pass"]
    when = f"{document['machine']['date']}, {document['machine']['cores']} shared cores, Postgres {document['machine']['postgres']}"
    rounds = f"medians of {document['options']['rounds']} rounds"
    bars = f"Bars of ours that this run missed: {', '.join(missed)}." if missed else "All bars held."
    noise = "Such ratios hold to about 30% between runs on a shared machine."
    return table(["", *(heading for _, _, heading in SHORT)], rows) + f"\n\n{when}, {rounds}. {noise} {bars}"


# -- the terminal ------------------------------------------------------------------------------


def summary(document: Mapping[str, Any]) -> str:
    lines = []
    for found in document["gates"]:
        lines.append(f"{found['name']:11} {state(found)}")
        for name, median in order(found["medians"]):
            values = ", ".join(
                f"{heading} {figure(median[key])}"
                for key, heading in found["columns"].items()
                if key in median
            )
            lines.append(f"    {name:16} {values}")
        lines += [f"    {name:16} failed: {reason}" for name, reason in found["failed"].items()]
        for verdict in found["verdicts"]:
            mark = "pass" if verdict["passed"] else ("aim missed" if verdict["aim"] else "FAIL")
            lines.append(f"    -> {verdict['what']}: {figure(verdict['value'])} ({verdict['bar']}) {mark}")
    lines += [f"skipped {name}: {reason}" for name, reason in document["skipped"].items()]
    return "\n".join(lines)
