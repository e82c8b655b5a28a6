"""Every SQL statement of the code graph. `%(repo)s` is the id of one tenant's repository."""

from __future__ import annotations

from functools import cache
from typing import get_args

from .facts import EdgeKind

# -- building ---------------------------------------------------------------------------------

LOCK_REPO = "SELECT pg_advisory_xact_lock(hashtextextended('kg:' || %s::text, 0))"
DIGESTS = "SELECT id, path, digest FROM cogo.kg_files WHERE repo_id = %s"
# What files say, before they are written again.
NODES_OF = "SELECT id, file_id, kind, qualname FROM cogo.kg_nodes WHERE file_id = ANY (%s) ORDER BY id"
ALIASES_OF = "SELECT kind, name, target FROM cogo.kg_aliases WHERE file_id = ANY (%s)"
BASES_OF = """
SELECT src, dst FROM cogo.kg_edges WHERE file_id = ANY (%s) AND kind = 'inherits' AND dst IS NOT NULL ORDER BY id
"""
PUT_FILES = """
INSERT INTO cogo.kg_files (repo_id, path, digest, module, packaged, source, note, lang, is_test, words)
SELECT %(repo)s, * FROM unnest(%(paths)s::text[], %(digests)s::bytea[], %(modules)s::text[], %(packaged)s::boolean[],
  %(sources)s::text[], %(notes)s::text[], %(langs)s::text[], %(tests)s::boolean[],
  %(words)s::text[])
ON CONFLICT (repo_id, path) DO UPDATE SET digest = excluded.digest, module = excluded.module,
  packaged = excluded.packaged, source = excluded.source, note = excluded.note, lang = excluded.lang,
  is_test = excluded.is_test, words = excluded.words
RETURNING id, path
"""
EMPTY_FILES = (
    "DELETE FROM cogo.kg_nodes WHERE file_id = ANY (%s)",
    "DELETE FROM cogo.kg_edges WHERE file_id = ANY (%s)",
    "DELETE FROM cogo.kg_aliases WHERE file_id = ANY (%s)",
)
DELETE_FILES = "DELETE FROM cogo.kg_files WHERE id = ANY (%s)"
NODE_IDS = "SELECT nextval(pg_get_serial_sequence('cogo.kg_nodes', 'id')) AS id FROM generate_series(1, %s)"
COPY_NODES = "COPY cogo.kg_nodes (repo_id, id, file_id, kind, qualname, start_line, end_line) FROM STDIN"
COPY_EDGES = "COPY cogo.kg_edges (repo_id, file_id, src, kind, names, line, confidence, dst) FROM STDIN"
COPY_ALIASES = "COPY cogo.kg_aliases (repo_id, file_id, kind, name, target) FROM STDIN"
# What names are: nodes, other names, and the base classes of classes.
NODES = """
SELECT n.id, n.kind, n.qualname, n.start_line, f.path, f.source, f.packaged, f.is_test
FROM (SELECT * FROM cogo.kg_nodes WHERE repo_id = %(repo)s AND qualname = ANY (%(names)s) UNION
      SELECT * FROM cogo.kg_nodes WHERE repo_id = %(repo)s AND substring(qualname FROM '[^.]+$') = ANY (%(tails)s)) n
JOIN cogo.kg_files f ON f.id = n.file_id ORDER BY n.id
"""
OTHER_NAMES = """
SELECT a.id, a.name, a.target, f.path, f.source, CASE WHEN a.kind = 'path' THEN
  (SELECT min(m.id) FROM cogo.kg_nodes m WHERE m.file_id = f.id AND m.kind IN ('package', 'module')) END AS module_id
FROM cogo.kg_aliases a JOIN cogo.kg_files f ON f.id = a.file_id
WHERE a.repo_id = %(repo)s AND a.name = ANY (%(names)s) ORDER BY a.id
"""
BASES = """
SELECT e.id AS edge, e.src, f.path, d.qualname AS base
FROM cogo.kg_edges e JOIN cogo.kg_nodes d ON d.id = e.dst JOIN cogo.kg_files f ON f.id = e.file_id
WHERE e.src = ANY (%s) AND e.kind = 'inherits'
"""
HEIRS = """
SELECT DISTINCT n.id, n.qualname FROM cogo.kg_edges e JOIN cogo.kg_nodes n ON n.id = e.src
WHERE e.dst = ANY (%s) AND e.kind = 'inherits'
"""
ALIASES = "SELECT name, target FROM cogo.kg_aliases WHERE repo_id = %(repo)s AND kind = 'import'"
# Files that did not change and say one of these words; of them the references with such a word between dots.
SAYING = """
SELECT id FROM cogo.kg_files f WHERE repo_id = %(repo)s AND id <> ALL (%(but)s)
  AND EXISTS (SELECT FROM unnest(%(words)s::text[]) w WHERE strpos(f.words, E'\\n' || w || E'\\n') > 0)
"""
USES = """
SELECT e.id, e.src, e.kind, e.names, e.confidence, e.dst, f.path, f.source, f.packaged, f.is_test,
  CASE WHEN e.kind = 'inherits' THEN (SELECT n.qualname FROM cogo.kg_nodes n WHERE n.id = e.src) END AS heir
FROM cogo.kg_edges e JOIN cogo.kg_files f ON f.id = e.file_id
WHERE e.file_id = ANY (%(files)s) AND e.kind <> 'defines'
  AND string_to_array(array_to_string(e.names, '.'), '.') && %(words)s::text[]
"""
MEAN = """
UPDATE cogo.kg_edges e SET dst = u.dst, confidence = u.confidence
FROM unnest(%(ids)s::bigint[], %(dsts)s::bigint[], %(confidences)s::text[]) AS u(id, dst, confidence) WHERE e.id = u.id
"""

