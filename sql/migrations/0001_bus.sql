-- The bus: one table of messages, one of audit events, and what claiming, leases and budgets need.
--
-- `public.agent_messages` stays ONE plain table (no partitions, no view): Supabase Realtime finds
-- tables by publication name and gets no events from a partitioned parent. Every column beyond the
-- contract has a default, so a plain INSERT by psql, PostgREST or a Supabase client is a valid
-- message. A message is claimed while fence > 0; every way out of `claimed` sets fence to 0, so the
-- write of a zombie misses. Policy lives in sql/functions; this file only holds what stores data.
--
-- No index may name a column that a claim or a finish changes, except through its partial
-- predicate: dispatch must not touch rows that are done.

CREATE SCHEMA IF NOT EXISTS cogo;

-- Supabase has these three roles; elsewhere they are made, without login, so that grants read alike.
DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['anon', 'authenticated', 'service_role'] LOOP
    BEGIN
      IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = name) THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', name);
      END IF;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- two databases migrate at once
    END;
  END LOOP;
END $$;

CREATE SEQUENCE cogo.bus_seq AS bigint CACHE 1;    -- order within a lane; a fresh value at every requeue
CREATE SEQUENCE cogo.bus_fence AS bigint CACHE 1;  -- proves that a claim is current
CREATE SEQUENCE cogo.bus_epoch AS bigint CACHE 1;  -- one value per start of a process

