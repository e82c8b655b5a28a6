"""The SQL of the metrics. Ended messages come from counters, living ones from partial indexes:
nothing here scans rows that are done. `tenants` is a text array, or NULL for every tenant.
"""

from __future__ import annotations

from cogo.web import Paged

MINE = "(%(tenants)s::text[] IS NULL OR tenant = ANY (%(tenants)s))"
LIVING_MAX = 100_000
"""Rows counted of each living state; beyond it a count reads as "at least"."""

ENDED = f"""
SELECT status, sum(n)::bigint AS n FROM cogo.bus_counts
WHERE status IN ('done', 'failed', 'cancelled') AND {MINE} GROUP BY 1
"""  # noqa: S608 (no input in it)

LIVING = f"""
SELECT service, role, shard, status, count(*) AS n, min(created_at) AS oldest,
  count(retry_at) FILTER (WHERE retry_at < '9999-12-31Z') AS retrying  -- beyond: behind another of its key
FROM (
  (SELECT service, role, shard, status, retry_at, created_at FROM public.agent_messages
   WHERE status = 'queued' AND retry_at IS NULL AND {MINE} LIMIT {LIVING_MAX})
  UNION ALL
  (SELECT service, role, shard, status, retry_at, created_at FROM public.agent_messages
   WHERE status = 'queued' AND retry_at IS NOT NULL AND {MINE} LIMIT {LIVING_MAX})
  UNION ALL
  (SELECT service, role, shard, status, NULL, created_at FROM public.agent_messages
   WHERE status = 'claimed' AND {MINE} LIMIT {LIVING_MAX})
  UNION ALL
  (SELECT service, role, shard, status, NULL, created_at FROM public.agent_messages
   WHERE status = 'waiting' AND {MINE} LIMIT {LIVING_MAX})
) living GROUP BY 1, 2, 3, 4
"""  # noqa: S608

BUCKETS = f"""
SELECT service, role, status, pickup_b, total_b, sum(n)::bigint AS n FROM cogo.bus_counts
WHERE minute > cogo.now() - %(window_s)s * interval '1 s' AND {MINE} GROUP BY 1, 2, 3, 4, 5
"""  # noqa: S608

PER_MINUTE = f"""
SELECT minute, coalesce(sum(n) FILTER (WHERE status = 'done'), 0)::bigint AS done,
  coalesce(sum(n) FILTER (WHERE status = 'failed'), 0)::bigint AS failed
FROM cogo.bus_counts WHERE minute > cogo.now() - interval '60 minutes' AND {MINE} GROUP BY 1 ORDER BY 1
"""  # noqa: S608

HOLDERS = """
SELECT holder, epoch, roles, lanes, started_at, beat_at, detail ->> 'version' AS version
FROM cogo.bus_holders WHERE lease_until > cogo.now() ORDER BY holder, epoch LIMIT 1000
"""

LANES = """
SELECT service, role, max_attempts, timeout_ms, intents, paused_at IS NOT NULL AS paused
FROM cogo.bus_lanes ORDER BY service, role
"""

# Requests that run, and the newest thousand: two short ranges of indexes.
COST = f"""
SELECT coalesce(sum(spent_cost_usd), 0) AS spent_cost_usd, coalesce(sum(spent_tokens), 0)::bigint AS spent_tokens,
  coalesce(sum(max_cost_usd), 0) AS max_cost_usd, count(*) AS requests
FROM cogo.budget_holds WHERE closed_at IS NULL AND {MINE}
"""  # noqa: S608
COST_RECENT = f"""
SELECT coalesce(sum(spent_cost_usd), 0) AS spent_cost_usd, coalesce(sum(spent_tokens), 0)::bigint AS spent_tokens,
  count(*) AS requests, min(created_at) AS since
FROM (SELECT * FROM cogo.budget_holds WHERE {MINE} ORDER BY root_id DESC LIMIT 1000) newest
"""  # noqa: S608

# A failure stands once, where it began: what waited for it failed with the same words.
FAILURES = f"""
SELECT code, service, role, md5(code || service || role || words) AS fingerprint, count(*) AS n,
  min(last_error_at) AS first_seen, max(last_error_at) AS last_seen,
  (array_agg(error ORDER BY last_error_at DESC))[1] AS sample,
  (array_agg(id ORDER BY last_error_at DESC))[1:5] AS ids
FROM (
  SELECT m.id, m.service, m.role, m.last_error_at, left(m.error, 500) AS error,
    split_part(coalesce(m.error, ''), ':', 1) AS code,
    regexp_replace(regexp_replace(left(m.error, 300), '''[^'']*''|"[^"]*"', '…', 'g'), '[0-9]+', 'N', 'g') AS words
  FROM public.agent_messages m
  WHERE m.status = 'failed' AND m.last_error_at > cogo.now() - %(window_s)s * interval '1 s'
    AND {MINE}
    AND NOT EXISTS (SELECT 1 FROM public.agent_messages c WHERE c.reply_to = m.id AND c.status = 'failed')
  ORDER BY m.last_error_at DESC LIMIT 10000
) failed GROUP BY 1, 2, 3, 4 ORDER BY n DESC, last_seen DESC LIMIT 100
"""  # noqa: S608

_EVENT = """
SELECT id, created_at, kind, message_id, trace_id, tenant, service, role, shard, actor, detail::text AS detail
FROM public.bus_events
"""

EVENTS = Paged(
    newest="SELECT coalesce(max(id), 0) FROM public.bus_events",
    oldest="SELECT created_at FROM public.bus_events WHERE id >= %(low)s ORDER BY id LIMIT 1",
    page=f"""
    {_EVENT} WHERE id < %(before)s AND id >= %(low)s AND {MINE}
      AND (%(kind)s::text IS NULL OR kind = %(kind)s)
      AND (%(message_id)s::bigint IS NULL OR message_id = %(message_id)s)
      AND (%(trace_id)s::text IS NULL OR trace_id = %(trace_id)s)
      AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
    ORDER BY id DESC LIMIT %(limit)s
    """,
)

BY_KIND = f"""
SELECT kind, count(*) AS n FROM (
  SELECT kind FROM public.bus_events
  WHERE id > (SELECT coalesce(max(id), 0) FROM public.bus_events) - 10000 AND {MINE}
) newest GROUP BY 1 ORDER BY 2 DESC, 1
"""  # noqa: S608

TRACE = f"""
SELECT id, created_at, service, role, shard, tenant, status, claimed_by, claimed_at, done_at, attempts, error,
  retry_at, reply_to, root_id, result_url
FROM public.agent_messages WHERE trace_id = %(trace_id)s AND {MINE} ORDER BY id LIMIT 500
"""  # noqa: S608
TRACE_EVENTS = f"{_EVENT} WHERE message_id = ANY (%(ids)s) ORDER BY created_at, id LIMIT 2000"
TRACE_DECISIONS = """
SELECT id, created_at, message_id, intent, lane, arm::text AS arm, candidates::text AS candidates,
  assignment::text AS assignment, reason, policy_version
FROM cogo.decisions WHERE message_id = ANY (%(ids)s) ORDER BY id LIMIT 200
"""

RECENT_DECISIONS = f"""
SELECT id, created_at, tenant, message_id, intent, lane, reason, policy_version
FROM cogo.decisions WHERE {MINE} ORDER BY id DESC LIMIT %(limit)s
"""  # noqa: S608
