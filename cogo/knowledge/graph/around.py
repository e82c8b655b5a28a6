"""What files of the code graph stand near others: by imports, either way, two steps far."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final, Protocol

STAYS: Final = 0.5
"""Of a file's weight; the rest goes to its neighbours in equal parts (personalised PageRank, cut after two steps)."""
STEPS: Final = 2
FILES_MAX: Final = 64
"""That are asked about, and that are taken along at each step."""
NEIGHBOURS_MAX: Final = 2_000

_FILES = """
SELECT f.id, r.name || ':' || f.path AS name FROM cogo.kg_files f JOIN cogo.kb_repos r ON r.id = f.repo_id
WHERE r.tenant = %(tenant)s AND f.path = ANY (%(paths)s) ORDER BY f.id LIMIT %(limit)s
"""
_NEIGHBOURS = """
SELECT DISTINCT found.a, found.b, r.name || ':' || f.path AS name FROM (
  SELECT e.file_id AS a, n.file_id AS b
  FROM cogo.kg_edges e JOIN cogo.kg_nodes n ON n.id = e.dst
  WHERE e.file_id = ANY (%(files)s) AND e.kind = 'imports'
  UNION ALL
  SELECT n.file_id, e.file_id
  FROM cogo.kg_nodes n JOIN cogo.kg_edges e ON e.dst = n.id AND e.kind = 'imports'
  WHERE n.file_id = ANY (%(files)s)
) found JOIN cogo.kg_files f ON f.id = found.b JOIN cogo.kb_repos r ON r.id = f.repo_id
WHERE found.a <> found.b ORDER BY found.a, found.b LIMIT %(limit)s
"""


class Reader(Protocol):
    """A Database, or a transaction."""

    async def fetch(self, sql: str, params: Any = ()) -> list[dict[str, Any]]: ...


async def around(db: Reader, tenant: str, paths: list[str]) -> dict[str, float]:
    """The files and their neighbours as `repository:path` with weights that sum to 1; empty: none is in the graph."""
    rows = await db.fetch(_FILES, {"tenant": tenant, "paths": paths, "limit": FILES_MAX})
    if not rows:
        return {}
    names = {row["id"]: row["name"] for row in rows}
    spread: dict[int, float] = defaultdict(float)
    moving = {row["id"]: 1 / len(rows) for row in rows}
    for _ in range(STEPS):
        params = {"files": list(moving), "limit": NEIGHBOURS_MAX}
        neighbours: dict[int, list[int]] = defaultdict(list)
        for row in await db.fetch(_NEIGHBOURS, params):
            neighbours[row["a"]].append(row["b"])
            names[row["b"]] = row["name"]
        moving = _moved(moving, neighbours, spread)
        if not moving:
            break
    for file, weight in moving.items():
        spread[file] += weight
    return {names[file]: weight for file, weight in spread.items()}


def _moved(
    moving: dict[int, float], neighbours: dict[int, list[int]], spread: dict[int, float]
) -> dict[int, float]:
    """Leave what stays, and give the rest on; who has no neighbours keeps all."""
    following: dict[int, float] = defaultdict(float)
    for file, weight in moving.items():
        found = neighbours.get(file, [])
        spread[file] += weight * (STAYS if found else 1)
        for other in found:
            following[other] += weight * (1 - STAYS) / len(found)
    heaviest = sorted(following.items(), key=lambda one: (-one[1], one[0]))
    for file, weight in heaviest[FILES_MAX:]:
        spread[file] += weight
    return dict(heaviest[:FILES_MAX])
