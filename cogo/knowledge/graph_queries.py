"""Every SQL statement of the code graph. `%(repo)s` is the id of one tenant's repository."""

from __future__ import annotations

LOCK_REPO = "SELECT pg_advisory_xact_lock(hashtextextended('kg:' || %s::text, 0))"
DIGESTS = "SELECT path, digest FROM cogo.kg_files WHERE repo_id = %s"
DELETE_FILES = "DELETE FROM cogo.kg_files WHERE repo_id = %s AND path = ANY (%s)"
INSERT_FILE = """
INSERT INTO cogo.kg_files (repo_id, path, digest, module, packaged, source, note)
SELECT %(repo)s, * FROM unnest(%(paths)s::text[], %(digests)s::bytea[], %(modules)s::text[], %(packaged)s::boolean[],
  %(sources)s::text[], %(notes)s::text[]) RETURNING id, path
"""
NODE_IDS = "SELECT nextval(pg_get_serial_sequence('cogo.kg_nodes', 'id')) AS id FROM generate_series(1, %s)"
COPY_NODES = "COPY cogo.kg_nodes (id, repo_id, file_id, kind, qualname, start_line, end_line) FROM STDIN"
COPY_EDGES = "COPY cogo.kg_edges (repo_id, file_id, src, kind, names, line, dst) FROM STDIN"
COPY_ALIASES = "COPY cogo.kg_aliases (repo_id, file_id, kind, name, target) FROM STDIN"

# The rows were written a moment ago and have no statistics yet; a nested loop would be the planner's
# guess, and is 20 times slower here than the joins by hash.
NO_LOOPS = "SET LOCAL enable_nestloop = off"
# An import means the first of its names that is a module here. Where two modules have one name (a
# package vendored twice), the one from the importer's own source folder is meant.
RESOLVE_IMPORTS = """
WITH wanted AS (
  SELECT e.id, e.src, s.source, s.packaged, w.name, w.place
  FROM cogo.kg_edges e JOIN cogo.kg_files s ON s.id = e.file_id
  CROSS JOIN LATERAL unnest(e.names) WITH ORDINALITY AS w(name, place)
  WHERE e.repo_id = %(repo)s AND e.kind = 'imports'),
module AS (
  SELECT n.qualname AS name, n.id, f.source, f.packaged AS sure, f.path
  FROM cogo.kg_nodes n JOIN cogo.kg_files f ON f.id = n.file_id
  WHERE n.repo_id = %(repo)s AND n.kind IN ('package', 'module')),
known AS (
  SELECT * FROM module UNION ALL
  SELECT a.name, m.id, m.source, false, m.path FROM cogo.kg_aliases a
  JOIN cogo.kg_files f ON f.id = a.file_id JOIN module m ON m.name = a.target AND m.path = f.path
  WHERE a.repo_id = %(repo)s AND a.kind = 'path'),
meant AS (
  SELECT DISTINCT ON (w.id) w.id, k.id AS dst,
    CASE WHEN k.sure AND w.packaged THEN 'exact' ELSE 'bound' END AS confidence
  FROM wanted w JOIN known k USING (name)
  ORDER BY w.id, w.place, k.sure DESC, (k.source = w.source) DESC, k.path)
UPDATE cogo.kg_edges e SET dst = t.dst, confidence = t.confidence
FROM (SELECT id, m.dst, coalesce(m.confidence, 'exact') AS confidence
      FROM (SELECT DISTINCT id FROM wanted) w LEFT JOIN meant m USING (id)) t
WHERE e.id = t.id AND (e.dst, e.confidence) IS DISTINCT FROM (t.dst, t.confidence)
"""
# A base class is followed through re-exports (pkg.Base -> pkg.impl.Base, star imports too) to a class.
RESOLVE_INHERITS = """
WITH RECURSIVE walk(id, name, depth) AS (
  SELECT e.id, e.names[1], 0 FROM cogo.kg_edges e WHERE e.repo_id = %(repo)s AND e.kind = 'inherits'
  UNION
  SELECT w.id, CASE WHEN right(a.name, 2) = '.*' THEN left(a.target, -1) || substring(w.name FROM '[^.]+$')
                    ELSE a.target END, w.depth + 1
  FROM walk w JOIN cogo.kg_aliases a ON a.repo_id = %(repo)s AND a.kind = 'import'
    AND a.name IN (w.name, regexp_replace(w.name, '[^.]+$', '*'))
  WHERE w.depth < 8),
meant AS (
  SELECT DISTINCT ON (w.id) w.id, n.id AS dst
  FROM walk w JOIN cogo.kg_nodes n ON n.repo_id = %(repo)s AND n.qualname = w.name AND n.kind = 'class'
  ORDER BY w.id, w.depth, n.id)
UPDATE cogo.kg_edges e SET dst = nullif(t.dst, e.src), confidence = 'bound'
FROM (SELECT e.id, m.dst FROM cogo.kg_edges e LEFT JOIN meant m USING (id)
      WHERE e.repo_id = %(repo)s AND e.kind = 'inherits') t
WHERE e.id = t.id AND (e.dst, e.confidence) IS DISTINCT FROM (nullif(t.dst, e.src), 'bound')
"""

