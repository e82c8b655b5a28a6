-- Knowledge: the lexical index of repositories and documents, and the graph of code.
--
-- A repository is (tenant, name); every other row carries its id, and every statement starts from the
-- ids of one tenant. What a file brought is found by the file's id and goes with it, so that replacing a
-- file is one transaction. Statistics (how many spans there are, how many contain a word) are counts of
-- these rows at the time of the question, never counters that two writers could disturb or block on.

CREATE TABLE cogo.kb_repos (
  id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant     text NOT NULL,
  name       text NOT NULL,
  root       text,                 -- the folder, as seen by the process that indexed it; absent for tables
  created_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (tenant, name)
);

CREATE TABLE cogo.kb_files (
  id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  repo_id    integer NOT NULL REFERENCES cogo.kb_repos ON DELETE CASCADE,
  path       text NOT NULL,
  digest     bytea NOT NULL,       -- of the content and of the way of indexing
  lang       text NOT NULL,
  note       text,                 -- what was done more simply than usual, and why
  n_chunks   integer NOT NULL,
  indexed_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (repo_id, path)
);

CREATE TABLE cogo.kb_chunks (
  file_id    integer NOT NULL REFERENCES cogo.kb_files ON DELETE CASCADE,
  ord        integer NOT NULL,     -- from 0, in the file's order
  kind       text NOT NULL,
  qualname   text NOT NULL,
  start_line integer NOT NULL,     -- 1-based, inclusive
  end_line   integer NOT NULL,
  text       text NOT NULL,        -- exactly these lines
  PRIMARY KEY (file_id, ord)
);

-- One row per word and file: the spans that hold it, and what it adds to their score (BM25's factor of
-- frequency and length; idf comes at the question). A question reads one short range per word.
CREATE TABLE cogo.kb_postings (
  repo_id integer NOT NULL,
  term    text COLLATE "C" NOT NULL,
  file_id integer NOT NULL REFERENCES cogo.kb_files ON DELETE CASCADE,
  ords    integer[] NOT NULL,
  weights real[] NOT NULL,
  PRIMARY KEY (repo_id, term, file_id)
);
CREATE INDEX kb_postings_file ON cogo.kb_postings (file_id);

-- Tables that the rag-dispatcher follows. rag/embed reads no other table, whatever a message says.
CREATE TABLE cogo.kb_sources (
  source        text PRIMARY KEY,  -- schema.table
  id_column     text NOT NULL,
  text_column   text NOT NULL,
  tenant_column text,
  updated_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE cogo.kg_files (
  id       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  repo_id  integer NOT NULL REFERENCES cogo.kb_repos ON DELETE CASCADE,
  path     text NOT NULL,
  digest   bytea NOT NULL,
  module   text NOT NULL,
  packaged boolean NOT NULL,       -- its name is that of an importable package's module
  source   text NOT NULL,          -- folder that its package is imported from
  note     text,
  UNIQUE (repo_id, path)
);

CREATE TABLE cogo.kg_nodes (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  repo_id    integer NOT NULL,
  file_id    integer NOT NULL REFERENCES cogo.kg_files ON DELETE CASCADE,
  kind       text NOT NULL CHECK (kind IN ('package', 'module', 'class', 'function')),
  qualname   text NOT NULL,
  start_line integer NOT NULL,
  end_line   integer NOT NULL
);
CREATE INDEX kg_nodes_name ON cogo.kg_nodes (repo_id, qualname);
CREATE INDEX kg_nodes_file ON cogo.kg_nodes (file_id);

-- Every reference that the code makes, by the names it may mean (the first that exists counts), with
-- what it resolved to. A reference to something that isn't there yet stays, with dst null, so that a
-- file that comes or changes repairs the edges that lead into it.
CREATE TABLE cogo.kg_edges (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  repo_id    integer NOT NULL,
  file_id    integer NOT NULL REFERENCES cogo.kg_files ON DELETE CASCADE,
  src        bigint NOT NULL REFERENCES cogo.kg_nodes ON DELETE CASCADE,
  kind       text NOT NULL CHECK (kind IN ('defines', 'imports', 'inherits')),
  names      text[] NOT NULL,
  line       integer NOT NULL,
  confidence text NOT NULL DEFAULT 'exact' CHECK (confidence IN ('exact', 'bound', 'guess')),
  dst        bigint REFERENCES cogo.kg_nodes ON DELETE SET NULL
);
CREATE INDEX kg_edges_src ON cogo.kg_edges (src, kind);
CREATE INDEX kg_edges_dst ON cogo.kg_edges (dst, kind);
CREATE INDEX kg_edges_file ON cogo.kg_edges (file_id);
CREATE INDEX kg_edges_repo ON cogo.kg_edges (repo_id, kind);

-- Other names of things: `import` for what a module re-exports (a.b -> a.impl.b, a.* -> a.impl.*),
-- `path` for what a file is called by its place in the repository.
CREATE TABLE cogo.kg_aliases (
  repo_id integer NOT NULL,
  file_id integer NOT NULL REFERENCES cogo.kg_files ON DELETE CASCADE,
  kind    text NOT NULL CHECK (kind IN ('import', 'path')),
  name    text NOT NULL,
  target  text NOT NULL
);
CREATE INDEX kg_aliases_name ON cogo.kg_aliases (repo_id, name);
CREATE INDEX kg_aliases_file ON cogo.kg_aliases (file_id);

-- Fresh postings are read right away: let autovacuum and analyze come soon after an import.
ALTER TABLE cogo.kb_postings SET (autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE cogo.kb_chunks SET (autovacuum_analyze_scale_factor = 0.05);

REVOKE ALL ON ALL TABLES IN SCHEMA cogo FROM PUBLIC, anon, authenticated;
GRANT ALL ON ALL TABLES IN SCHEMA cogo TO service_role;
GRANT ALL ON ALL SEQUENCES IN SCHEMA cogo TO service_role;