CREATE TABLE public.agent_messages (
  id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  created_at      timestamptz NOT NULL DEFAULT now(),
  service         text NOT NULL,
  role            text NOT NULL,
  shard           integer NOT NULL DEFAULT 0,
  tenant          text NOT NULL DEFAULT 'default',
  payload         jsonb NOT NULL DEFAULT '{}',
  status          text NOT NULL DEFAULT 'queued',
  claimed_by      text,
  claimed_at      timestamptz,
  done_at         timestamptz,
  error           text,
  attempts        integer NOT NULL DEFAULT 0,
  last_error_at   timestamptz,
  retry_at        timestamptz,
  result_snippet  text,
  result_url      text,
  -- beyond the contract
  seq             bigint NOT NULL DEFAULT nextval('cogo.bus_seq'),
  priority        smallint NOT NULL DEFAULT 2,
  fence           bigint NOT NULL DEFAULT 0,
  holder_epoch    bigint,
  expires_at      timestamptz,
  deadline_at     timestamptz,
  idempotency_key text,
  traceparent     text,
  trace_id        text GENERATED ALWAYS AS (substr(traceparent, 4, 32)) STORED,
  root_id         bigint,
  reply_to        bigint,
  reply_fence     bigint,
  awaits          bigint,
  ordering_key    text,
  CONSTRAINT agent_messages_service CHECK (service ~ '^[a-z][a-z0-9_-]{0,62}$'),
  CONSTRAINT agent_messages_role CHECK (role ~ '^[a-z][a-z0-9_-]{0,62}$'),
  CONSTRAINT agent_messages_tenant CHECK (tenant ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
  CONSTRAINT agent_messages_shard CHECK (shard BETWEEN 0 AND 32767),
  CONSTRAINT agent_messages_priority CHECK (priority BETWEEN 0 AND 3),
  CONSTRAINT agent_messages_status
    CHECK (status IN ('queued', 'claimed', 'waiting', 'done', 'failed', 'cancelled')),
  CONSTRAINT agent_messages_key CHECK (length(idempotency_key) BETWEEN 1 AND 255),
  CONSTRAINT agent_messages_traceparent
    CHECK (traceparent ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$')
);

CREATE UNIQUE INDEX agent_messages_idempotency ON public.agent_messages (tenant, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX agent_messages_ready ON public.agent_messages (service, role, shard, priority, seq)
  WHERE status = 'queued' AND retry_at IS NULL;
CREATE INDEX agent_messages_due ON public.agent_messages (service, role, shard, retry_at)
  WHERE status = 'queued' AND retry_at IS NOT NULL;
CREATE INDEX agent_messages_inflight ON public.agent_messages (claimed_by) WHERE status = 'claimed';
CREATE INDEX agent_messages_waiting ON public.agent_messages (id) WHERE status = 'waiting';
CREATE INDEX agent_messages_dead ON public.agent_messages (tenant, last_error_at) WHERE status = 'failed';
CREATE INDEX agent_messages_reply ON public.agent_messages (reply_to) WHERE reply_to IS NOT NULL;
CREATE INDEX agent_messages_trace ON public.agent_messages (trace_id) WHERE trace_id IS NOT NULL;
CREATE INDEX agent_messages_expires ON public.agent_messages (expires_at)
  WHERE expires_at IS NOT NULL AND status IN ('queued', 'claimed', 'waiting');

-- Dead entries at the front of `ready` are what slows claims; vacuum early and at full speed.
ALTER TABLE public.agent_messages SET (
  autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_cost_delay = 0, autovacuum_vacuum_insert_scale_factor = 0.05
);

CREATE TABLE public.bus_events (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  created_at  timestamptz NOT NULL DEFAULT now(),
  kind        text NOT NULL,
  message_id  bigint,
  trace_id    text,
  tenant      text NOT NULL,
  service     text,
  role        text,
  shard       integer,
  actor       text,
  detail      jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX bus_events_created ON public.bus_events USING brin (created_at);
CREATE INDEX bus_events_message ON public.bus_events (message_id);

-- A lane's policy, upserted at boot by the processes that serve it, so that a reclaimer without the
-- role's code can enforce it. shard is absent on purpose: policy belongs to (service, role).
CREATE TABLE cogo.bus_lanes (
  service         text NOT NULL,
  role            text NOT NULL,
  max_attempts    integer NOT NULL DEFAULT 5 CHECK (max_attempts > 0),
  backoff_base_ms bigint NOT NULL DEFAULT 1000 CHECK (backoff_base_ms >= 0),
  backoff_cap_ms  bigint NOT NULL DEFAULT 300000 CHECK (backoff_cap_ms >= 0),
  timeout_ms      bigint CHECK (timeout_ms > 0),
  events          text,
  intents         text[] NOT NULL DEFAULT '{}',
  paused_at       timestamptz,
  fair            boolean NOT NULL DEFAULT false,
  limits          jsonb NOT NULL DEFAULT '{}',
  updated_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (service, role)
);

-- One row per start of a process. The lease says until when its claims stand.
CREATE TABLE cogo.bus_holders (
  epoch       bigint PRIMARY KEY DEFAULT nextval('cogo.bus_epoch'),
  holder      text NOT NULL,
  lease_until timestamptz NOT NULL,
  started_at  timestamptz NOT NULL DEFAULT now(),
  beat_at     timestamptz NOT NULL DEFAULT now(),
  roles       text[] NOT NULL DEFAULT '{}',
  lanes       text[] NOT NULL DEFAULT '{}',
  detail      jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX bus_holders_name ON cogo.bus_holders (holder);

-- Who sleeps on which lane: the insert trigger notifies only then (a NOTIFY in a busy commit takes a
-- cluster-wide lock). UNLOGGED: after a crash the listener reconnects and registers again.
CREATE UNLOGGED TABLE cogo.bus_idle (
  service text NOT NULL,
  role    text NOT NULL,
  shard   integer NOT NULL,
  epoch   bigint NOT NULL,
  PRIMARY KEY (service, role, shard, epoch)
);

-- Who waits for the end (or the chunks) of a message.
CREATE UNLOGGED TABLE cogo.bus_waiters (
  message_id bigint NOT NULL,
  token      uuid NOT NULL,
  until      timestamptz NOT NULL,
  PRIMARY KEY (message_id, token)
);

-- Waiting messages that were cancelled: what they wait for is cancelled next, in its own transaction.
CREATE TABLE cogo.bus_cancels (
  id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  parent_id bigint NOT NULL,
  awaits    bigint NOT NULL  -- which child: the parent may have been requeued since, and wait for another
);

-- Counters, insert-only on the way of a message (a row that each batch updates would be the next
-- victim of bloat under a held snapshot); upkeep rolls them up into minutes. Buckets: cogo.bucket().
CREATE TABLE cogo.bus_stats (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at       timestamptz NOT NULL DEFAULT now(),
  service  text NOT NULL,
  role     text NOT NULL,
  tenant   text NOT NULL,
  status   text NOT NULL,
  pickup_b smallint NOT NULL DEFAULT -1,
  total_b  smallint NOT NULL DEFAULT -1,
  n        bigint NOT NULL
);
CREATE TABLE cogo.bus_stats_minutes (
  minute   timestamptz NOT NULL,
  service  text NOT NULL,
  role     text NOT NULL,
  tenant   text NOT NULL,
  status   text NOT NULL,
  pickup_b smallint NOT NULL,
  total_b  smallint NOT NULL,
  n        bigint NOT NULL,
  PRIMARY KEY (minute, service, role, tenant, status, pickup_b, total_b)
);

-- The one ledger of budgets: keyed by the root message, drawn from before each model call.
CREATE TABLE cogo.budget_holds (
  root_id        bigint PRIMARY KEY,
  tenant         text NOT NULL,
  max_cost_usd   numeric CHECK (max_cost_usd >= 0),  -- no scale: rounding would make small draws free
  max_tokens     bigint CHECK (max_tokens >= 0),
  spent_cost_usd numeric NOT NULL DEFAULT 0,
  spent_tokens   bigint NOT NULL DEFAULT 0,
  created_at     timestamptz NOT NULL DEFAULT now(),
  closed_at      timestamptz
);
CREATE INDEX budget_holds_open ON cogo.budget_holds (root_id) WHERE closed_at IS NULL;

-- Progress and streamed tokens; n is the Last-Event-ID of the stream.
CREATE TABLE cogo.message_chunks (
  message_id bigint NOT NULL,
  n          integer NOT NULL,
  kind       text NOT NULL,
  data       jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (message_id, n)
);
CREATE INDEX message_chunks_created ON cogo.message_chunks USING brin (created_at);

-- Results that are too long for result_snippet; result_url names the digest.
CREATE TABLE cogo.artifacts (
  tenant     text NOT NULL,
  digest     text NOT NULL,
  media_type text NOT NULL DEFAULT 'application/json',
  body       bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant, digest)
);

-- Why work went where it went.
CREATE TABLE cogo.decisions (
  id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  created_at     timestamptz NOT NULL DEFAULT now(),
  tenant         text NOT NULL,
  message_id     bigint,
  trace_id       text,
  intent         text NOT NULL,
  lane           text,
  arm            jsonb NOT NULL DEFAULT '{}',
  assignment     jsonb NOT NULL DEFAULT '{}',
  candidates     jsonb NOT NULL DEFAULT '[]',
  reason         text NOT NULL,
  policy_version text NOT NULL
);
CREATE INDEX decisions_message ON cogo.decisions (message_id) WHERE message_id IS NOT NULL;
CREATE INDEX decisions_tenant ON cogo.decisions (tenant, id);

-- Row level security: a Supabase client sees and cancels its own tenant's messages and may insert
-- into the ingress lane. The claim is app_metadata.tenants, which users cannot write.
CREATE FUNCTION cogo.claimed_tenants() RETURNS text[]
LANGUAGE sql STABLE SECURITY INVOKER SET search_path = '' AS $$
  SELECT coalesce(array_agg(t), '{}')
  FROM jsonb_array_elements_text(
    CASE jsonb_typeof(nullif(current_setting('request.jwt.claims', true), '')::jsonb
                      #> '{app_metadata,tenants}')
      WHEN 'array' THEN nullif(current_setting('request.jwt.claims', true), '')::jsonb
                        #> '{app_metadata,tenants}'
      ELSE '[]'::jsonb
    END) AS t
$$;

ALTER TABLE public.agent_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.bus_events ENABLE ROW LEVEL SECURITY;

CREATE POLICY agent_messages_select ON public.agent_messages FOR SELECT TO authenticated
  USING (tenant = ANY ((SELECT cogo.claimed_tenants())::text[]));
CREATE POLICY agent_messages_insert ON public.agent_messages FOR INSERT TO authenticated
  WITH CHECK (
    tenant = ANY ((SELECT cogo.claimed_tenants())::text[])
    AND service = 'orchestrator' AND role = 'decide' AND shard = 0 AND status = 'queued'
    AND NOT jsonb_path_exists(payload, '$.**.__assignment')
  );
CREATE POLICY agent_messages_cancel ON public.agent_messages FOR UPDATE TO authenticated
  USING (tenant = ANY ((SELECT cogo.claimed_tenants())::text[])
         AND status IN ('queued', 'claimed', 'waiting'))
  WITH CHECK (status = 'cancelled');
-- On Supabase service_role bypasses row level security; where we made the role, this says the same.
CREATE POLICY agent_messages_service ON public.agent_messages TO service_role USING (true) WITH CHECK (true);
CREATE POLICY bus_events_service ON public.bus_events TO service_role USING (true) WITH CHECK (true);
CREATE POLICY bus_events_select ON public.bus_events FOR SELECT TO authenticated
  USING (tenant = ANY ((SELECT cogo.claimed_tenants())::text[]));

REVOKE ALL ON public.agent_messages, public.bus_events FROM PUBLIC, anon, authenticated;
GRANT SELECT ON public.agent_messages, public.bus_events TO authenticated;
GRANT INSERT (service, role, shard, tenant, payload, status, idempotency_key),
      UPDATE (status) ON public.agent_messages TO authenticated;
GRANT USAGE ON SCHEMA cogo TO authenticated, service_role;
GRANT USAGE ON SEQUENCE cogo.bus_seq TO authenticated;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA cogo FROM PUBLIC, anon, authenticated;
GRANT EXECUTE ON FUNCTION cogo.claimed_tenants() TO authenticated;

REVOKE ALL ON ALL TABLES IN SCHEMA cogo FROM PUBLIC, anon, authenticated;
GRANT ALL ON ALL TABLES IN SCHEMA cogo TO service_role;
GRANT ALL ON public.agent_messages, public.bus_events TO service_role;
GRANT ALL ON ALL SEQUENCES IN SCHEMA cogo TO service_role;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA cogo TO service_role;
