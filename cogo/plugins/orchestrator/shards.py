"""Which shard of a lane: what belongs together goes to the same one, unless that one has too much to do.

Rendezvous hashing with bounded loads: every shard ranks by a hash of the affinity and its own name, and the first
with room takes the work. A shard that comes or goes moves only what was its own.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from typing import Final

import msgspec

from .model import Arm

LOAD: Final = 1.25
"""Times its even share of what waits; a shard that has as much gets nothing more."""


def placed(arms: list[Arm], affinity: str) -> list[Arm]:
    """The arms, of each that has several shards one alone; the others are excluded by where the work belongs."""
    shards: dict[str, list[int]] = defaultdict(list)
    for i, arm in enumerate(arms):
        if arm.lane is not None and arm.excluded_by is None:
            shards[arm.key].append(i)
    found = list(arms)
    for among in shards.values():
        if len(among) > 1:
            chosen = _chosen([arms[i] for i in among], affinity)
            for i in among:
                if arms[i] is not chosen:
                    why = f"shard: {affinity} belongs to {chosen.lane}"
                    found[i] = msgspec.structs.replace(arms[i], excluded_by=why)
    return found


def _chosen(shards: list[Arm], affinity: str) -> Arm:
    room = math.ceil(LOAD * (sum(arm.depth or 0 for arm in shards) + 1) / len(shards))
    ranked = sorted(shards, key=lambda arm: _rank(affinity, arm.lane or ""), reverse=True)
    return next(arm for arm in ranked if (arm.depth or 0) < room)


def _rank(affinity: str, lane: str) -> bytes:
    return hashlib.blake2b(f"{affinity}\0{lane}".encode(), digest_size=8).digest()
