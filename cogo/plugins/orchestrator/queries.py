"""Every SQL statement of the orchestrator."""

from __future__ import annotations

LANES = """
SELECT l.service, l.role, s.shard, l.intents, l.timeout_ms, l.paused_at IS NOT NULL AS paused,
       (SELECT count(*) FROM cogo.bus_holders h WHERE h.lease_until > cogo.now()
          AND (l.service || '/' || l.role || '/' || s.shard) = ANY (h.lanes)) AS holders,
       (SELECT count(*) FROM (SELECT 1 FROM public.agent_messages m
          WHERE m.service = l.service AND m.role = l.role AND m.shard = s.shard
            AND m.status = 'queued' AND m.retry_at IS NULL LIMIT 1001) q) AS depth,
  (SELECT json_agg(json_build_object('version', nullif(a.version, ''), 'model', nullif(a.model, ''),
       'status', a.status, 'list_price_usd', a.list_price_usd::float8) ORDER BY a.version, a.model)
     FROM cogo.agents a WHERE a.agent_id = l.service || '/' || l.role AND a.status <> 'retired')::text AS agents
FROM cogo.bus_lanes l CROSS JOIN LATERAL (
  SELECT DISTINCT split_part(lane, '/', 3)::integer AS shard
  FROM cogo.bus_holders h CROSS JOIN unnest(h.lanes) AS lane
  WHERE h.lease_until > cogo.now() AND lane LIKE l.service || '/' || l.role || '/%%'
  UNION SELECT 0
) s
WHERE %(intent)s::text IS NULL OR %(intent)s = ANY (l.intents)
ORDER BY l.service, l.role, s.shard
"""
INTENTS = "SELECT DISTINCT unnest(intents) AS intent FROM cogo.bus_lanes ORDER BY 1"

# In one snapshot: which outcomes are new to who read in the snapshot `seen`, the tenant's budget, the time, an id.
# `xact` bounds what the index is asked for; `after` keeps rows that a dump brought from another cluster, whose
# transaction numbers mean nothing here, from being taken for new ones. Of a tenant's canaries the last hundred count.
_SENSE = """
WITH this AS MATERIALIZED (
  SELECT pg_current_snapshot() AS seen, coalesce(to_timestamp(%(now_ms)s::float8 / 1000), cogo.now()) AS now,
    nextval(pg_get_serial_sequence('cogo.decisions', 'id')) AS decision_id)
SELECT this.seen::text, (extract(epoch FROM this.now) * 1000)::bigint AS now_ms, this.decision_id,
  b.limit_usd::float8, b.expected_tasks, b.lambda_cost,
  (extract(epoch FROM b.window_at + b.window_s * interval '1 s' - this.now) * 1000)::bigint AS window_left_ms,
  b.window_s * 1000 AS window_ms, b.spent_usd::float8, b.reserved_usd::float8, b.tasks,
  (SELECT json_agg(json_build_object('id', c.id, 'agent_id', c.agent_id, 'base_version', c.base_version,
    'base_model', c.base_model, 'canary_version', c.canary_version, 'canary_model', c.canary_model, 'steps', c.steps,
    'step', c.step, 'state', c.state, 'run', c.run, 'cause', c.cause, 'resumes', c.resumes,
    'resume_ms', (extract(epoch FROM c.resume_at) * 1000)::bigint) ORDER BY c.id)
   FROM (SELECT * FROM cogo.canaries c WHERE c.tenant = %(tenant)s ORDER BY c.id DESC LIMIT 100) c)::text AS canaries,
  ({in_force})::text AS policies, o.*
FROM this LEFT JOIN cogo.budgets b ON b.tenant = %(tenant)s
LEFT JOIN LATERAL ({new}) o ON true
"""
IN_FORCE = (
    "SELECT json_object_agg(p.status, p.params) FROM cogo.policies p WHERE p.status IN ('active', 'shadow')"
)
_OUTCOME = """
SELECT x.id, x.decision_id AS of_decision, x.source, x.ok, x.error_class, x.cost_usd::float8 AS cost_usd, x.latency_ms, x.reward, x.weight,
  (extract(epoch FROM x.at) * 1000)::bigint AS at_ms, x.past::text AS past
FROM cogo.outcomes x WHERE x.tenant = %(tenant)s
"""
SENSE_FIRST = _SENSE.format(in_force=IN_FORCE, new=_OUTCOME + " ORDER BY x.id DESC LIMIT %(limit)s")
SENSE_NEW = _SENSE.format(
    in_force=IN_FORCE,
    new=_OUTCOME
    + """ AND x.xact >= pg_snapshot_xmin(%(seen)s::pg_snapshot) AND x.id > %(after)s
  AND NOT pg_visible_in_snapshot(x.xact, %(seen)s::pg_snapshot) ORDER BY x.id""",
)

