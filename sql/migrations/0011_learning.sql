-- The orchestrator learns: what each decision knew, what came of it, and what a tenant may spend.

ALTER TABLE cogo.decisions
  ADD COLUMN chosen     integer,                         -- which of the candidates, from 0
  ADD COLUMN propensity double precision,                -- the probability with which it was chosen
  ADD COLUMN explored   boolean NOT NULL DEFAULT false,  -- not the one with the highest utility
  ADD COLUMN seed       double precision,
  ADD COLUMN inputs     jsonb,                           -- what the choice depended on beside outcomes
  ADD COLUMN past       jsonb,                           -- what learning from its outcome needs
  ADD COLUMN known      bigint,                          -- how many outcomes it knew,
  ADD COLUMN seen       pg_snapshot;                     -- and which: those that are visible in it

-- What came of decisions: how a run ended, and verdicts on what it made. Rows are only added. Whoever learns from
-- them remembers the snapshot in which it read; those not visible in it are new. (An id would not do: a
-- transaction with a lower one may commit later.)
CREATE TABLE cogo.outcomes (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant      text NOT NULL,
  decision_id bigint NOT NULL,
  attempt     integer NOT NULL DEFAULT 1,
  source      text NOT NULL,                   -- run: how it ended; else whose verdict it is
  key         text NOT NULL DEFAULT '',        -- the caller's idempotency key
  past        jsonb NOT NULL,                  -- the decision's: what was known, and what was expected
  ok          boolean,
  error_class text CHECK (error_class IN ('callee', 'caller', 'timeout', 'budget', 'infra')),
  cost_usd    numeric CHECK (cost_usd >= 0),
  latency_ms  double precision CHECK (latency_ms >= 0),
  reward      double precision CHECK (reward >= 0 AND reward <= 1),
  weight      double precision NOT NULL DEFAULT 1,
  comment     text,
  at          timestamptz NOT NULL DEFAULT now(),
  xact        xid8 NOT NULL DEFAULT pg_current_xact_id(),
  UNIQUE (decision_id, source, attempt, key)
);
CREATE INDEX outcomes_new ON cogo.outcomes (tenant, xact);

-- What a tenant may spend within a window. window_at: since when; NULL until the first decision.
CREATE TABLE cogo.budgets (
  tenant         text PRIMARY KEY,
  limit_usd      numeric NOT NULL CHECK (limit_usd >= 0),
  window_s       bigint NOT NULL CHECK (window_s > 0),
  window_at      timestamptz,
  spent_usd      numeric NOT NULL DEFAULT 0,
  reserved_usd   numeric NOT NULL DEFAULT 0,
  expected_tasks bigint CHECK (expected_tasks > 0),
  tasks          bigint NOT NULL DEFAULT 0,           -- decided within the window
  lambda_cost    double precision NOT NULL DEFAULT 0  -- what the last decision paid for a dollar, beside the dollar
);
-- What the root message's hold took out of its tenant's budget, until the hold closes.
ALTER TABLE cogo.budget_holds ADD COLUMN reserved_usd numeric NOT NULL DEFAULT 0;

REVOKE ALL ON cogo.outcomes, cogo.budgets FROM PUBLIC, anon, authenticated;
GRANT ALL ON cogo.outcomes, cogo.budgets TO service_role;
