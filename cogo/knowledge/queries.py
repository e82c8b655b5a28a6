"""Every SQL statement of the index and of the search. `%(repos)s` are ids of one tenant's repositories."""

from __future__ import annotations

# -- repositories -----------------------------------------------------------------------------

REPO = "SELECT id, root FROM cogo.kb_repos WHERE tenant = %s AND name = %s"
KEEP_REPO = """
INSERT INTO cogo.kb_repos (tenant, name, root) VALUES (%s, %s, %s)
ON CONFLICT (tenant, name) DO UPDATE SET root = excluded.root RETURNING id, root
"""
REPO_IDS = """
SELECT id FROM cogo.kb_repos WHERE (%(tenants)s::text[] IS NULL OR tenant = ANY (%(tenants)s))
  AND (%(repo)s::text IS NULL OR name = %(repo)s) ORDER BY id
"""
REPOS = """
SELECT r.tenant, r.name AS repo, r.root, coalesce(f.files, 0) AS files, coalesce(f.chunks, 0) AS chunks,
  f.indexed_at, coalesce(g.modules, 0) AS modules
FROM cogo.kb_repos r
LEFT JOIN LATERAL (SELECT count(*) AS files, sum(n_chunks)::bigint AS chunks, max(indexed_at) AS indexed_at
                   FROM cogo.kb_files WHERE repo_id = r.id) f ON true
LEFT JOIN LATERAL (SELECT count(*) AS modules FROM cogo.kg_files
                   WHERE repo_id = r.id AND lang NOT IN ('markdown', 'rst')) g ON true
WHERE %(tenants)s::text[] IS NULL OR r.tenant = ANY (%(tenants)s)
ORDER BY r.tenant, r.name
"""

# -- writing ----------------------------------------------------------------------------------

DIGESTS = "SELECT path, digest FROM cogo.kb_files WHERE repo_id = %s"
# The finish of the message is a synchronous commit and comes later in the same log: what it covers is
# on disk with it. So the commits before it need not wait for the disk one by one.
NO_WAIT = "SET LOCAL synchronous_commit = off"
# One writer per file: the content is read under the lock, so the last writer has the newest.
LOCK_FILE = "SELECT pg_advisory_xact_lock(hashtextextended('kb:' || %s::text || ':' || %s::text, 0))"
FILE = "SELECT id, digest FROM cogo.kb_files WHERE repo_id = %s AND path = %s"
DELETE_FILE = "DELETE FROM cogo.kb_files WHERE id = %s"
EMPTY_FILE = """
WITH chunks AS (DELETE FROM cogo.kb_chunks WHERE file_id = %(id)s),
  postings AS (DELETE FROM cogo.kb_postings WHERE file_id = %(id)s)
UPDATE cogo.kb_files SET digest = %(digest)s, lang = %(lang)s, note = %(note)s, n_chunks = %(n_chunks)s,
  indexed_at = now() WHERE id = %(id)s
"""
INSERT_FILE = """
INSERT INTO cogo.kb_files (repo_id, path, digest, lang, note, n_chunks)
VALUES (%(repo_id)s, %(path)s, %(digest)s, %(lang)s, %(note)s, %(n_chunks)s) RETURNING id
"""
COPY_CHUNKS = """
COPY cogo.kb_chunks (file_id, ord, kind, qualname, start_line, end_line, text, digest) FROM STDIN
"""
COPY_POSTINGS = "COPY cogo.kb_postings (repo_id, term, file_id, ords, weights) FROM STDIN"

# -- vectors; {table} is the one of a model ------------------------------------------------------