RECORD = """
INSERT INTO cogo.decisions (id, tenant, message_id, trace_id, intent, lane, arm, assignment, candidates, reason,
  policy_version, chosen, propensity, explored, seed, inputs, past, known, seen, idempotency_key, request_digest, shadow)
OVERRIDING SYSTEM VALUE
VALUES (%(id)s, %(tenant)s, %(message_id)s, %(trace_id)s, %(intent)s, %(lane)s, %(arm)s::jsonb, %(assignment)s::jsonb,
  %(candidates)s::jsonb, %(reason)s, %(policy_version)s, %(chosen)s, %(propensity)s, %(explored)s, %(seed)s,
  %(inputs)s::jsonb, %(past)s::jsonb, %(known)s, %(seen)s::pg_snapshot, %(key)s, %(digest)s, %(shadow)s::jsonb)
ON CONFLICT (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING RETURNING id
"""
COUNT_TASK = "SELECT cogo.count_task(%(tenant)s, to_timestamp(%(now_ms)s::float8 / 1000), %(lambda_cost)s)"
RESERVE = """
SELECT cogo.reserve(%(tenant)s, coalesce(to_timestamp(%(now_ms)s::float8 / 1000), cogo.now()), %(least)s::numeric,
  %(most)s::numeric)::float8 AS granted
"""
HOLD = """
INSERT INTO cogo.budget_holds AS h (root_id, tenant, max_cost_usd, max_tokens, reserved_usd)
VALUES (%(root)s, %(tenant)s, %(cost)s::numeric, %(tokens)s, %(reserved)s::numeric)
ON CONFLICT (root_id) DO UPDATE SET reserved_usd = h.reserved_usd + excluded.reserved_usd
RETURNING root_id
"""
EVENT = """
INSERT INTO public.bus_events (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
VALUES (%s, %s, %s, %s, 'orchestrator', 'execute', 0, %s, %s)
"""
EARLIER = """
SELECT m.id, m.payload ->> 'request_digest' AS digest, d.id AS decision_id, d.lane, d.reason, d.policy_version,
  d.arm::text AS arm, d.assignment::text AS assignment, d.candidates::text AS candidates, d.propensity, d.explored,
  d.seed, d.known
FROM public.agent_messages m
LEFT JOIN cogo.decisions d ON d.message_id = m.id
WHERE m.tenant = %s AND m.idempotency_key = %s
"""
EARLIER_DECISION = """
SELECT d.id AS decision_id, d.request_digest AS digest, d.lane, d.reason, d.policy_version, d.arm::text AS arm,
  d.assignment::text AS assignment, d.candidates::text AS candidates, d.propensity, d.explored, d.seed, d.known
FROM cogo.decisions d WHERE d.tenant = %s AND d.idempotency_key = %s
"""
TO_EXECUTE = """
SELECT d.id, d.tenant, d.intent, d.lane, d.message_id, d.assignment::text AS assignment,
  (d.candidates -> d.chosen ->> 'cost_usd')::float8 AS cost_usd,
  (SELECT b.limit_usd - b.spent_usd - b.reserved_usd FROM cogo.budgets b WHERE b.tenant = d.tenant)::float8 AS left_usd
FROM cogo.decisions d
WHERE d.id = %(id)s AND d.chosen IS NOT NULL AND (%(tenants)s::text[] IS NULL OR d.tenant = ANY (%(tenants)s))
FOR UPDATE OF d
"""
EXECUTED = """
UPDATE cogo.decisions SET message_id = %(message_id)s, lane = %(lane)s, trace_id = %(trace_id)s,
  assignment = %(assignment)s::jsonb
WHERE id = %(id)s RETURNING id
"""
DECISION = """
SELECT d.id, d.created_at, d.tenant, d.message_id, d.trace_id, d.intent, d.lane, d.arm::text AS arm,
  d.assignment::text AS assignment, d.candidates::text AS candidates, d.reason, d.policy_version, d.chosen,
  d.propensity, d.explored, d.seed, d.known, d.inputs::text AS inputs, d.past::text AS past, d.seen::text AS seen, d.shadow::text AS shadow
FROM cogo.decisions d WHERE d.id = %(id)s AND (%(tenants)s::text[] IS NULL OR d.tenant = ANY (%(tenants)s))
"""
OUTCOMES_OF = """
SELECT id, source, attempt, ok, error_class, cost_usd::float8 AS cost_usd, latency_ms, reward, weight, comment, at
FROM cogo.outcomes WHERE decision_id = %s ORDER BY id LIMIT 100
"""

