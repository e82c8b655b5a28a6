-- Flow control by operators: pause and resume, dead letters and their way back, how deep a lane is.

-- Tell whoever sleeps on any shard of a lane.
CREATE OR REPLACE FUNCTION cogo.wake_lane(p_service text, p_role text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = '' AS $$
  SELECT cogo.wake(p_service, p_role, i.shard) FROM (
    SELECT DISTINCT b.shard FROM cogo.bus_idle b WHERE b.service = p_service AND b.role = p_role) i
$$;

-- These messages are no longer claimed: in a lane with limits somebody may wait for their slots.
CREATE OR REPLACE FUNCTION cogo.wake_limited(p_ids bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
BEGIN
  PERFORM cogo.wake_lane(d.service, d.role) FROM (
    SELECT DISTINCT m.service, m.role FROM public.agent_messages m
    JOIN cogo.bus_lanes l ON l.service = m.service AND l.role = m.role AND l.limits <> '{}'
    WHERE m.id = ANY (p_ids)) d;
END $$;

-- Claim nothing more of a lane (p_tenant NULL), or of one tenant in it; what runs goes on. false: it was
-- paused before. The event of a whole lane belongs to no tenant: '*'.
CREATE OR REPLACE FUNCTION cogo.pause(
  p_service text, p_role text, p_tenant text, p_actor text, p_reason text DEFAULT ''
) RETURNS boolean LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
BEGIN
  INSERT INTO cogo.bus_lanes AS l (service, role, paused_at, paused_tenants)
  VALUES (p_service, p_role, CASE WHEN p_tenant IS NULL THEN cogo.now() END,
          array_remove(ARRAY[p_tenant], NULL))
  ON CONFLICT (service, role) DO UPDATE SET updated_at = cogo.now(),
    paused_at = coalesce(l.paused_at, excluded.paused_at),
    paused_tenants = l.paused_tenants || excluded.paused_tenants
  WHERE CASE WHEN p_tenant IS NULL THEN l.paused_at IS NULL ELSE p_tenant <> ALL (l.paused_tenants) END;
  IF NOT FOUND THEN RETURN false; END IF;
  PERFORM cogo.record_pause('paused', p_service, p_role, p_tenant, p_actor, p_reason);
  RETURN true;
END $$;

-- The opposite; who sleeps on the lane is told. A tenant stays paused when its lane is resumed.
CREATE OR REPLACE FUNCTION cogo.resume(
  p_service text, p_role text, p_tenant text, p_actor text, p_reason text DEFAULT ''
) RETURNS boolean LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
BEGIN
  UPDATE cogo.bus_lanes l SET updated_at = cogo.now(),
    paused_at = CASE WHEN p_tenant IS NOT NULL THEN l.paused_at END,
    paused_tenants = array_remove(l.paused_tenants, p_tenant)
  WHERE l.service = p_service AND l.role = p_role
    AND CASE WHEN p_tenant IS NULL THEN l.paused_at IS NOT NULL ELSE p_tenant = ANY (l.paused_tenants) END;
  IF NOT FOUND THEN RETURN false; END IF;
  DELETE FROM cogo.bus_floors f WHERE f.service = p_service AND f.role = p_role;
  PERFORM cogo.record_pause('resumed', p_service, p_role, p_tenant, p_actor, p_reason);
  PERFORM cogo.wake_lane(p_service, p_role);
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION cogo.record_pause(
  p_kind text, p_service text, p_role text, p_tenant text, p_actor text, p_reason text
) RETURNS void LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = '' AS $$
  INSERT INTO public.bus_events (kind, tenant, service, role, actor, detail)
  VALUES (p_kind, coalesce(p_tenant, '*'), p_service, p_role, p_actor,
          jsonb_strip_nulls(jsonb_build_object('reason', nullif(p_reason, ''))))
$$;

-- -- dead letters ----------------------------------------------------------------------------------

-- The stable code at the start of an error; free text of outsiders has none.
CREATE OR REPLACE FUNCTION cogo.error_code(p_error text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE WHEN c.word ~ '^[A-Za-z0-9_.-]+$' AND pg_catalog.length(c.word) < 64 THEN c.word ELSE 'other' END
  FROM pg_catalog.split_part(pg_catalog.left(p_error, 64), ':', 1) AS c(word)
$$;

-- Failed messages by lane and code, the most frequent first. answers: how many of them answered another
-- message, so that their root has to be requeued instead. Looks at 200,000 rows at most; capped: there are more.
CREATE OR REPLACE FUNCTION cogo.dead_letters(
  p_service text DEFAULT NULL, p_role text DEFAULT NULL, p_tenants text[] DEFAULT NULL, p_limit integer DEFAULT 100
) RETURNS TABLE (
  service text, role text, code text, n bigint, answers bigint, tenants bigint, first_seen timestamptz,
  last_seen timestamptz, sample_id bigint, sample_error text, capped boolean
)
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  WITH f AS MATERIALIZED (
    SELECT m.id, m.service, m.role, m.tenant, m.reply_to, coalesce(m.last_error_at, m.done_at) AS at, m.error
    FROM public.agent_messages m
    WHERE m.status = 'failed' AND (p_tenants IS NULL OR m.tenant = ANY (p_tenants))
      AND (p_service IS NULL OR m.service = p_service) AND (p_role IS NULL OR m.role = p_role)
    LIMIT 200000
  ), g AS (
    SELECT f.service, f.role, cogo.error_code(f.error) AS code, count(*) AS n, count(f.reply_to) AS answers,
      count(DISTINCT f.tenant) AS tenants, min(f.at) AS first_seen, max(f.at) AS last_seen, max(f.id) AS sample_id
    FROM f GROUP BY 1, 2, 3 ORDER BY n DESC, last_seen DESC LIMIT p_limit
  )
  SELECT g.*, s.error, (SELECT count(*) FROM f) >= 200000
  FROM g JOIN public.agent_messages s ON s.id = ANY (ARRAY[g.sample_id]) ORDER BY g.n DESC, g.last_seen DESC;
END $$;

-- One batch of failed messages back to the ends of their lanes, as cogo.requeue does it for one: those of a
-- lane, of tenants, with a code, that failed before a time, or with these ids; what is NULL doesn't matter.
-- Call it until it redrives none. refused: matching ones that answered another message; nobody waits for them
-- any more, so requeue their roots (counted by the call that finds no full batch). p_dry_run only counts.
CREATE OR REPLACE FUNCTION cogo.redrive(
  p_service text DEFAULT NULL, p_role text DEFAULT NULL, p_tenants text[] DEFAULT NULL, p_code text DEFAULT NULL,
  p_before timestamptz DEFAULT NULL, p_ids bigint[] DEFAULT NULL, p_limit integer DEFAULT 1000,
  p_actor text DEFAULT NULL, p_reason text DEFAULT '', p_dry_run boolean DEFAULT false
) RETURNS TABLE (redriven bigint, refused bigint)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = ''
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$  -- in the order of the index: by time in each tenant
DECLARE
  v_found bigint[]; v_ids bigint[]; v_refused bigint := 0;
BEGIN
  v_found := ARRAY(
    SELECT m.id FROM public.agent_messages m
    WHERE m.status = 'failed' AND m.reply_to IS NULL AND (p_tenants IS NULL OR m.tenant = ANY (p_tenants))
      AND (p_ids IS NULL OR m.id = ANY (p_ids))
      AND (p_service IS NULL OR m.service = p_service) AND (p_role IS NULL OR m.role = p_role)
      AND (p_before IS NULL OR coalesce(m.last_error_at, m.done_at) < p_before)
      AND (p_code IS NULL OR cogo.error_code(m.error) = p_code)
    LIMIT p_limit);
  IF cardinality(v_found) < p_limit THEN
    SELECT count(*) INTO v_refused FROM public.agent_messages m
    WHERE m.status = 'failed' AND m.reply_to IS NOT NULL AND (p_tenants IS NULL OR m.tenant = ANY (p_tenants))
      AND (p_ids IS NULL OR m.id = ANY (p_ids))
      AND (p_service IS NULL OR m.service = p_service) AND (p_role IS NULL OR m.role = p_role)
      AND (p_before IS NULL OR coalesce(m.last_error_at, m.done_at) < p_before)
      AND (p_code IS NULL OR cogo.error_code(m.error) = p_code);
  END IF;
  IF p_dry_run THEN
    RETURN QUERY SELECT cardinality(v_found)::bigint, v_refused;
    RETURN;
  END IF;
  -- Two batches at once might wait for each other's ordering keys.
  PERFORM pg_advisory_xact_lock(hashtextextended('cogo.redrive', 0)),
          set_config('cogo.actor', coalesce(p_actor, ''), true);
  WITH locked AS (
    SELECT m.id FROM public.agent_messages m WHERE m.id = ANY (v_found) AND m.status = 'failed'
    ORDER BY m.id FOR UPDATE SKIP LOCKED
  ), back AS (
    UPDATE public.agent_messages m SET
      status = 'queued', seq = nextval('cogo.bus_seq'), claimed_by = NULL, retry_at = NULL
    FROM locked WHERE m.id = ANY (ARRAY[locked.id]) RETURNING m.id
  )
  SELECT coalesce(array_agg(back.id), '{}') INTO v_ids FROM back;
  PERFORM cogo.renew_all(v_ids, 'failed', p_reason);
  PERFORM cogo.wake(d.service, d.role, d.shard) FROM (
    SELECT DISTINCT m.service, m.role, m.shard FROM public.agent_messages m WHERE m.id = ANY (v_ids)) d;
  RETURN QUERY SELECT cardinality(v_ids)::bigint, v_refused;
END $$;

-- -- depth -----------------------------------------------------------------------------------------

-- How many messages wait in a lane (its whole role when p_shard is NULL): ready, in backoff, or behind one of
-- their key. Counts no further than p_at_most, so that the answer costs no more than that.
CREATE OR REPLACE FUNCTION cogo.depth(p_service text, p_role text, p_shard integer, p_at_most bigint) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = ''
SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
BEGIN
  RETURN (SELECT count(*) FROM (
    (SELECT 1 FROM public.agent_messages m WHERE m.service = p_service AND m.role = p_role
       AND m.shard >= coalesce(p_shard, 0) AND m.shard <= coalesce(p_shard, 32767)
       AND m.status = 'queued' AND m.retry_at IS NULL LIMIT p_at_most)
    UNION ALL
    (SELECT 1 FROM public.agent_messages m WHERE m.service = p_service AND m.role = p_role
       AND m.shard >= coalesce(p_shard, 0) AND m.shard <= coalesce(p_shard, 32767)
       AND m.status = 'queued' AND m.retry_at IS NOT NULL LIMIT p_at_most)
    LIMIT p_at_most) waiting);
END $$;
