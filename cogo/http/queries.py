"""The SQL of the messages routes. `tenants` is a text array, or NULL for every tenant."""

from __future__ import annotations

from .paging import Paged

COLUMNS = """
  m.id, m.created_at, m.service, m.role, m.shard, m.tenant, m.payload::text AS payload, m.status,
  m.claimed_by, m.claimed_at, m.done_at, m.error, m.attempts, m.last_error_at, m.retry_at,
  m.result_snippet, m.result_url, m.priority, m.expires_at, m.deadline_at, m.idempotency_key,
  m.trace_id, m.root_id, m.reply_to
"""

# In one place, since "another tenant's" and "unknown" must be the same statement.
MESSAGE = f"""
SELECT {COLUMNS} FROM public.agent_messages m
WHERE m.id = %(id)s AND (%(tenants)s::text[] IS NULL OR m.tenant = ANY (%(tenants)s))
"""  # noqa: S608 (no input in it)

VISIBLE = """
SELECT m.tenant FROM public.agent_messages m
WHERE m.id = %(id)s AND (%(tenants)s::text[] IS NULL OR m.tenant = ANY (%(tenants)s))
"""

# Whatever descends from the message by delegation; the tenant of a child is its parent's.
CHILDREN = f"""
WITH RECURSIVE kids AS (
  SELECT k.id, 1 AS depth FROM public.agent_messages k WHERE k.reply_to = %(id)s
  UNION ALL
  SELECT k.id, kids.depth + 1 FROM kids JOIN public.agent_messages k ON k.reply_to = kids.id
  WHERE kids.depth < 32
)
SELECT {COLUMNS} FROM public.agent_messages m JOIN kids ON kids.id = m.id ORDER BY m.id LIMIT 200
"""  # noqa: S608

EVENTS = """
SELECT e.id, e.created_at, e.kind, e.message_id, e.service, e.role, e.shard, e.actor, e.detail::text AS detail
FROM public.bus_events e WHERE e.message_id = ANY (%(ids)s) ORDER BY e.created_at, e.id LIMIT 1000
"""

DECISIONS = """
SELECT d.id, d.created_at, d.message_id, d.intent, d.lane, d.arm::text AS arm,
  d.assignment::text AS assignment, d.candidates::text AS candidates, d.reason, d.policy_version
FROM cogo.decisions d WHERE d.message_id = ANY (%(ids)s) ORDER BY d.id LIMIT 50
"""

COST = """
SELECT h.max_cost_usd, h.spent_cost_usd, h.max_tokens, h.spent_tokens, h.closed_at
FROM cogo.budget_holds h WHERE h.root_id = %(root)s
"""

NEWEST = "SELECT coalesce(max(id), 0) FROM public.agent_messages"

# One window of ids, newest first: a filter that matches nothing can't walk the table.
PAGE = f"""
SELECT {COLUMNS} FROM public.agent_messages m
WHERE m.id < %(before)s AND m.id >= %(low)s
  AND (%(tenants)s::text[] IS NULL OR m.tenant = ANY (%(tenants)s))
  AND (%(service)s::text IS NULL OR m.service = %(service)s)
  AND (%(role)s::text IS NULL OR m.role = %(role)s)
  AND (%(status)s::text IS NULL OR m.status = %(status)s)
  AND (%(since)s::timestamptz IS NULL OR m.created_at >= %(since)s)
  AND (%(q)s::text IS NULL OR m.trace_id = %(q)s OR m.idempotency_key = %(q)s
       OR strpos(lower(m.payload::text), lower(%(q)s)) > 0 OR strpos(lower(m.error), lower(%(q)s)) > 0)
ORDER BY m.id DESC LIMIT %(limit)s
"""  # noqa: S608

# The oldest row of a window tells whether all that comes before it is older than `since`.
OLDEST = "SELECT created_at FROM public.agent_messages WHERE id >= %(low)s ORDER BY id LIMIT 1"

MESSAGES = Paged(newest=NEWEST, oldest=OLDEST, page=PAGE)

CHUNKS = """
SELECT n, kind, data::text AS data FROM cogo.message_chunks
WHERE message_id = (SELECT coalesce(root_id, id) FROM public.agent_messages WHERE id = %(id)s)
  AND n > %(after)s ORDER BY n LIMIT 200
"""

ARTIFACT = """
SELECT media_type, body FROM cogo.artifacts
WHERE digest = %(digest)s AND (%(tenants)s::text[] IS NULL OR tenant = ANY (%(tenants)s)) LIMIT 1
"""