# A run and a verdict are rows of their own; each comes once. The cost of a run without a hold is spent now.
FEEDBACK = """
WITH d AS (
  SELECT d.id, d.tenant, d.past, d.created_at < cogo.now() - interval '30 days' AS old, d.message_id,
    coalesce(to_timestamp(%(now_ms)s::float8 / 1000), cogo.now()) AS now
  FROM cogo.decisions d WHERE d.id = %(decision)s AND (%(tenants)s::text[] IS NULL OR d.tenant = ANY (%(tenants)s))
), run AS (
  INSERT INTO cogo.outcomes (tenant, decision_id, attempt, source, past, ok, error_class, cost_usd, latency_ms, at)
  SELECT d.tenant, d.id, %(attempt)s::integer, 'run', d.past, %(ok)s::boolean, %(error_class)s::text, %(cost_usd)s::numeric, %(latency_ms)s::float8, d.now
  FROM d WHERE NOT d.old AND d.past IS NOT NULL AND %(ok)s::boolean IS NOT NULL
  ON CONFLICT DO NOTHING RETURNING cost_usd
), verdict AS (
  INSERT INTO cogo.outcomes (tenant, decision_id, attempt, source, key, past, reward, weight, comment, at)
  SELECT d.tenant, d.id, %(attempt)s::integer, %(source)s::text, %(key)s::text, d.past, %(reward)s::float8, %(weight)s::float8, %(comment)s::text, d.now
  FROM d WHERE NOT d.old AND d.past IS NOT NULL AND %(reward)s::float8 IS NOT NULL
  ON CONFLICT DO NOTHING RETURNING id
), spent AS (
  UPDATE cogo.budgets b SET spent_usd = b.spent_usd + run.cost_usd
  FROM d, run WHERE b.tenant = d.tenant AND d.message_id IS NULL AND run.cost_usd > 0
)
SELECT d.id, d.old, d.past IS NOT NULL AS learnt, EXISTS (SELECT FROM run) AS run, EXISTS (SELECT FROM verdict) AS verdict
FROM d
"""

PUT_BUDGET = """
INSERT INTO cogo.budgets AS b (tenant, limit_usd, window_s, expected_tasks)
VALUES (%(tenant)s, %(limit_usd)s::numeric, %(window_s)s, %(expected_tasks)s)
ON CONFLICT (tenant) DO UPDATE SET limit_usd = excluded.limit_usd, window_s = excluded.window_s,
  expected_tasks = excluded.expected_tasks
RETURNING tenant, limit_usd::float8, window_s, window_at, spent_usd::float8, reserved_usd::float8, expected_tasks, tasks,
  lambda_cost
"""
BUDGETS = """
SELECT tenant, limit_usd::float8, window_s, window_at, spent_usd::float8, reserved_usd::float8, expected_tasks, tasks, lambda_cost
FROM cogo.budgets WHERE %(tenants)s::text[] IS NULL OR tenant = ANY (%(tenants)s) ORDER BY tenant LIMIT 1000
"""

LOGGED = """
SELECT id, known, chosen, policy_version, seen::text AS seen, inputs::text AS inputs, candidates::text AS candidates
FROM cogo.decisions WHERE tenant = %(tenant)s AND inputs IS NOT NULL ORDER BY id DESC LIMIT %(limit)s
"""
LEARNT = _OUTCOME.replace("SELECT x.id,", "SELECT x.xact::text::bigint AS xact, x.id,", 1) + " ORDER BY x.id"

