-- The graph beyond imports: calls, references, tests and documents, of more languages than Python.
--
-- Names are resolved by the process that builds (cogo/knowledge/graph/names.py), which replaces a file's rows
-- itself. So edges need no foreign keys to nodes: checking them took as long as writing them.

ALTER TABLE cogo.kg_files
  ADD COLUMN lang text NOT NULL DEFAULT 'python',
  ADD COLUMN is_test boolean NOT NULL DEFAULT false;

ALTER TABLE cogo.kg_nodes
  DROP CONSTRAINT kg_nodes_kind_check,
  ADD CONSTRAINT kg_nodes_kind_check CHECK (kind IN ('package', 'module', 'class', 'function', 'section'));
-- What a person calls it: `enqueue`, `Bus.enqueue`.
CREATE INDEX kg_nodes_tail ON cogo.kg_nodes (repo_id, (substring(qualname FROM '[^.]+$')));

ALTER TABLE cogo.kg_edges
  DROP CONSTRAINT kg_edges_kind_check,
  ADD CONSTRAINT kg_edges_kind_check CHECK (
    kind IN ('defines', 'imports', 'inherits', 'calls', 'references', 'tests', 'documents')),
  DROP CONSTRAINT kg_edges_src_fkey,
  DROP CONSTRAINT kg_edges_dst_fkey;
-- What is asked of a value whose type nobody told: `.run`. Guesses are made of these, when they are asked for.
CREATE INDEX kg_edges_unknown ON cogo.kg_edges (repo_id, (names[1])) WHERE dst IS NULL AND names[1] LIKE '.%';
-- By repository one reads all edges of a kind, which a scan of the kind's part does.
DROP INDEX cogo.kg_edges_dst;
CREATE INDEX kg_edges_dst ON cogo.kg_edges (dst, kind) WHERE dst IS NOT NULL;