MODEL = "SELECT * FROM cogo.vector_model(%s, %s, %s, %s)"
MODEL_SERVING = "SELECT * FROM cogo.kb_models WHERE serving"
MODEL_WANTED = "SELECT * FROM cogo.kb_models WHERE wanted_at IS NOT NULL"
MODELS_KNOWN = "SELECT EXISTS (SELECT FROM cogo.kb_models)"
MODELS = "SELECT * FROM cogo.kb_models WHERE serving OR wanted_at IS NOT NULL ORDER BY serving DESC, id"
WANT_MODEL = "SELECT id FROM cogo.want_model(%s::smallint, %s)"
WANT_VECTORS = "SELECT cogo.want_vectors(%s)"
SERVE = "SELECT cogo.serve_vectors(%s::smallint)"
LACKING_PATHS = """
SELECT f.path FROM cogo.kb_files f
WHERE f.repo_id = %s AND EXISTS (
  SELECT FROM cogo.kb_chunks c WHERE c.file_id = f.id AND c.digest IS NOT NULL AND NOT EXISTS (
    SELECT FROM {table} v WHERE v.file_id = c.file_id AND v.digest = c.digest))
ORDER BY 1
"""
# Files that lack vectors, of which no two workers that look at the same time should take the same: each begins
# at another place.
LACKING_SHARE = """
SELECT f.id, f.repo_id, f.path FROM cogo.kb_repos r JOIN cogo.kb_files f ON f.repo_id = r.id
WHERE r.tenant = %(tenant)s AND f.id > %(after)s AND f.id <= %(until)s AND EXISTS (
  SELECT FROM cogo.kb_chunks c WHERE c.file_id = f.id AND c.digest IS NOT NULL AND NOT EXISTS (
    SELECT FROM {table} v WHERE v.file_id = c.file_id AND v.digest = c.digest))
ORDER BY f.id LIMIT %(limit)s
"""
NEWEST_FILE = "SELECT coalesce(max(id), 0) AS id FROM cogo.kb_files"
LACKING_COUNT = """
SELECT count(*) FROM cogo.kb_chunks c WHERE c.digest IS NOT NULL AND NOT EXISTS (
  SELECT FROM {table} v WHERE v.file_id = c.file_id AND v.digest = c.digest)
"""
LACKING = """
SELECT DISTINCT ON (c.file_id, c.digest) c.file_id, f.path, c.kind, c.qualname, c.text, c.digest
FROM cogo.kb_files f JOIN cogo.kb_chunks c ON c.file_id = f.id
WHERE f.repo_id = %(repo)s AND f.path = ANY (%(paths)s::text[]) AND c.digest IS NOT NULL
  AND NOT EXISTS (SELECT FROM {table} v WHERE v.file_id = c.file_id AND v.digest = c.digest)
ORDER BY c.file_id, c.digest LIMIT %(limit)s
"""
# A file may have been removed meanwhile: its vectors have nowhere to go.
PUT_VECTORS = """
INSERT INTO {table} (file_id, digest, repo_id, vector)
SELECT u.file_id, u.digest, %(repo)s, u.vector{cast}
FROM unnest(%(files)s::integer[], %(digests)s::bytea[], %(vectors)s::{arrived}[]) AS u(file_id, digest, vector)
WHERE EXISTS (SELECT FROM cogo.kb_files f WHERE f.id = u.file_id FOR KEY SHARE)
ON CONFLICT DO NOTHING
"""
SWEEP_VECTORS = """
DELETE FROM {table} v USING cogo.kb_files f
WHERE f.repo_id = %(repo)s AND f.path = ANY (%(paths)s::text[]) AND v.file_id = f.id
  AND NOT EXISTS (SELECT FROM cogo.kb_chunks c WHERE c.file_id = v.file_id AND c.digest = v.digest)
"""

# -- tables that are followed -----------------------------------------------------------------

