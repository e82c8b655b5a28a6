"""The statements of the commands that look at the bus. All of them only read."""

from __future__ import annotations

# The states are literal and apart, so that each part walks its own partial index and none the done rows.
LANES = """
WITH open AS (
  SELECT service, role, shard, 'queued' AS status, created_at
  FROM public.agent_messages WHERE status = 'queued' AND retry_at IS NULL
  UNION ALL SELECT service, role, shard, 'queued', created_at
  FROM public.agent_messages WHERE status = 'queued' AND retry_at IS NOT NULL
  UNION ALL SELECT service, role, shard, 'claimed', created_at
  FROM public.agent_messages WHERE status = 'claimed'
  UNION ALL SELECT service, role, shard, 'waiting', created_at
  FROM public.agent_messages WHERE status = 'waiting'
)
SELECT service || '/' || role || '/' || shard AS lane,
  count(*) FILTER (WHERE status = 'queued') AS queued,
  count(*) FILTER (WHERE status = 'claimed') AS claimed,
  count(*) FILTER (WHERE status = 'waiting') AS waiting,
  (extract(epoch FROM cogo.now() - min(created_at)) * 1000)::float8 AS oldest_ms
FROM open GROUP BY 1 ORDER BY 1
"""

HOLDERS = """
SELECT holder, epoch, roles, lanes, started_at, beat_at, lease_until > cogo.now() AS live,
  (extract(epoch FROM cogo.now() - started_at) * 1000)::float8 AS up_ms
FROM cogo.bus_holders WHERE beat_at > cogo.now() - interval '1 day' ORDER BY epoch DESC LIMIT 100
"""

FAMILY = """
SELECT id, service || '/' || role || '/' || shard AS lane, tenant, status, attempts, error, claimed_by,
  created_at, claimed_at, done_at, trace_id, reply_to,
  (extract(epoch FROM claimed_at - created_at) * 1000)::float8 AS pickup_ms,
  (extract(epoch FROM done_at - created_at) * 1000)::float8 AS total_ms
FROM public.agent_messages WHERE id = %s
  OR trace_id = (SELECT trace_id FROM public.agent_messages WHERE id = %s) ORDER BY id LIMIT 1000
"""

EVENTS_OF_FAMILY = """
SELECT e.id, e.created_at, e.kind, e.message_id, e.tenant, e.service, e.role, e.shard, e.actor, e.detail
FROM public.bus_events e WHERE e.message_id IN (
  SELECT id FROM public.agent_messages WHERE id = %s
    OR trace_id = (SELECT trace_id FROM public.agent_messages WHERE id = %s))
ORDER BY e.created_at, e.id LIMIT 1000
"""

_EVENT = "SELECT id, created_at, kind, message_id, trace_id, tenant, service, role, shard, actor, detail"
_WANTED = """(%s::text IS NULL OR service = %s) AND (%s::text IS NULL OR tenant = %s)
  AND (%s::text IS NULL OR kind = %s)"""

NEWEST_EVENT = "SELECT coalesce(max(id), 0) FROM public.bus_events"
LAST_EVENTS = f"""
SELECT * FROM ({_EVENT} FROM public.bus_events WHERE {_WANTED} ORDER BY id DESC LIMIT %s) AS last ORDER BY id
"""  # noqa: S608 (only constants of this file are joined)
EVENTS_AFTER = f"""
{_EVENT} FROM public.bus_events WHERE id > %s AND {_WANTED} ORDER BY id LIMIT 1000
"""

# -- doctor ------------------------------------------------------------------------------------

SERVER = """
SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby,
  extract(epoch FROM clock_timestamp())::float8 AS now_s, current_database() AS name
"""
ORPHAN_LANES = """
SELECT m.service || '/' || m.role || '/' || m.shard AS lane, count(*) AS queued,
  (extract(epoch FROM cogo.now() - min(m.created_at)) * 1000)::float8 AS oldest_ms
FROM (  -- the two predicates of the partial indexes: `queued` alone would read every done row
  (SELECT service, role, shard, created_at FROM public.agent_messages
   WHERE status = 'queued' AND retry_at IS NULL LIMIT 100000)
  UNION ALL
  (SELECT service, role, shard, created_at FROM public.agent_messages
   WHERE status = 'queued' AND retry_at IS NOT NULL LIMIT 100000)
) m
WHERE NOT EXISTS (
  SELECT 1 FROM cogo.bus_holders h WHERE h.lease_until > cogo.now()
    AND m.service || '/' || m.role || '/' || m.shard = ANY (h.lanes))
GROUP BY 1 ORDER BY 2 DESC LIMIT 20
"""
STUCK_CLAIMS = """
SELECT m.id, m.service || '/' || m.role || '/' || m.shard AS lane, m.claimed_by,
  (extract(epoch FROM cogo.now() - m.claimed_at) * 1000)::float8 AS held_ms
FROM public.agent_messages m
WHERE m.status = 'claimed' AND (m.deadline_at < cogo.now() - interval '10 s'
  OR m.holder_epoch IS NOT NULL AND NOT EXISTS (SELECT 1 FROM cogo.bus_holders h
     WHERE h.epoch = m.holder_epoch AND h.lease_until > cogo.now() - interval '10 s'))
ORDER BY m.claimed_at LIMIT 20
"""
DEAD_LETTERS = """
SELECT count(*) FROM public.agent_messages WHERE status = 'failed' AND last_error_at > cogo.now() - interval '1 day'
"""
VECTORS_IN_TROUBLE = """
SELECT CASE status WHEN 'failed' THEN 'failed' ELSE 'put off' END AS status, count(*) AS n, max(error) AS error
FROM public.agent_messages
WHERE service = 'rag' AND role = 'embed' AND payload @> '{"vectors": true}'
  AND (status = 'failed' AND last_error_at > cogo.now() - interval '1 day'
    OR status = 'queued' AND retry_at IS NOT NULL AND error IS NOT NULL)
GROUP BY 1 ORDER BY 1
"""
