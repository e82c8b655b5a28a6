"""Proves that a shard keeps what belongs to it, gives the rest away when it is full, and nothing else moves."""

from __future__ import annotations

import msgspec

from cogo.plugins.orchestrator.code import paths_of
from cogo.plugins.orchestrator.model import Arm
from cogo.plugins.orchestrator.shards import placed

SHARDS = [Arm(agent_id="rag/embed", lane=f"rag/embed/{n}", depth=0) for n in range(4)]


def chosen(arms: list[Arm], affinity: str) -> str:
    (one,) = [arm for arm in placed(arms, affinity) if arm.excluded_by is None]
    assert one.lane is not None
    return one.lane


def test_the_same_affinity_goes_to_the_same_shard_and_all_shards_get_some() -> None:
    homes = {f"m{n}": chosen(SHARDS, f"m{n}") for n in range(200)}
    assert homes == {name: chosen(SHARDS, name) for name in homes}
    assert len(set(homes.values())) == 4


def test_a_shard_that_goes_moves_only_its_own() -> None:
    fewer = SHARDS[:3]
    for n in range(100):
        before = chosen(SHARDS, f"m{n}")
        if before != "rag/embed/3":
            assert chosen(fewer, f"m{n}") == before


def test_a_full_shard_gives_away() -> None:
    home = chosen(SHARDS, "m")
    busy = [msgspec.structs.replace(arm, depth=20 if arm.lane == home else 2) for arm in SHARDS]
    assert chosen(busy, "m") != home
    even = [msgspec.structs.replace(arm, depth=20) for arm in SHARDS]
    assert chosen(even, "m") == home


def test_others_are_left_alone() -> None:
    arms = [*SHARDS[:1], Arm(agent_id="inline"), Arm(agent_id="rag/embed", version="2", lane="rag/embed/0")]
    assert placed(arms, "m") == arms
    down = [msgspec.structs.replace(SHARDS[0], excluded_by="paused"), SHARDS[1]]
    assert placed(down, "m") == down
    assert "belongs to" in str(next(arm.excluded_by for arm in placed(SHARDS, "m") if arm.excluded_by))


def test_what_a_payload_touches() -> None:
    assert paths_of({"path": "./a.py", "paths": ["b.py", 3, "a.py", "x\0"], "scope": {"files": ["c.py"]}}) == [
        "a.py", "b.py", "c.py",
    ]  # fmt: skip
    assert paths_of({"path": None, "scope": "all"}) == []
    assert len(paths_of({"paths": [f"{n}.py" for n in range(100)]})) == 16