SOURCES = """
SELECT source AS "table", id_column AS id, text_column AS text, tenant_column AS tenant, path_column AS path,
  lang_column AS lang FROM cogo.kb_sources WHERE %s::text IS NULL OR source = %s ORDER BY 1
"""
COLUMNS = """
SELECT w.source, array_agg(a.attname::text) AS columns
FROM unnest(%s::text[]) AS w(source) JOIN pg_catalog.pg_attribute a
  ON a.attrelid = to_regclass(w.source) AND a.attnum > 0 AND NOT a.attisdropped
GROUP BY 1
"""
MISSING = """
SELECT CASE WHEN to_regclass(%(table)s) IS NULL THEN 'such table' ELSE (
  SELECT 'column ' || w.name FROM unnest(ARRAY[%(id)s, %(text)s, %(tenant)s, %(path)s, %(lang)s]::text[]) AS w(name)
  WHERE w.name IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = to_regclass(%(table)s) AND a.attname = w.name AND a.attnum > 0 AND NOT a.attisdropped)
  LIMIT 1) END
"""
FOLLOW = "SELECT cogo.follow_source(%s, %s, %s, %s, %s, %s)"
FOLLOW_ONLY = "SELECT cogo.follow_only(%s)"
READ_ROW = "SELECT body, path, lang FROM cogo.read_document(%s, %s, %s)"

# -- searching --------------------------------------------------------------------------------