# -- reading ----------------------------------------------------------------------------------

# By its name, by its path, or by the end of its name; the whole name first. Three lookups in three indexes.
FIND = """
WITH found AS (
  SELECT n.id, true AS whole FROM cogo.kg_nodes n WHERE n.repo_id = %(repo)s AND n.qualname = %(name)s
  UNION ALL
  SELECT (SELECT min(n.id) FROM cogo.kg_nodes n WHERE n.file_id = f.id AND n.kind IN ('package', 'module', 'section')), true
  FROM cogo.kg_files f WHERE f.repo_id = %(repo)s AND f.path = %(name)s
  UNION ALL
  SELECT n.id, false FROM cogo.kg_nodes n
  WHERE n.repo_id = %(repo)s AND substring(n.qualname FROM '[^.]+$') = %(tail)s
    AND right(n.qualname, length(%(name)s) + 1) = '.' || %(name)s)
SELECT DISTINCT ON (n.qualname, f.path) n.id, n.kind, n.qualname AS name, f.path, n.start_line AS line, w.whole,
  (SELECT min(m.id) FROM cogo.kg_nodes m WHERE m.repo_id = f.repo_id AND m.qualname = f.module
   AND m.file_id = f.id AND m.kind IN ('package', 'module')) AS module_id
FROM found w JOIN cogo.kg_nodes n USING (id) JOIN cogo.kg_files f ON f.id = n.file_id
ORDER BY n.qualname, f.path, w.whole DESC, n.id LIMIT 200
"""
# A class stands for what it defines, too. LATERAL with OFFSET 0, here and below, keeps the planner at one lookup
# in an index for each node, also in the plan that it makes without knowing the node: joined, it would hash all edges.
_ALONE = "WITH RECURSIVE member(id) AS (SELECT %(node)s::bigint)"
_MEMBERS = """
WITH RECURSIVE member(id) AS (
  SELECT %(node)s::bigint UNION
  SELECT e.dst FROM member m CROSS JOIN LATERAL (
    SELECT d.dst FROM cogo.kg_edges d WHERE d.src = m.id AND d.kind = 'defines' OFFSET 0) e)
"""
# One end of edges is given; what stands at the other end, and where the edge is written.
_ENDS = """{members}
SELECT o.qualname AS name, o.kind, f.path, min(e.line) AS line, min(e.confidence) AS confidence
FROM member m CROSS JOIN LATERAL (
  SELECT x.{other} AS other, x.file_id, x.line, x.confidence FROM cogo.kg_edges x
  WHERE x.{one} = m.id AND x.kind IN ({kinds}) AND x.dst IS NOT NULL AND x.src <> x.dst OFFSET 0) e
CROSS JOIN LATERAL (SELECT n.qualname, n.kind FROM cogo.kg_nodes n WHERE n.id = e.other OFFSET 0) o
CROSS JOIN LATERAL (SELECT g.path FROM cogo.kg_files g WHERE g.id = e.file_id OFFSET 0) f
GROUP BY e.other, o.qualname, o.kind, f.path ORDER BY 1 LIMIT {limit}
"""


# Kinds and limits stand in the text: with them as parameters the server would make a plan for each question anew,
# since it takes lists that it doesn't know for long ones, and planning takes longer than finding.
@cache
def into(kinds: tuple[str, ...], limit: int, *, members: bool) -> str:
    """Edges that lead to a node; with `members`, also to what it defines."""
    return _ends("dst", "src", kinds, limit, members=members)


