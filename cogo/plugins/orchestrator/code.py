"""Which code a task touches, as far as its payload says and the code graph knows."""

from __future__ import annotations

from typing import Any, Final

from .model import Modules, Reader

PATHS_MAX: Final = 16
MODULES_MAX: Final = 16
"""The heaviest ones; the others say little."""
NAMES: Final = ("path", "paths", "file", "files")
LENGTH_MAX: Final = 1_000


def paths_of(payload: dict[str, Any]) -> list[str]:
    """What `path`, `paths`, `file` and `files` of the payload, or of its `scope`, name."""
    found: dict[str, None] = {}
    for part in (payload, payload.get("scope")):
        if isinstance(part, dict):
            for name in NAMES:
                value = part.get(name)
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, str) and 0 < len(one) <= LENGTH_MAX and "\0" not in one:
                        found[one.removeprefix("./")] = None
    return list(found)[:PATHS_MAX]


async def touched(db: Reader, tenant: str, payload: dict[str, Any]) -> Modules:
    """Modules with weights, the heaviest first; of code that no graph knows the paths themselves."""
    if not (paths := paths_of(payload)):
        return ()
    from cogo.knowledge.graph.around import around

    weights = await around(db, tenant, paths) or {path: 1 / len(paths) for path in paths}
    heaviest = sorted(weights.items(), key=lambda one: (-one[1], one[0]))[:MODULES_MAX]
    total = sum(weight for _, weight in heaviest)
    return tuple((name, round(weight / total, 6)) for name, weight in heaviest)
