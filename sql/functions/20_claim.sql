-- After a crash of Postgres: the numbers of claims whose commit was lost must not be given again. Several
-- may leap, one after the other; the lock is held for the leap alone, not until their commits.
CREATE OR REPLACE FUNCTION cogo.revive() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  PERFORM pg_advisory_lock(hashtextextended('cogo.revive', 0));
  PERFORM setval('cogo.bus_fence', nextval('cogo.bus_fence') + 1000000000);
  PERFORM pg_advisory_unlock(hashtextextended('cogo.revive', 0));
  INSERT INTO cogo.bus_alive DEFAULT VALUES;
END $$;

-- Out of the lane: a batch of messages for one holder.
--
-- One scan for due retries and one per priority, each with the only plan that stays flat (an
-- ordered scan of its partial index); the outer LIMIT stops pulling, so no more rows are locked than
-- are returned. The ids go by an array, which is made once: a join might run the LIMIT again and claim too many.
--
-- A plan lives in its session for long, and may be from a time when the table was empty: then every way looks
-- the same. So there is only one: the planner switches leave nothing but index scans, and `= ANY (ARRAY[…])` is
-- no equality that a join could sort by, so that none of them walks a whole index. (Before Postgres 18 a
-- switched-off node costs 1e10 where it is the only way, which would start the JIT compiler.)
--
-- The commit is asynchronous: a claim that a crash of Postgres undoes is a message that is queued again, as
-- if its process had died, and a pickup need not wait for the disk. Whatever comes of the claim is
-- committed synchronously, and takes the claim along. Only the fences must not come back: after a crash
-- cogo.bus_alive is empty, and the sequence leaps.
-- p_after: for each priority 0..3 the seq after which to look. It only spares the walk over entries of
-- messages that have left the lane; the caller looks behind it often enough (cogo/core/watermark.py).
-- The rows come in no order: who handles them goes by priority, then seq.
-- An empty claim answers with one row without id when a retry is due later: runtime_s says when.
CREATE OR REPLACE FUNCTION cogo.claim(
  p_service text, p_role text, p_shard integer, p_limit integer,
  p_holder text, p_epoch bigint, p_timeout_ms bigint, p_after bigint[]
) RETURNS TABLE (
  id bigint, fence bigint, tenant text, payload text, attempts integer, root_id bigint,
  traceparent text, runtime_s double precision, expires_in_s double precision,
  queued_ms double precision, max_attempts integer, priority smallint, seq bigint
)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = ''
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := cogo.now();
  v_lane cogo.bus_lanes;
  v_timeout interval;
BEGIN
  SELECT * INTO v_lane FROM cogo.bus_lanes l WHERE l.service = p_service AND l.role = p_role;
  IF v_lane.paused_at IS NOT NULL THEN RETURN; END IF;
  IF EXISTS (SELECT FROM cogo.bus_alive) THEN
    PERFORM set_config('synchronous_commit', 'off', true);
  ELSE
    PERFORM cogo.revive();  -- the leap itself must not be lost
  END IF;
  IF v_lane.fair OR v_lane.limits <> '{}' OR v_lane.paused_tenants <> '{}' THEN
    RETURN QUERY SELECT * FROM cogo.claim_fair(
      p_service, p_role, p_shard, p_limit, p_holder, p_epoch, p_timeout_ms, p_after);
    RETURN;
  END IF;
  v_timeout := coalesce(v_lane.timeout_ms, p_timeout_ms) * interval '1 ms';
  RETURN QUERY
  UPDATE public.agent_messages m SET
    status = 'claimed', claimed_by = p_holder, holder_epoch = p_epoch, claimed_at = v_now,
    attempts = m.attempts + 1, fence = nextval('cogo.bus_fence'), retry_at = NULL,
    deadline_at = least(m.expires_at, v_now + v_timeout)
  WHERE m.id = ANY (ARRAY(
    SELECT b.id FROM (
      SELECT due.id FROM (
        SELECT m.id FROM public.agent_messages m
        WHERE m.service = p_service AND m.role = p_role AND m.shard = p_shard
          AND m.status = 'queued' AND m.retry_at IS NOT NULL AND m.retry_at <= v_now
          AND (m.expires_at IS NULL OR m.expires_at > v_now)
          AND (m.ordering_key IS NULL
            OR cogo.is_head(p_service, p_role, m.tenant, m.ordering_key, m.id))
        ORDER BY m.retry_at LIMIT greatest(1, p_limit / 2) FOR UPDATE SKIP LOCKED) due
      UNION ALL
      SELECT ready.id FROM (VALUES (0::smallint), (1), (2), (3)) AS level(priority) CROSS JOIN LATERAL (
        SELECT m.id FROM public.agent_messages m
        WHERE m.service = p_service AND m.role = p_role AND m.shard = p_shard
          AND m.priority = level.priority AND m.status = 'queued' AND m.retry_at IS NULL
          AND m.seq > p_after[level.priority + 1]
          AND (m.expires_at IS NULL OR m.expires_at > v_now)
          AND (m.ordering_key IS NULL
            OR cogo.is_head(p_service, p_role, m.tenant, m.ordering_key, m.id))
        ORDER BY m.seq LIMIT p_limit FOR UPDATE SKIP LOCKED) ready
    ) b LIMIT p_limit))
  RETURNING m.id, m.fence, m.tenant, m.payload::text, m.attempts, coalesce(m.root_id, m.id), m.traceparent,
    date_part('epoch', m.deadline_at - v_now), date_part('epoch', m.expires_at - v_now),
    date_part('epoch', v_now - m.created_at) * 1000, coalesce(v_lane.max_attempts, 5), m.priority, m.seq;
  IF NOT FOUND THEN
    RETURN QUERY
      SELECT NULL::bigint, NULL::bigint, NULL::text, NULL::text, NULL::integer, NULL::bigint, NULL::text,
        date_part('epoch', m.retry_at - v_now), NULL::double precision,
        NULL::double precision, NULL::integer, NULL::smallint, NULL::bigint
      FROM public.agent_messages m
      WHERE m.service = p_service AND m.role = p_role AND m.shard = p_shard
        AND m.status = 'queued' AND m.retry_at IS NOT NULL
      ORDER BY m.retry_at LIMIT 1;
  END IF;
END $$;

-- As the first version called it: without a watermark.
CREATE OR REPLACE FUNCTION cogo.claim(
  p_service text, p_role text, p_shard integer, p_limit integer,
  p_holder text, p_epoch bigint, p_timeout_ms bigint
) RETURNS TABLE (
  id bigint, fence bigint, tenant text, payload text, attempts integer, root_id bigint,
  traceparent text, runtime_s double precision, expires_in_s double precision,
  queued_ms double precision, max_attempts integer
)
LANGUAGE sql SECURITY INVOKER SET search_path = '' AS $$
  SELECT c.id, c.fence, c.tenant, c.payload, c.attempts, c.root_id, c.traceparent, c.runtime_s,
    c.expires_in_s, c.queued_ms, c.max_attempts
  FROM cogo.claim(p_service, p_role, p_shard, p_limit, p_holder, p_epoch, p_timeout_ms, '{0,0,0,0}') c
$$;