@cache
def out_of(kinds: tuple[str, ...], limit: int, *, members: bool) -> str:
    """Edges that lead away from a node."""
    return _ends("src", "dst", kinds, limit, members=members)


def _ends(one: str, other: str, kinds: tuple[str, ...], limit: int, *, members: bool) -> str:
    above = _MEMBERS if members else _ALONE
    return _ENDS.format(members=above, one=one, other=other, kinds=_literals(kinds), limit=limit)


def _literals(kinds: tuple[str, ...]) -> str:
    if not set(kinds) <= set(get_args(EdgeKind)):
        raise ValueError(f"no kinds of edges: {kinds}")
    return ", ".join(f"'{kind}'" for kind in kinds)


# Calls of `something.name()` where name is defined once: likely this one, but nobody said so.
GUESSED = """
SELECT s.qualname AS name, s.kind, f.path, min(e.line) AS line, 'guess' AS confidence
FROM cogo.kg_edges e JOIN cogo.kg_nodes s ON s.id = e.src JOIN cogo.kg_files f ON f.id = e.file_id
WHERE e.repo_id = %(repo)s AND e.dst IS NULL AND e.names[1] LIKE '.%%' AND e.names[1] = '.' || %(tail)s
  AND e.kind = ANY (%(kinds)s)
  AND 1 = (SELECT count(*) FROM cogo.kg_nodes n WHERE n.repo_id = %(repo)s
           AND substring(n.qualname FROM '[^.]+$') = %(tail)s AND n.kind IN ('class', 'function'))
GROUP BY s.id, f.id ORDER BY 1 LIMIT %(limit)s
"""
# Whatever reaches the node by edges of these kinds, nearest first. An edge into a part of something reaches it.
_IMPACT = """{members}, reached(id, depth) AS (
  SELECT id, 0 FROM member UNION
  SELECT e.src, r.depth + 1 FROM reached r CROSS JOIN LATERAL (
    SELECT x.src FROM cogo.kg_edges x WHERE x.dst = r.id AND x.kind IN ({kinds}) AND x.dst IS NOT NULL OFFSET 0) e
  WHERE r.depth < %(depth)s),
nearest AS (SELECT r.id, min(r.depth) AS depth FROM reached r GROUP BY r.id HAVING min(r.depth) > 0
            ORDER BY depth, r.id LIMIT {limit})
SELECT n.qualname AS name, n.kind, f.path, n.start_line AS line, w.depth
FROM nearest w
CROSS JOIN LATERAL (SELECT * FROM cogo.kg_nodes x WHERE x.id = w.id OFFSET 0) n
CROSS JOIN LATERAL (SELECT g.path FROM cogo.kg_files g WHERE g.id = n.file_id OFFSET 0) f
ORDER BY depth, name
"""


@cache
def impact(kinds: tuple[str, ...], limit: int, *, members: bool) -> str:
    """What reaches a node, or with `members` a part of it, in at most %(depth)s steps."""
    above = _MEMBERS if members else _ALONE
    return _IMPACT.format(members=above, kinds=_literals(kinds), limit=limit)


