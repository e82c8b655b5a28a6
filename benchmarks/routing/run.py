"""How well COGO routes, beside others in the same worlds, and whether it keeps its promises.

    python benchmarks/routing/run.py [--short] [--worlds NAMES] [--seeds N,N] [--tasks N] [--routers cogo,simple,limits,peers]
        [--guarantees NAMES] [--graded WHEEL] [--json] [--write] [--from FILE]

COGO is asked over HTTP: each world and seed is a tenant of its own on one fresh `cogo serve --roles orchestrator
--simulation`. The others get the same tasks with the same random numbers, without HTTP; the peers run in an environment
of their own, which is made the first time. Regret is divided by that of random choice in the same world. The wheel of
`paretobandit`, whose graded prompts are the replay, is fetched when it isn't given.

`--short` takes ten minutes: three worlds, two seeds, 1,000 tasks, all guarantees with few repetitions. `--write` makes
docs/benchmarks-routing.md; `--from` takes what earlier runs of parts printed with `--json` in the place of a run. Exit code 1 when a
must isn't met. Whoever interrupts it gets the tables of what was read until then.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import baselines
import driving
import guarantees
import peers
import report
import serving
import worlds

COGO = "COGO"
KINDS = {
    "cogo": [COGO],
    "simple": [name for name in baselines.SIMPLE if name != baselines.KNOWING],
    "limits": [baselines.HINDSIGHT, baselines.KNOWING],
    "peers": list(baselines.PEERS),
}
SHORT = {"worlds": "stationary,outage,new version", "seeds": "101,102", "tasks": 1_000}
FULL = {"worlds": ",".join(report.BARS), "seeds": "101,102,103,104", "tasks": 2_000}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--worlds", help="`none`: only guarantees")
    parser.add_argument("--seeds")
    parser.add_argument("--tasks", type=int)
    parser.add_argument("--routers", default=",".join(KINDS))
    parser.add_argument("--guarantees", default=",".join(guarantees.ALL), help="`none`: only worlds")
    parser.add_argument("--graded", type=Path)
    parser.add_argument("--json", action="store_true", help="print the readings instead of tables")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--from", dest="earlier", type=Path, nargs="+")
    args = parser.parse_args()
    for name, value in (SHORT if args.short else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    names = listed(args.worlds)
    if unknown := [name for name in names if name not in report.BARS]:
        parser.error(f"unknown worlds {', '.join(unknown)}; there are {', '.join(report.BARS)}")
    if unknown := [name for name in listed(args.guarantees) if name not in guarantees.ALL]:
        parser.error(f"unknown guarantees {', '.join(unknown)}; there are {', '.join(guarantees.ALL)}")
    return args


def listed(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


def readings(args: argparse.Namespace, scratch: Path, kinds: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each router, world and seed."""
    names, seeds = listed(args.worlds), [int(one) for one in args.seeds.split(",")]
    wheel = args.graded.resolve() if args.graded else None
    if "replay" in names and wheel is None:
        wheel = peers.wheel(scratch)
    ours = [router for kind in ("simple", "limits") if kind in kinds for router in KINDS[kind]]
    if ours:
        for name, seed, router in itertools.product(names, seeds, ours):
            found = baselines.read(
                router, lambda name=name, seed=seed: worlds.made(name, seed, args.tasks, wheel)
            )
            yield row(router, name, seed, found)
    if "peers" in kinds:
        yield from peers.readings(KINDS["peers"], names, seeds, args.tasks, wheel)
    if "cogo" in kinds and names:
        with serving.site(scratch / "worlds") as site, site.client(site.serve()[1]) as client:
            for name, seed in itertools.product(names, seeds):
                world = worlds.made(name, seed, args.tasks, wheel)
                router = serving.Cogo(client, f"{name.replace(' ', '-')}-{seed}", world)
                yield row(COGO, name, seed, driving.drive(world, router))


def row(router: str, name: str, seed: int, found: driving.Reading) -> dict[str, Any]:
    return {"router": router, "world": name, "seed": seed} | driving.as_json(found)


def about(args: argparse.Namespace) -> dict[str, Any]:
    """What it ran on, and the load of others before it began."""
    return {
        "date": datetime.now(UTC).date().isoformat(), "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2), "python": platform.python_version(),
        "cogo": version("cogo-agents"), "peers": list(baselines.PACKAGES), "worlds": listed(args.worlds),
        "seeds": args.seeds, "tasks": args.tasks, "short": args.short,
        "command": " ".join(["python benchmarks/routing/run.py", *commanded(sys.argv[1:])]),
    }  # fmt: skip


def commanded(given: list[str]) -> list[str]:
    """The command line without where somebody's wheel lies."""
    kept, skip = [], False
    for one in given:
        if not skip and one != "--graded":
            kept.append(f'"{one}"' if " " in one else one)
        skip = one == "--graded"
    return kept


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything that was asked for; who interrupts it gets what was read until then."""
    document: dict[str, Any] = {"about": about(args), "readings": [], "guarantees": []}
    with tempfile.TemporaryDirectory() as folder:
        try:
            fill(document, args, Path(folder))
        except (KeyboardInterrupt, SystemExit):
            document["about"]["command"] += " (interrupted)"
    document["about"]["load_after"] = round(os.getloadavg()[0], 2)
    return document


def fill(document: dict[str, Any], args: argparse.Namespace, scratch: Path) -> None:
    """With a line on stderr for each part, since it takes long."""
    for found in readings(args, scratch, args.routers.split(",")):
        document["readings"].append(found)
        said = f"{found['world']}, seed {found['seed']}, {found['router']}: {found['regret']:.3f}"
        print(said, file=sys.stderr, flush=True)
    sizes = guarantees.SHORT if args.short else guarantees.Sizes()
    for promise in guarantees.rows(listed(args.guarantees), sizes, scratch):
        document["guarantees"].append(dataclasses.asdict(promise))
        print(guarantees.line(promise), file=sys.stderr, flush=True)


def merged(files: list[Path]) -> dict[str, Any]:
    """What several runs of parts read. Of what was read twice the later reading counts."""
    first, *others = (json.loads(file.read_text()) for file in files)
    for other in others:
        first["readings"] += other["readings"]
        first["guarantees"] += other["guarantees"]
        first["about"]["command"] += f"; {other['about']['command']}"
        first["about"]["load_after"] = other["about"]["load_after"]
    for part, names in (("readings", ("router", "world", "seed")), ("guarantees", ("name", "what"))):
        first[part] = list({tuple(row[name] for name in names): row for row in first[part]}.values())
    return first


def main() -> int:
    args = arguments()
    document = merged(args.earlier) if args.earlier else measured(args)
    if args.json:
        json.dump(document, sys.stdout, indent=1)
        print()
    else:
        print(report.tables(document))
    if args.write:
        report.PAGE.write_text(report.page(document))
    return 1 if report.failed(document) else 0


if __name__ == "__main__":
    serving.ends_in_order()
    sys.exit(main())
