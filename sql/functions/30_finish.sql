-- Out of `claimed`: a batch of outcomes, each guarded by its fence alone.
--
-- Never add `m.status = 'claimed'` to the WHERE: the planner then walks the partial `inflight` index
-- and a batch becomes quadratic; nor a plain equality of ids (see cogo.claim). Rows that are not returned were
-- stale claims; follow-up messages and events come only from the rows that were returned, so a zombie has no
-- effect at all.
--
-- kinds: done | failed | retry | delegated | released (given back, the attempt is not counted; with
-- retry_ms not before that time).
-- p_follow: [{parent, fence, service, role, shard, tenant, payload, key, priority, traceparent, delegate, ttl_ms}]
-- p_events: [{id, fence, kind, detail}]
CREATE OR REPLACE FUNCTION cogo.finish(
  p_ids bigint[], p_fences bigint[], p_kinds text[], p_snippets text[], p_urls text[],
  p_errors text[], p_retry_ms bigint[], p_traces text[], p_follow jsonb, p_events jsonb
) RETURNS TABLE (id bigint, status text)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = ''
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := cogo.now();
  v_ids bigint[]; v_fences bigint[]; v_statuses text[];
BEGIN
  IF 'retry' = ANY (p_kinds) THEN  -- the last attempt ends the message
    SELECT array_agg(CASE WHEN u.kind = 'retry' AND m.attempts >= cogo.max_attempts(m.service, m.role)
                     THEN 'failed' ELSE u.kind END ORDER BY u.n) INTO p_kinds
    FROM unnest(p_ids, p_kinds) WITH ORDINALITY AS u(id, kind, n)
    LEFT JOIN public.agent_messages m ON m.id = ANY (ARRAY[u.id]);
    SELECT l.kinds, l.errors INTO p_kinds, p_errors FROM cogo.limit_retries(p_ids, p_fences, p_kinds, p_errors) l;
  END IF;
  WITH u AS (
    SELECT u.id, u.fence, coalesce(u.kind, 'done') AS kind, u.snippet, u.url, u.error, u.retry_ms, u.trace
    FROM unnest(p_ids, p_fences, p_kinds, p_snippets, p_urls, p_errors, p_retry_ms, p_traces)
      AS u(id, fence, kind, snippet, url, error, retry_ms, trace)
  ), policy AS MATERIALIZED (
    SELECT * FROM cogo.bus_lanes
  ), fin AS (
    UPDATE public.agent_messages m SET
      status = CASE u.kind
        WHEN 'done' THEN 'done' WHEN 'delegated' THEN 'waiting' WHEN 'failed' THEN 'failed'
        ELSE 'queued' END,
      attempts = m.attempts - (u.kind = 'released')::integer,
      seq = CASE WHEN u.kind IN ('retry', 'released') THEN nextval('cogo.bus_seq') ELSE m.seq END,
      retry_at = CASE
        WHEN u.kind = 'retry' THEN v_now + coalesce(
          u.retry_ms * interval '1 ms', cogo.backoff(m.service, m.role, m.attempts))
        WHEN u.kind = 'released' THEN v_now + u.retry_ms * interval '1 ms' END,
      done_at = CASE WHEN u.kind IN ('done', 'failed') THEN v_now END,
      claimed_by = CASE WHEN u.kind IN ('retry', 'released') THEN NULL ELSE m.claimed_by END,
      fence = 0, deadline_at = NULL,
      awaits = CASE WHEN u.kind = 'delegated' THEN u.fence END,
      error = CASE WHEN u.kind IN ('done', 'delegated') THEN NULL ELSE coalesce(u.error, m.error) END,
      last_error_at = CASE WHEN u.error IS NOT NULL THEN v_now ELSE m.last_error_at END,
      result_snippet = u.snippet, result_url = u.url,
      traceparent = coalesce(m.traceparent, u.trace)
    FROM u WHERE m.id = ANY (ARRAY[u.id]) AND m.fence = u.fence AND u.fence > 0
    RETURNING m.id, u.fence, u.kind, m.status, m.service, m.role, m.shard, m.tenant, m.trace_id,
      m.error, m.attempts, m.claimed_by, m.created_at, m.claimed_at, m.reply_to
  ), ends AS (
    SELECT fin.*, CASE WHEN fin.status = 'queued' THEN 'retry' ELSE fin.status END AS suffix, p.events
    FROM fin LEFT JOIN policy p ON p.service = fin.service AND p.role = fin.role
    WHERE fin.kind NOT IN ('released', 'delegated')
  ), audit AS (
    INSERT INTO public.bus_events
      (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
    SELECT coalesce(e.events, e.service) || '_' || e.suffix, e.id, e.trace_id, e.tenant, e.service, e.role,
      e.shard, e.claimed_by, CASE WHEN e.error IS NULL AND e.attempts = 1 THEN '{}'  -- the usual end says nothing
        ELSE jsonb_strip_nulls(jsonb_build_object('error', e.error, 'attempts', e.attempts)) END
    FROM ends e WHERE e.events IS NOT NULL OR e.suffix = 'failed'
    UNION ALL
    SELECT p.events || '_retry', w.id, w.trace_id, w.tenant, w.service, w.role, w.shard, e.claimed_by,
      jsonb_strip_nulls(jsonb_build_object('target', e.id, 'error', e.error, 'attempts', e.attempts))
    FROM ends e JOIN public.agent_messages w ON w.id = ANY (ARRAY[e.reply_to]) AND w.status = 'waiting'
    JOIN policy p ON p.service = w.service AND p.role = w.role
    WHERE e.suffix = 'retry' AND p.events IS NOT NULL
  ), counted AS (
    INSERT INTO cogo.bus_stats (service, role, tenant, status, pickup_b, total_b, n)
    SELECT e.service, e.role, e.tenant, e.suffix, cogo.bucket(e.created_at, e.claimed_at),
      cogo.bucket(e.created_at, v_now), count(*)
    FROM ends e GROUP BY 1, 2, 3, 4, 5, 6
  )
  SELECT array_agg(fin.id), array_agg(fin.fence), array_agg(fin.status) INTO v_ids, v_fences, v_statuses FROM fin;
  IF v_ids IS NULL THEN RETURN; END IF;

  IF p_follow IS NOT NULL OR p_events IS NOT NULL THEN
    PERFORM cogo.publish(v_ids, v_fences, p_follow, p_events);
  END IF;
  IF EXISTS (SELECT FROM cogo.budget_holds WHERE closed_at IS NULL) THEN
    UPDATE cogo.budget_holds h SET closed_at = v_now
    FROM public.agent_messages m
    WHERE h.root_id = ANY (v_ids) AND h.closed_at IS NULL AND m.id = ANY (ARRAY[h.root_id])
      AND m.status IN ('done', 'failed', 'cancelled');
  END IF;
  PERFORM cogo.wake_waiters(v_ids);
  IF EXISTS (SELECT FROM cogo.bus_lanes l WHERE l.limits <> '{}') THEN PERFORM cogo.wake_limited(v_ids); END IF;
  IF 'queued' = ANY (v_statuses) THEN
    PERFORM cogo.wake(m.service, m.role, m.shard)
    FROM (SELECT DISTINCT service, role, shard FROM public.agent_messages
          WHERE id = ANY (v_ids) AND status = 'queued') m;
  END IF;
  RETURN QUERY SELECT * FROM unnest(v_ids, v_statuses);
END $$;

-- What accepted outcomes bring with them: follow-up messages and events of the handler's own. Apart from
-- finish(), whose planner switches hold here too, but for the one without which these joins are quadratic.
CREATE OR REPLACE FUNCTION cogo.publish(p_ids bigint[], p_fences bigint[], p_follow jsonb, p_events jsonb)
RETURNS void LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' SET enable_hashjoin = on AS $$
DECLARE v_now timestamptz := cogo.now();
BEGIN
  PERFORM set_config('cogo.wait_for_keys', 'off', true);
  INSERT INTO public.agent_messages (service, role, shard, tenant, payload, priority, idempotency_key,
    ordering_key, traceparent, root_id, reply_to, reply_fence, expires_at)
  SELECT f.service, f.role, f.shard, f.tenant, f.payload, f.priority, f.key, f.ordering_key, f.traceparent,
    coalesce(p.root_id, p.id),
    CASE WHEN f.delegate THEN p.id END, CASE WHEN f.delegate THEN f.fence END,
    least(p.expires_at, v_now + f.ttl_ms * interval '1 ms')
  FROM ROWS FROM (jsonb_to_recordset(p_follow) AS (parent bigint, fence bigint, service text, role text,
    shard integer, tenant text, payload jsonb, key text, priority smallint, traceparent text,
    delegate boolean, ttl_ms bigint, ordering_key text)) WITH ORDINALITY AS f
  JOIN unnest(p_ids, p_fences) AS u(id, fence) ON u.id = f.parent AND u.fence = f.fence
  JOIN public.agent_messages p ON p.id = ANY (ARRAY[f.parent]) AND p.status IN ('done', 'waiting')
  ORDER BY f.ordinality
  ON CONFLICT (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING;

  INSERT INTO public.bus_events (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
  SELECT e.kind, m.id, m.trace_id, m.tenant, m.service, m.role, m.shard, m.claimed_by, e.detail
  FROM jsonb_to_recordset(p_events) AS e(id bigint, fence bigint, kind text, detail jsonb)
  JOIN unnest(p_ids, p_fences) AS u(id, fence) ON u.id = e.id AND u.fence = e.fence
  JOIN public.agent_messages m ON m.id = ANY (ARRAY[e.id]);
END $$;

CREATE OR REPLACE FUNCTION cogo.max_attempts(p_service text, p_role text) RETURNS integer
LANGUAGE sql STABLE SET search_path = '' AS $$
  SELECT coalesce((SELECT l.max_attempts FROM cogo.bus_lanes l WHERE l.service = p_service AND l.role = p_role), 5)
$$;

-- least(cap, base * 2^(attempts-1)) * (0.5 .. 1.5): exponential, with jitter so that a burst of
-- failures does not come back as a burst.
CREATE OR REPLACE FUNCTION cogo.backoff(p_service text, p_role text, p_attempts integer)
RETURNS interval LANGUAGE sql VOLATILE SET search_path = '' AS $$
  SELECT (least(coalesce(max(l.backoff_cap_ms), 300000),
                coalesce(max(l.backoff_base_ms), 1000) * power(2, least(p_attempts - 1, 30)))
          * (0.5 + random())) * interval '1 ms'
  FROM cogo.bus_lanes l WHERE l.service = p_service AND l.role = p_role
$$;

-- Progress of a claimed message, numbered on. The row lock comes first, in a statement of its own: it
-- makes writers of one message take turns, and the next statement sees what the one before wrote.
CREATE OR REPLACE FUNCTION cogo.add_chunks(p_id bigint, p_fence bigint, p_kinds text[], p_datas text[])
RETURNS boolean LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
DECLARE v_root bigint;
BEGIN
  SELECT coalesce(m.root_id, m.id) INTO v_root FROM public.agent_messages m
  WHERE m.id = p_id AND m.fence = p_fence AND p_fence > 0 FOR NO KEY UPDATE;
  IF NOT FOUND THEN RETURN false; END IF;
  -- They belong to the root: that is the id which the client was given and follows.
  PERFORM FROM public.agent_messages m WHERE m.id = v_root AND v_root <> p_id FOR NO KEY UPDATE;
  INSERT INTO cogo.message_chunks (message_id, n, kind, data)
  SELECT v_root, (SELECT coalesce(max(k.n), 0) FROM cogo.message_chunks k WHERE k.message_id = v_root) + c.i,
         c.kind, c.data::jsonb
  FROM unnest(p_kinds, p_datas) WITH ORDINALITY AS c(kind, data, i);
  PERFORM cogo.wake_waiters(ARRAY[p_id, v_root]);
  RETURN true;
END $$;
