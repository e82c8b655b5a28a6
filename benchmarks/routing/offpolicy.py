"""How far COGO's estimates of what other policies are worth are from the truth, which worlds know.

    python benchmarks/routing/offpolicy.py [--seeds N,N] [--tasks N]

Each seed is a stationary world and a tenant of its own, driven through HTTP as in run.py; then `/api/orchestrator/evaluate`
is asked about the arm that is the best one in hindsight, and about uniform choice. Exit 1 when the root mean square
error of DR is above MUST for either.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import worlds
from serving import drive, served

if TYPE_CHECKING:
    import httpx

MUST, AIM = 0.06, 0.04
ESTIMATORS = ("ips", "snips", "dr")


def errors_of(client: httpx.Client, world: worlds.World, tenant: str) -> dict[str, dict[str, float]]:
    """Of each target and estimator the estimate less the truth; `covered`: whether the interval of DR has the truth."""
    values = np.mean([world.expected(n) for n in range(world.tasks)], axis=0)
    best = int(values.argmax())
    targets = {"best arm": (f"arm:arm-{best}", values[best]), "uniform": ("uniform", values.mean())}
    found = {}
    for name, (policy, truth) in targets.items():
        about = {"tenant": tenant, "policy": policy, "limit": world.tasks}
        answer = client.get("/api/orchestrator/evaluate", params=about)
        answer.raise_for_status()
        report = answer.json()
        found[name] = {one: report[one]["value"] - truth for one in ESTIMATORS}
        low, high = report["dr"]["ci"]
        found[name] |= {
            "covered": low <= truth <= high, "ess": report["effective_sample_size"], "used": report["used"],
        }  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="201,202,203,204,205,206,207,208")
    parser.add_argument("--tasks", type=int, default=3_000)
    args = parser.parse_args()
    readings = []
    with tempfile.TemporaryDirectory() as scratch, served(Path(scratch)) as client:
        for seed in (int(one) for one in args.seeds.split(",")):
            world = worlds.World(seed, tasks=args.tasks)
            drive(client, world, f"world-{seed}")
            readings.append(errors_of(client, world, f"world-{seed}"))
            print(f"seed {seed}: " + ", ".join(f"{name} {one['dr']:+.3f}" for name, one in readings[-1].items()),
                  file=sys.stderr, flush=True)  # fmt: skip
    return table(readings)


def table(readings: list[dict[str, dict[str, float]]]) -> int:
    """Print a row for each target; 1 when DR misses the bar."""
    failed = 0
    print("| target | IPS | SNIPS | DR | must | aim | | DR's 95 % has the truth | effective sample |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in readings[0]:
        of = [one[name] for one in readings]
        rmse = {key: float(np.sqrt(np.mean([one[key] ** 2 for one in of]))) for key in ESTIMATORS}
        met = "aim" if rmse["dr"] <= AIM else "must" if rmse["dr"] <= MUST else "FAIL"
        failed += met == "FAIL"
        shown = " | ".join(f"{value:.3f}" for value in rmse.values())
        covered, ess = sum(one["covered"] for one in of), np.mean([one["ess"] for one in of])
        print(f"| {name} | {shown} | {MUST} | {AIM} | {met} | {covered:.0f} of {len(of)} | {ess:.0f} |")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