STEP = """
SELECT DISTINCT ON (e.{there}) e.{here} AS here, e.{there} AS there FROM cogo.kg_edges e
WHERE e.{here} = ANY (%(nodes)s) AND e.kind = ANY (%(kinds)s) AND e.dst IS NOT NULL
"""
NAMES_OF = """
SELECT n.id, n.qualname AS name, f.path, n.start_line AS line
FROM cogo.kg_nodes n JOIN cogo.kg_files f ON f.id = n.file_id WHERE n.id = ANY (%s)
"""
SIZES = """
SELECT
  (SELECT count(*) FROM cogo.kg_files WHERE repo_id = %(repo)s) AS files,
  (SELECT coalesce(jsonb_object_agg(kind, n), '{}') FROM (
     SELECT kind, count(*) AS n FROM cogo.kg_nodes WHERE repo_id = %(repo)s GROUP BY 1) x) AS nodes,
  (SELECT coalesce(jsonb_object_agg(kind, n), '{}') FROM (
     SELECT kind, count(DISTINCT (src, dst)) AS n FROM cogo.kg_edges
     WHERE repo_id = %(repo)s AND dst IS NOT NULL GROUP BY 1) x) AS edges,
  (SELECT count(*) FROM cogo.kg_edges WHERE repo_id = %(repo)s AND dst IS NULL) AS unresolved
"""
MODULES = """
SELECT n.qualname AS name, n.kind, f.path, f.is_test, n.end_line AS lines FROM cogo.kg_nodes n JOIN cogo.kg_files f ON f.id = n.file_id
WHERE n.repo_id = %(repo)s AND n.kind IN ('package', 'module') ORDER BY 1
"""
IMPORTS_ALL = """
SELECT s.qualname AS importer, d.qualname AS imported, min(e.line) AS line,
  min(e.confidence) FILTER (WHERE e.confidence = 'exact') IS NOT NULL AS exact
FROM cogo.kg_edges e JOIN cogo.kg_nodes s ON s.id = e.src JOIN cogo.kg_nodes d ON d.id = e.dst
WHERE e.repo_id = %(repo)s AND e.kind = 'imports' GROUP BY s.id, d.id ORDER BY 1, 2
"""
# Functions and classes of modules that nothing refers to by name, nor calls something that is named so.
UNUSED = """
SELECT n.qualname AS name, f.path, n.start_line AS line
FROM cogo.kg_nodes n JOIN cogo.kg_files f ON f.id = n.file_id
JOIN cogo.kg_edges d ON d.dst = n.id AND d.kind = 'defines'
JOIN cogo.kg_nodes m ON m.id = d.src AND m.kind IN ('package', 'module')
WHERE n.repo_id = %(repo)s AND n.kind IN ('class', 'function') AND NOT f.is_test
  AND NOT EXISTS (SELECT FROM cogo.kg_edges e WHERE e.dst = n.id AND e.kind <> 'defines' AND e.src <> n.id)
  AND NOT EXISTS (SELECT FROM cogo.kg_edges e WHERE e.repo_id = %(repo)s AND e.dst IS NULL
                  AND e.names[1] LIKE '.%%' AND e.names[1] = '.' || substring(n.qualname FROM '[^.]+$'))
  AND substring(n.qualname FROM '[^.]+$') NOT LIKE '\\_\\_%%' AND substring(n.qualname FROM '[^.]+$') <> 'main'
ORDER BY f.path, n.start_line LIMIT %(limit)s
"""
EXPORT_NODES = """
SELECT n.id, n.kind, n.qualname AS name, f.path, n.start_line AS start, n.end_line AS end
FROM cogo.kg_nodes n JOIN cogo.kg_files f ON f.id = n.file_id
WHERE n.repo_id = %(repo)s AND n.id > %(after)s ORDER BY n.id LIMIT %(limit)s
"""
EXPORT_EDGES = """
SELECT e.id, e.src, e.dst, e.kind, e.confidence, e.line FROM cogo.kg_edges e
WHERE e.repo_id = %(repo)s AND e.dst IS NOT NULL AND e.id > %(after)s ORDER BY e.id LIMIT %(limit)s
"""
# For an answer: who calls each symbol, or else who imports its module (the first few, and how many).
FACTS = """
SELECT r.name AS repo, f.path, w.symbol, m.qualname AS module, c.n AS callers, c.first AS calls,
  i.n AS importers, i.first AS imports
FROM unnest(%(repos)s::text[], %(paths)s::text[], %(symbols)s::text[]) AS w(repo, path, symbol)
JOIN cogo.kb_repos r ON r.tenant = %(tenant)s AND r.name = w.repo
JOIN cogo.kg_files f ON f.repo_id = r.id AND f.path = w.path
JOIN LATERAL (SELECT n.id, n.qualname FROM cogo.kg_nodes n WHERE n.file_id = f.id AND n.kind IN ('package', 'module')
              ORDER BY n.id LIMIT 1) m ON true
LEFT JOIN LATERAL (SELECT n.id FROM cogo.kg_nodes n
                   WHERE n.repo_id = r.id AND n.qualname = m.qualname || '.' || w.symbol AND n.file_id = f.id
                   ORDER BY n.id LIMIT 1) s ON true
CROSS JOIN LATERAL ({into}) c
CROSS JOIN LATERAL ({into_module}) i
"""
_WHO = """
  SELECT count(*) AS n, coalesce(jsonb_agg(jsonb_build_object('name', x.qualname, 'path', x.path, 'line', x.line)
                                           ORDER BY x.place) FILTER (WHERE x.place <= %(show)s), '[]') AS first
  FROM (SELECT o.qualname, of.path, min(e.line) AS line, row_number() OVER (ORDER BY of.is_test, of.path, min(e.line)) AS place
        FROM cogo.kg_edges e JOIN cogo.kg_nodes o ON o.id = e.src JOIN cogo.kg_files of ON of.id = e.file_id
        WHERE e.dst = {node} AND e.kind = '{kind}' AND e.src <> e.dst GROUP BY o.qualname, of.path, of.is_test) x"""
FACTS = FACTS.replace("{into}", _WHO.format(node="s.id", kind="calls")).replace(
    "{into_module}", _WHO.format(node="m.id", kind="imports")
)