# One pass over the words' postings counts in how many spans each stands (df) and so gives its idf. Then
# only the rare words choose candidates: words are taken from the rarest on until they stand in `budget`
# spans together (at least two words); what the frequent ones add is looked up for the best candidates
# alone. `mass` is the share of the question's idf that a span's words cover; words that nobody wrote
# count with the highest idf there is. OFFSET 0 keeps the one possible plan: an index range per word.
_WORDS = """
WITH q AS (SELECT * FROM unnest(%(terms)s::text[], %(counts)s::real[]) AS q(term, n)),
p AS MATERIALIZED (
  SELECT q.term, p.file_id, p.ords, p.weights FROM q CROSS JOIN LATERAL (
    SELECT file_id, ords, weights FROM cogo.kb_postings
    WHERE repo_id = ANY (%(repos)s::integer[]) AND term = q.term OFFSET 0) p),
size AS (SELECT greatest(coalesce(sum(n_chunks), 0), 1)::real AS n FROM cogo.kb_files
         WHERE repo_id = ANY (%(repos)s::integer[])),
word AS MATERIALIZED (
  SELECT q.term, coalesce(d.df, 0) AS df,
    q.n * ln(1 + (size.n - coalesce(d.df, 0) + 0.5) / (coalesce(d.df, 0) + 0.5))::real AS idf,
    sum(d.df) OVER rarest - d.df AS before, row_number() OVER rarest AS place
  FROM size, q LEFT JOIN (SELECT term, sum(cardinality(ords)) AS df FROM p GROUP BY term) d USING (term)
  WINDOW rarest AS (ORDER BY d.df, q.term)),
chosen AS (SELECT term, idf FROM word WHERE df > 0 AND (place <= 2 OR before < %(budget)s)),
candidate AS MATERIALIZED (
  SELECT p.file_id, h.ord, sum(chosen.idf * h.weight) AS score, sum(chosen.idf) AS mass
  FROM chosen JOIN p USING (term) CROSS JOIN LATERAL unnest(p.ords, p.weights) AS h(ord, weight)
  {narrow}
  GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT %(candidates)s)
"""
_SHOWN = """
SELECT r.name AS repo, f.path, f.lang, c.kind, c.qualname, c.start_line AS start, c.end_line AS "end", c.text,
  b.score::real AS score, b.mass::real AS mass, b.strength::real AS strength
FROM best b JOIN cogo.kb_files f ON f.id = b.file_id JOIN cogo.kb_repos r ON r.id = f.repo_id
JOIN cogo.kb_chunks c ON c.file_id = b.file_id AND c.ord = b.ord
ORDER BY b.score DESC, f.path, c.start_line
"""
_BY_WORDS = """,
more AS (
  SELECT c.file_id, c.ord, sum(word.idf * p.weights[i.at]) AS score, sum(word.idf) AS mass
  FROM candidate c JOIN p USING (file_id) JOIN word USING (term)
  CROSS JOIN LATERAL (SELECT array_position(p.ords, c.ord) AS at) i
  WHERE i.at IS NOT NULL AND word.term NOT IN (SELECT term FROM chosen) GROUP BY 1, 2),
best AS (
  SELECT c.file_id, c.ord, c.score + coalesce(m.score, 0) AS score,
    (c.mass + coalesce(m.mass, 0)) / total.idf AS mass, (c.score + coalesce(m.score, 0)) / total.idf AS strength
  FROM candidate c LEFT JOIN more m USING (file_id, ord), (SELECT sum(idf) AS idf FROM word) total
  ORDER BY 3 DESC, 1, 2 LIMIT %(k)s)
"""
# The same with vectors: candidates by words and by vectors, and both scores for all of them, each from 0 to
# the best one's 1. A candidate by words that is not among the nearest counts as the last of these; one that has
# no vector yet counts by its vector as it does by its words. A section also gets a part of the best score in its file.
# FULL JOIN where an inner one would do: the planner, which takes all of this for a handful of rows, would run
# through the one side for each row of the other; a full join it can only hash. OFFSET 0: one look into an index
# for each candidate, where it would read the whole table.
_BY_BOTH = """,
near AS MATERIALIZED (
  SELECT c.file_id, c.ord, n.likeness FROM ({near}) n
  JOIN cogo.kb_chunks c ON c.file_id = n.file_id AND c.digest = n.digest),
pool AS MATERIALIZED (
  SELECT file_id, ord, c.score, c.mass, near.likeness FROM candidate c FULL JOIN near USING (file_id, ord)),
weighed AS (
  SELECT p.file_id, p.ords, p.weights, word.idf, word.term IN (SELECT term FROM chosen) AS counted
  FROM p JOIN word USING (term)),
more AS (
  SELECT pool.file_id, pool.ord, sum(w.idf * w.weights[i.at]) AS score, sum(w.idf) AS mass
  FROM pool FULL JOIN weighed w USING (file_id)
  CROSS JOIN LATERAL (SELECT array_position(w.ords, pool.ord) AS at) i
  WHERE i.at IS NOT NULL AND (pool.score IS NULL OR NOT w.counted) GROUP BY 1, 2),
scored AS (
  SELECT file_id, ord, coalesce(pool.score, 0) + coalesce(more.score, 0) AS words,
    coalesce(pool.mass, 0) + coalesce(more.mass, 0) AS mass, pool.likeness
  FROM pool FULL JOIN more USING (file_id, ord)),
range AS (
  SELECT greatest(max(words), 1e-6) AS words, min(likeness) AS lowest,
    greatest(max(likeness) - min(likeness), 1e-6) AS likeness FROM scored),
weighted AS (
  SELECT s.file_id, s.ord, s.words, s.likeness, s.mass, c.kind,
    (weight.dense * CASE
        WHEN s.likeness IS NOT NULL THEN (s.likeness - range.lowest) / range.likeness
        WHEN EXISTS (SELECT FROM {table} v WHERE v.file_id = s.file_id AND v.digest = c.digest OFFSET 0) THEN 0
        ELSE s.words / range.words END
      + (1 - weight.dense) * s.words / range.words) * CASE c.kind WHEN 'module' THEN %(module)s::real ELSE 1 END AS score
  FROM range, scored s CROSS JOIN LATERAL (
    SELECT kind, digest FROM cogo.kb_chunks WHERE file_id = s.file_id AND ord = s.ord OFFSET 0) c
  CROSS JOIN LATERAL (
    SELECT CASE c.kind WHEN 'section' THEN %(weight_section)s::real ELSE %(weight)s::real END AS dense) weight),
best AS (
  SELECT w.file_id, w.ord, w.words, w.likeness,
    CASE w.kind WHEN 'section' THEN (w.score + %(file)s::real * max(w.score) OVER (PARTITION BY w.file_id)) / (1 + %(file)s::real)
      ELSE w.score END AS score,
    w.mass / total.idf AS mass, w.words / total.idf AS strength
  FROM weighted w, (SELECT greatest(sum(idf), 1e-6) AS idf FROM word) total
  ORDER BY 5 DESC, 1, 2 LIMIT %(k)s)
"""
SEARCH = _WORDS + _BY_WORDS + _SHOWN
SEARCH_BOTH = (
    _WORDS
    + _BY_BOTH
    + _SHOWN.replace("AS strength", "AS strength, b.words::real AS words, b.likeness::real AS likeness")
)
# The index looks at so many of the nearest, and goes on as long as the filter leaves too few of them.
NEAR_SETTINGS = """
SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.max_scan_tuples', %s, true),
  set_config('hnsw.iterative_scan', 'strict_order', true)
"""
NEAR_PGVECTOR = """
SELECT v.file_id, v.digest, -(v.vector OPERATOR({pgvector}.<#>) %(vector)s::{pgvector}.halfvec) AS likeness
FROM {table} v WHERE v.repo_id = ANY (%(repos)s::integer[]) {narrow}
ORDER BY v.vector OPERATOR({pgvector}.<#>) %(vector)s::{pgvector}.halfvec LIMIT %(nearest)s
"""
NEAR_GIVEN = """
SELECT * FROM unnest(%(near_files)s::integer[], %(near_digests)s::bytea[], %(near_likeness)s::real[])
  AS n(file_id, digest, likeness)
"""
NEAR_PATHS = """
  AND EXISTS (SELECT FROM cogo.kb_files f WHERE f.id = v.file_id AND EXISTS (
    SELECT 1 FROM unnest(%(paths)s::text[]) AS w(prefix)
    WHERE f.path = w.prefix OR starts_with(f.path, rtrim(w.prefix, '/') || '/')))
"""
NEAR_KINDS = """
  AND EXISTS (SELECT FROM cogo.kb_chunks k
    WHERE k.file_id = v.file_id AND k.digest = v.digest AND k.kind = ANY (%(kinds)s::text[]))
"""
VECTORS_VERSION = """
SELECT count(*) AS count, coalesce(max(v.id), 0) AS newest FROM {table} v WHERE v.repo_id = ANY (%(repos)s::integer[])
"""
ALL_VECTORS = """
SELECT v.file_id, v.digest, v.vector FROM {table} v WHERE v.repo_id = ANY (%(repos)s::integer[]) {narrow}
"""
NARROW_PATHS = """
  JOIN cogo.kb_files f ON f.id = p.file_id AND EXISTS (
    SELECT 1 FROM unnest(%(paths)s::text[]) AS w(prefix)
    WHERE f.path = w.prefix OR starts_with(f.path, rtrim(w.prefix, '/') || '/'))
"""
NARROW_KINDS = """
  JOIN cogo.kb_chunks k ON k.file_id = p.file_id AND k.ord = h.ord AND k.kind = ANY (%(kinds)s::text[])
"""
# How much of the index each word stands in, for weighing the lines of an answer.
IDF = """
WITH size AS (SELECT greatest(coalesce(sum(n_chunks), 0), 1)::real AS n FROM cogo.kb_files
              WHERE repo_id = ANY (%(repos)s::integer[]))
SELECT q.term, ln(1 + (size.n - d.df + 0.5) / (d.df + 0.5))::real AS idf
FROM size, unnest(%(terms)s::text[]) AS q(term) CROSS JOIN LATERAL (
  SELECT coalesce(sum(cardinality(ords)), 0)::real AS df FROM cogo.kb_postings
  WHERE repo_id = ANY (%(repos)s::integer[]) AND term = q.term) d
"""
LINE = """
SELECT c.start_line, c.text FROM cogo.kb_repos r JOIN cogo.kb_files f ON f.repo_id = r.id
JOIN cogo.kb_chunks c ON c.file_id = f.id
WHERE r.tenant = %(tenant)s AND r.name = %(repo)s AND f.path = %(path)s
  AND %(line)s BETWEEN c.start_line AND c.end_line
"""
