-- Retention and counters. Each call does one bounded piece of work.

-- Delete ended messages older than p_days among the next p_limit ids after p_after; never a child
-- whose parent still lives. next_after: where to go on, NULL at the end.
CREATE OR REPLACE FUNCTION cogo.retain(p_days double precision, p_after bigint, p_limit integer)
RETURNS TABLE (deleted bigint, next_after bigint)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE
  v_cutoff timestamptz := cogo.now() - p_days * interval '1 day';
  v_last bigint; v_created timestamptz; v_deleted bigint;
BEGIN
  SELECT s.id, s.created_at INTO v_last, v_created FROM (
    SELECT m.id, m.created_at FROM public.agent_messages m WHERE m.id > p_after ORDER BY m.id LIMIT p_limit
  ) s ORDER BY s.id DESC LIMIT 1;
  IF v_last IS NULL THEN RETURN QUERY SELECT 0::bigint, NULL::bigint; RETURN; END IF;
  DELETE FROM public.agent_messages m
  WHERE m.id > p_after AND m.id <= v_last AND m.status IN ('done', 'failed', 'cancelled')
    AND m.done_at < v_cutoff
    AND NOT EXISTS (SELECT 1 FROM public.agent_messages p
                    WHERE p.id = m.reply_to AND p.status NOT IN ('done', 'failed', 'cancelled'));
  GET DIAGNOSTICS v_deleted = ROW_COUNT;
  RETURN QUERY SELECT v_deleted, CASE WHEN v_created < v_cutoff THEN v_last END;
END $$;

-- The small tables around the bus.
CREATE OR REPLACE FUNCTION cogo.retain_rest(p_days double precision) RETURNS void
LANGUAGE sql SECURITY INVOKER SET search_path = '' AS $$
  DELETE FROM public.bus_events WHERE created_at < cogo.now() - p_days * interval '1 day';
  DELETE FROM cogo.bus_stats_minutes WHERE minute < cogo.now() - p_days * interval '1 day';
  DELETE FROM cogo.decisions WHERE created_at < cogo.now() - p_days * interval '1 day';
  DELETE FROM cogo.artifacts WHERE created_at < cogo.now() - p_days * interval '1 day';
  DELETE FROM cogo.message_chunks WHERE created_at < cogo.now() - interval '1 day';
  DELETE FROM cogo.bus_waiters WHERE until < cogo.now() - interval '1 minute';
  DELETE FROM cogo.budget_holds h WHERE h.created_at < cogo.now() - p_days * interval '1 day';
  DELETE FROM cogo.bus_idle i WHERE NOT EXISTS (
    SELECT 1 FROM cogo.bus_holders h WHERE h.epoch = i.epoch AND h.lease_until > cogo.now());
  DELETE FROM cogo.bus_holders h WHERE h.lease_until < cogo.now() - interval '1 day' AND NOT EXISTS (
    SELECT 1 FROM public.agent_messages m WHERE m.status = 'claimed' AND m.holder_epoch = h.epoch);
$$;

-- Move counters into their minutes; readers add both tables, so nothing is ever counted twice.
CREATE OR REPLACE FUNCTION cogo.roll_up() RETURNS bigint
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE v_n bigint;
BEGIN
  WITH moved AS (
    DELETE FROM cogo.bus_stats WHERE id IN (SELECT s.id FROM cogo.bus_stats s ORDER BY s.id LIMIT 20000) RETURNING *
  )
  INSERT INTO cogo.bus_stats_minutes AS d (minute, service, role, tenant, status, pickup_b, total_b, n)
  SELECT date_trunc('minute', at), service, role, tenant, status, pickup_b, total_b, sum(n)
  FROM moved GROUP BY 1, 2, 3, 4, 5, 6, 7
  ON CONFLICT (minute, service, role, tenant, status, pickup_b, total_b) DO UPDATE SET n = d.n + EXCLUDED.n;
  GET DIAGNOSTICS v_n = ROW_COUNT;
  RETURN v_n;
END $$;

-- Both counter tables as one.
CREATE OR REPLACE VIEW cogo.bus_counts WITH (security_invoker = true) AS
  SELECT minute, service, role, tenant, status, pickup_b, total_b, n FROM cogo.bus_stats_minutes
  UNION ALL
  SELECT date_trunc('minute', at), service, role, tenant, status, pickup_b, total_b, n FROM cogo.bus_stats;