MOVE_CANARY = """
SELECT cogo.move_canary(%(id)s, %(run)s, %(state)s, %(step)s, %(resumes)s,
  to_timestamp(%(resume_ms)s::float8 / 1000), %(cause)s, %(analysis)s::jsonb, %(by)s) AS moved
"""
START_CANARY = """
WITH started AS (
  INSERT INTO cogo.canaries (tenant, agent_id, base_version, base_model, canary_version, canary_model, steps, changed_by)
  VALUES (%(tenant)s, %(agent_id)s, %(base_version)s, %(base_model)s, %(canary_version)s, %(canary_model)s,
    %(steps)s::float8[], %(by)s)
  ON CONFLICT (tenant, agent_id) WHERE state IN ('running', 'paused') DO NOTHING
  RETURNING id, tenant, agent_id, steps
), told AS (
  INSERT INTO public.bus_events (kind, tenant, service, role, shard, actor, detail)
  SELECT 'orchestrate_canary', s.tenant, 'orchestrator', 'decide', 0, %(by)s, jsonb_build_object('canary_id', s.id,
    'agent_id', s.agent_id, 'from', NULL, 'to', 'running', 'weight_to', s.steps[1]) FROM started s
)
SELECT id FROM started
"""
CANARIES = """
SELECT id, tenant, agent_id, base_version, base_model, canary_version, canary_model, steps, step, state, run, cause,
  resumes, resume_at, (extract(epoch FROM resume_at) * 1000)::bigint AS resume_ms, analysis, changed_by, created_at,
  changed_at
FROM cogo.canaries
WHERE (%(tenants)s::text[] IS NULL OR tenant = ANY (%(tenants)s)) AND (%(id)s::bigint IS NULL OR id = %(id)s)
ORDER BY id DESC LIMIT 1000
"""
PUT_AGENT = """
INSERT INTO cogo.agents AS a (agent_id, version, model, status, list_price_usd, changed_by)
VALUES (%(agent_id)s, coalesce(%(version)s, ''), coalesce(%(model)s, ''), %(status)s, %(list_price_usd)s::numeric, %(by)s)
ON CONFLICT (agent_id, version, model) DO UPDATE SET status = excluded.status,
  list_price_usd = excluded.list_price_usd, changed_by = excluded.changed_by, changed_at = cogo.now()
RETURNING agent_id, nullif(version, '') AS version, nullif(model, '') AS model, status, list_price_usd::float8,
  changed_by, changed_at
"""
AGENTS = """
SELECT agent_id, nullif(version, '') AS version, nullif(model, '') AS model, status, list_price_usd::float8,
  changed_by, changed_at
FROM cogo.agents ORDER BY agent_id, version, model LIMIT 1000
"""

PUT_POLICY = """
INSERT INTO cogo.policies (version, params, created_by) VALUES (%(version)s, %(params)s::jsonb, %(by)s)
ON CONFLICT (version) DO NOTHING
"""
POLICIES = """
SELECT version, status, params::text AS params, evaluation::text AS evaluation, created_by, created_at, activated_by,
  activated_at
FROM cogo.policies WHERE %(version)s::text IS NULL OR version = %(version)s ORDER BY created_at, version LIMIT 1000
"""
MOVE_POLICY = """
SELECT cogo.move_policy(%(version)s, %(status)s, %(reason)s, %(evaluation)s::jsonb, %(by)s) AS moved
"""

# The run of a decision's latest attempt, and the mean verdict on it or, if that came apart, on a later one.
OUTCOMES_TO_COMPARE = """
SELECT d.id, d.chosen, d.propensity, d.policy_version, d.inputs::text AS inputs, d.candidates::text AS candidates,
  (d.past ->> 'n')::bigint AS clock, r.ok, r.error_class, r.cost_usd, r.latency_ms, v.reward
FROM (
  SELECT * FROM cogo.decisions d WHERE d.tenant = %(tenant)s AND (%(since)s::timestamptz IS NULL OR d.created_at >= %(since)s)
  ORDER BY d.id DESC LIMIT %(limit)s
) d
LEFT JOIN LATERAL (
  SELECT o.ok, o.error_class, o.cost_usd::float8 AS cost_usd, o.latency_ms, o.attempt FROM cogo.outcomes o
  WHERE o.decision_id = d.id AND o.ok IS NOT NULL ORDER BY o.attempt DESC LIMIT 1
) r ON true
LEFT JOIN LATERAL (
  SELECT sum(o.reward * o.weight) / nullif(sum(o.weight), 0) AS reward FROM cogo.outcomes o
  WHERE o.decision_id = d.id AND o.reward IS NOT NULL AND o.attempt >= r.attempt
  GROUP BY o.attempt ORDER BY o.attempt DESC LIMIT 1
) v ON true
ORDER BY d.id
"""
