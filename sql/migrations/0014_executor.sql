-- What the executor needs to know before it hands out work: how much of a target's is under way, and how it ended.

-- One row for each dispatch, from the commit that made the target's message until a day after its end. It has the
-- policy that it was dispatched under, since others than the executor act on it.
CREATE TABLE cogo.dispatches (
  message_id  bigint NOT NULL,    -- of the executor's message: the target's has it as reply_to
  fence       bigint NOT NULL,    -- of the claim that dispatched it: its reply_fence
  service     text NOT NULL,
  role        text NOT NULL,
  tenant      text NOT NULL,
  probe       boolean NOT NULL,   -- tries a target whose breaker is half open
  retry_ratio double precision NOT NULL,  -- retries for each success
  retry_floor integer NOT NULL,           -- retries a minute besides
  at          timestamptz NOT NULL,
  ended_at    timestamptz,
  ok          boolean,            -- NULL, once it has ended: that says nothing about the target
  PRIMARY KEY (message_id, fence)
);
CREATE INDEX dispatches_running ON cogo.dispatches (service, role, tenant) WHERE ended_at IS NULL;
CREATE INDEX dispatches_done ON cogo.dispatches (service, role, ended_at) WHERE ok;
CREATE INDEX dispatches_failed ON cogo.dispatches (service, role, ended_at) WHERE NOT ok;
ALTER TABLE cogo.dispatches SET (
  autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);

-- Retries that were granted to a target; insert-only.
CREATE TABLE cogo.dispatch_retries (
  id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  service text NOT NULL,
  role    text NOT NULL,
  n       integer NOT NULL,
  at      timestamptz NOT NULL
);
CREATE INDEX dispatch_retries_at ON cogo.dispatch_retries (service, role, at);

REVOKE ALL ON cogo.dispatches, cogo.dispatch_retries FROM PUBLIC, anon, authenticated;
GRANT ALL ON cogo.dispatches, cogo.dispatch_retries TO service_role;
