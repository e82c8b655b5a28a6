-- Small things that the other functions share: the clock, histogram buckets, wakeups.

-- The clock of every policy. Tests move it by SET cogo.clock_offset = '1 hour'.
CREATE OR REPLACE FUNCTION cogo.now() RETURNS timestamptz
LANGUAGE sql STABLE AS $$
  SELECT now() + coalesce(nullif(current_setting('cogo.clock_offset', true), ''), '0')::interval
$$;

-- Who acts, for the audit: named by our own callers, the user of a PostgREST request, or the login.
CREATE OR REPLACE FUNCTION cogo.actor() RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
  SELECT coalesce(nullif(current_setting('cogo.actor', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', session_user)
$$;

-- Histogram bucket of a duration: 0.1 ms * 1.2^b, so a percentile is right to 10 %; 0..127.
CREATE OR REPLACE FUNCTION cogo.bucket(p_from timestamptz, p_to timestamptz) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT least(127, greatest(0, floor(
    ln(greatest(date_part('epoch', p_to - p_from) * 10000.0, 1.0)) / 0.1823215567939546)))::smallint  -- ln 1.2
$$;

-- Tell the processes that sleep on a lane. Wakeups carry no data: truth is in the table.
CREATE OR REPLACE FUNCTION cogo.wake(p_service text, p_role text, p_shard integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  IF EXISTS (
    SELECT 1 FROM cogo.bus_idle i JOIN cogo.bus_holders h ON h.epoch = i.epoch
    WHERE i.service = p_service AND i.role = p_role AND i.shard = p_shard AND h.lease_until > cogo.now()
  ) THEN
    PERFORM pg_notify('cogo', 'lane:' || p_service || '/' || p_role || '/' || p_shard);
  END IF;
END $$;

-- Tell those who wait for the end or the chunks of these messages.
CREATE OR REPLACE FUNCTION cogo.wake_waiters(p_ids bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  IF EXISTS (SELECT FROM cogo.bus_waiters) THEN
    PERFORM pg_notify('cogo', 'result:' || w.message_id)
    FROM (SELECT DISTINCT message_id FROM cogo.bus_waiters WHERE message_id = ANY (p_ids)) w;
  END IF;
END $$;

-- What every end of a message brings with it, except on the hot path of finish(), which has the
-- same in its own statement: the lane's event, the counters, the budget's close, the wakeups.
-- (enable_seqscan, here and elsewhere: a plan from when the table was small must not scan it when it is large.)
CREATE OR REPLACE FUNCTION cogo.record_ends(p_ids bigint[], p_actor text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
DECLARE v_now timestamptz := cogo.now();
BEGIN
  INSERT INTO public.bus_events (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
  SELECT coalesce(l.events, m.service) || '_' || m.status, m.id, m.trace_id, m.tenant,
         m.service, m.role, m.shard, p_actor,
         jsonb_strip_nulls(jsonb_build_object('error', m.error, 'attempts', m.attempts))
  FROM public.agent_messages m
  LEFT JOIN cogo.bus_lanes l ON l.service = m.service AND l.role = m.role
  WHERE m.id = ANY (p_ids) AND (m.status = 'failed' OR (m.status = 'done' AND l.events IS NOT NULL));

  INSERT INTO cogo.bus_stats (service, role, tenant, status, pickup_b, total_b, n)
  SELECT m.service, m.role, m.tenant, m.status,
         CASE WHEN m.claimed_at IS NULL THEN -1 ELSE cogo.bucket(m.created_at, m.claimed_at) END,
         cogo.bucket(m.created_at, v_now), count(*)
  FROM public.agent_messages m WHERE m.id = ANY (p_ids) GROUP BY 1, 2, 3, 4, 5, 6;

  UPDATE cogo.budget_holds SET closed_at = v_now WHERE root_id = ANY (p_ids) AND closed_at IS NULL;
  PERFORM cogo.wake_waiters(p_ids);
END $$;

-- What each retry brings with it, except on the hot path of finish(): the event of the lane, the one of
-- the message that waits for it, and the counters.
CREATE OR REPLACE FUNCTION cogo.record_retries(p_ids bigint[], p_actor text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
BEGIN
  INSERT INTO public.bus_events (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
  SELECT l.events || '_retry', w.id, w.trace_id, w.tenant, w.service, w.role, w.shard, p_actor,
         jsonb_strip_nulls(jsonb_build_object(
           'target', nullif(m.id, w.id), 'error', m.error, 'attempts', m.attempts))
  FROM public.agent_messages m
  CROSS JOIN LATERAL (VALUES (m.id), (m.reply_to)) AS told(id)
  JOIN public.agent_messages w ON w.id = ANY (ARRAY[told.id]) AND (w.id = m.id OR w.status = 'waiting')
  JOIN cogo.bus_lanes l ON l.service = w.service AND l.role = w.role AND l.events IS NOT NULL
  WHERE m.id = ANY (p_ids) AND m.status = 'queued';

  INSERT INTO cogo.bus_stats (service, role, tenant, status, n)
  SELECT m.service, m.role, m.tenant, 'retry', count(*)
  FROM public.agent_messages m WHERE m.id = ANY (p_ids) AND m.status = 'queued' GROUP BY 1, 2, 3;
END $$;