# -- reading ----------------------------------------------------------------------------------

SIZES = """
SELECT
  (SELECT count(*) FROM cogo.kg_files WHERE repo_id = %(repo)s) AS files,
  (SELECT coalesce(jsonb_object_agg(kind, n), '{}') FROM (
     SELECT kind, count(*) AS n FROM cogo.kg_nodes WHERE repo_id = %(repo)s GROUP BY 1) x) AS nodes,
  (SELECT coalesce(jsonb_object_agg(kind, n), '{}') FROM (
     SELECT kind, count(DISTINCT (src, dst)) AS n FROM cogo.kg_edges
     WHERE repo_id = %(repo)s AND dst IS NOT NULL GROUP BY 1) x) AS edges
"""
IMPORTS_ALL = """
SELECT s.qualname AS importer, d.qualname AS imported, min(e.line) AS line,
  min(e.confidence) FILTER (WHERE e.confidence = 'exact') IS NOT NULL AS exact
FROM cogo.kg_edges e JOIN cogo.kg_nodes s ON s.id = e.src JOIN cogo.kg_nodes d ON d.id = e.dst
WHERE e.repo_id = %(repo)s AND e.kind = 'imports' GROUP BY s.id, d.id ORDER BY 1, 2
"""
# A module by its name, by its path, or by anything that it defines.
FIND_MODULE = """
SELECT m.id, m.qualname, f.path FROM cogo.kg_nodes n JOIN cogo.kg_files f ON f.id = n.file_id
JOIN cogo.kg_nodes m ON m.file_id = n.file_id AND m.kind IN ('package', 'module')
WHERE n.repo_id = %(repo)s AND n.qualname = %(name)s
UNION ALL
SELECT m.id, m.qualname, f.path FROM cogo.kg_files f
JOIN cogo.kg_nodes m ON m.file_id = f.id AND m.kind IN ('package', 'module')
WHERE f.repo_id = %(repo)s AND f.path = %(name)s
LIMIT 1
"""
NEIGHBOURS = """
SELECT o.qualname AS name, f.path, min(e.line) AS line, min(e.confidence) AS confidence
FROM cogo.kg_edges e
JOIN cogo.kg_nodes o ON o.id = {other} JOIN cogo.kg_nodes s ON s.id = e.src
JOIN cogo.kg_files f ON f.id = s.file_id
WHERE {one} = %(node)s AND e.kind = 'imports' AND e.src <> e.dst
GROUP BY o.id, f.id ORDER BY 1
"""
IMPORTERS = NEIGHBOURS.format(other="e.src", one="e.dst")
IMPORTS = NEIGHBOURS.format(other="e.dst", one="e.src")
# For an answer: the module of each file, and who imports it (the first few, and how many).
FACTS = """
SELECT r.name AS repo, f.path, m.qualname AS module, coalesce(i.n, 0) AS n, coalesce(i.importers, '[]') AS importers
FROM unnest(%(repos)s::text[], %(paths)s::text[]) AS w(repo, path)
JOIN cogo.kb_repos r ON r.tenant = %(tenant)s AND r.name = w.repo
JOIN cogo.kg_files f ON f.repo_id = r.id AND f.path = w.path
JOIN cogo.kg_nodes m ON m.file_id = f.id AND m.kind IN ('package', 'module')
LEFT JOIN LATERAL (
  SELECT count(*) AS n, jsonb_agg(jsonb_build_object('module', x.qualname, 'path', x.path, 'line', x.line)
                                  ORDER BY x.path) FILTER (WHERE x.place <= %(show)s) AS importers
  FROM (SELECT s.qualname, sf.path, min(e.line) AS line, row_number() OVER (ORDER BY sf.path) AS place
        FROM cogo.kg_edges e JOIN cogo.kg_nodes s ON s.id = e.src JOIN cogo.kg_files sf ON sf.id = s.file_id
        WHERE e.dst = m.id AND e.kind = 'imports' AND e.src <> m.id GROUP BY s.qualname, sf.path) x) i ON true
"""
