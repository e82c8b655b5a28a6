-- Agents have versions, and a new version is tried on a share of the work before it gets all of it.

-- Versions (and models) that do a lane's work. A lane without any is one arm by itself.
CREATE TABLE cogo.agents (
  agent_id       text NOT NULL,             -- service/role of the lane
  version        text NOT NULL DEFAULT '',
  model          text NOT NULL DEFAULT '',
  status         text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'draining', 'paused', 'retired')),
  list_price_usd numeric CHECK (list_price_usd >= 0),
  changed_by     text NOT NULL,
  changed_at     timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (agent_id, version, model)
);

-- One version of a tenant's agent against another. Whoever decides looks at outcomes and moves it; `run` counts its
-- moves, so that a move is made once by whoever comes first, and outcomes of an earlier run aren't mixed with later ones.
CREATE TABLE cogo.canaries (
  id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant         text NOT NULL,
  agent_id       text NOT NULL,
  base_version   text,
  base_model     text,                      -- NULL: whichever
  canary_version text,
  canary_model   text,
  steps          double precision[] NOT NULL CHECK (cardinality(steps) > 0),  -- percent of the base's work
  step           integer NOT NULL DEFAULT 0,
  state          text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'paused', 'promoted', 'rolled_back')),
  run            integer NOT NULL DEFAULT 0,
  cause          text,
  resumes        integer NOT NULL DEFAULT 0,
  resume_at      timestamptz,               -- of one that was paused by what it showed; NULL: a person has to
  analysis       jsonb,
  changed_by     text NOT NULL,
  created_at     timestamptz NOT NULL DEFAULT now(),
  changed_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX canaries_tenant ON cogo.canaries (tenant, id);
-- Of an agent one at a time: a share of a share would be compared with nothing.
CREATE UNIQUE INDEX canaries_one ON cogo.canaries (tenant, agent_id) WHERE state IN ('running', 'paused');

REVOKE ALL ON cogo.agents, cogo.canaries FROM PUBLIC, anon, authenticated;
GRANT ALL ON cogo.agents, cogo.canaries TO service_role;
