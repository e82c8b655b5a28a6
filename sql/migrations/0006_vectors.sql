-- Vectors of chunks, beside the words that they are found by.
--
-- Each model has a table of its own (cogo.vector_model() makes it): so a new one fills in the background while
-- the old one answers, and is dropped whole. A vector belongs to a file and to the digest of the text that was
-- embedded, not to a place in the file: an edit leaves the vectors of all other symbols as they are.

ALTER TABLE cogo.kb_chunks ADD COLUMN digest bytea;

CREATE TABLE cogo.kb_models (
  id         smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name       text NOT NULL,
  revision   text NOT NULL,
  dimension  integer NOT NULL CHECK (dimension BETWEEN 1 AND 4000),  -- what halfvec's index takes
  base_url   text,              -- of the server that embeds; NULL: it runs in the process
  pgvector   text,              -- the schema of the extension whose halfvec holds them; NULL: bytea of float16
  serving    boolean NOT NULL DEFAULT false,
  retired_at timestamptz,       -- since when another one answers in its place
  created_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE NULLS NOT DISTINCT (name, revision, dimension, base_url)
);
CREATE UNIQUE INDEX kb_models_serving ON cogo.kb_models (serving) WHERE serving;

REVOKE ALL ON cogo.kb_models FROM PUBLIC, anon, authenticated;
GRANT ALL ON cogo.kb_models TO service_role;
