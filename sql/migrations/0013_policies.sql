-- Policies: which one decides, which one only looks on, and which ones did.

-- Of the whole deployment. Without an active one the settings of each process decide.
CREATE TABLE cogo.policies (
  version      text PRIMARY KEY,                      -- what decisions log, such as thompson-1:0.02
  status       text NOT NULL DEFAULT 'candidate' CHECK (status IN ('candidate', 'shadow', 'active', 'retired')),
  params       jsonb NOT NULL CHECK (jsonb_typeof(params -> 'explore') IS NOT DISTINCT FROM 'string'
                                     AND jsonb_typeof(params -> 'exploration') IS NOT DISTINCT FROM 'number'),
  evaluation   jsonb,                                 -- the off-policy report that its last move was made by
  created_by   text NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  activated_by text,
  activated_at timestamptz
);
CREATE UNIQUE INDEX policies_active ON cogo.policies (status) WHERE status = 'active';
CREATE UNIQUE INDEX policies_shadow ON cogo.policies (status) WHERE status = 'shadow';

-- What the shadow would have done: {version, p: [of each candidate], chosen}.
ALTER TABLE cogo.decisions ADD COLUMN shadow jsonb;

REVOKE ALL ON cogo.policies FROM PUBLIC, anon, authenticated;
GRANT ALL ON cogo.policies TO service_role;
