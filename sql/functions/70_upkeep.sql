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

-- The tables around the bus: at most p_limit rows of each. Returns the most that one of them lost; below
-- p_limit nothing is left to do. A budget stays while its root lives, an artifact a day longer than
-- the message that names it.
CREATE OR REPLACE FUNCTION cogo.retain_rest(p_days double precision, p_limit integer) RETURNS bigint
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE
  v_cutoff timestamptz := cogo.now() - p_days * interval '1 day';
  v_most bigint := 0; v_n bigint; v_table text; v_old text;
BEGIN
  FOR v_table, v_old IN VALUES
    ('public.bus_events', 't.created_at < $1'),
    ('cogo.bus_stats_minutes', 't.minute < $1'),
    ('cogo.decisions', 't.created_at < $1'),
    -- What was learnt stays longer than what it was learnt from.
    ('cogo.outcomes', $q$t.noted_at < least($1, cogo.now() - interval '90 days')$q$),
    ('cogo.chat_turns', 't.created_at < $1'),
    ('cogo.artifacts', $q$t.created_at < $1 - interval '1 day'$q$),
    ('cogo.message_chunks', $q$t.created_at < cogo.now() - interval '1 day'$q$),
    ('cogo.bus_waiters', $q$t.until < cogo.now() - interval '1 minute'$q$),
    ('cogo.budget_holds', $q$t.created_at < $1 AND NOT EXISTS (SELECT 1 FROM public.agent_messages m
       WHERE m.id = t.root_id AND m.status NOT IN ('done', 'failed', 'cancelled'))$q$),
    -- One without a message that lives was left by somebody's DELETE; it would take up a place for ever.
    ('cogo.dispatches', $q$t.ended_at < cogo.now() - interval '1 day' OR (t.ended_at IS NULL AND NOT EXISTS (
       SELECT 1 FROM public.agent_messages m WHERE m.reply_to = t.message_id AND m.reply_fence = t.fence
       AND m.status NOT IN ('done', 'failed', 'cancelled')))$q$),
    ('cogo.dispatch_retries', $q$t.at < cogo.now() - interval '1 hour'$q$),
    ('cogo.bus_idle', $q$NOT EXISTS (SELECT 1 FROM cogo.bus_holders h
       WHERE h.epoch = t.epoch AND h.lease_until > cogo.now())$q$),
    ('cogo.bus_holders', $q$t.lease_until < cogo.now() - interval '1 day' AND NOT EXISTS (
       SELECT 1 FROM public.agent_messages m WHERE m.status = 'claimed' AND m.claimed_by = t.holder)$q$)
  LOOP
    EXECUTE format('DELETE FROM %1$s WHERE ctid = ANY (ARRAY(SELECT t.ctid FROM %1$s t WHERE %2$s LIMIT $2))',
                   v_table, v_old) USING v_cutoff, p_limit;
    GET DIAGNOSTICS v_n = ROW_COUNT;
    v_most := greatest(v_most, v_n);
  END LOOP;
  RETURN v_most;
END $$;

-- Move counters into their minutes; readers add both tables, so nothing is ever counted twice.
-- Returns how many counters it moved: with p_limit there may be more.
CREATE OR REPLACE FUNCTION cogo.roll_up(p_limit integer DEFAULT 20000) RETURNS bigint
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE v_n bigint;
BEGIN
  WITH moved AS (
    DELETE FROM cogo.bus_stats WHERE id IN (SELECT s.id FROM cogo.bus_stats s ORDER BY s.id LIMIT p_limit) RETURNING *
  ), kept AS (
    INSERT INTO cogo.bus_stats_minutes AS d (minute, service, role, tenant, status, pickup_b, total_b, n)
    SELECT date_trunc('minute', at), service, role, tenant, status, pickup_b, total_b, sum(n)
    FROM moved GROUP BY 1, 2, 3, 4, 5, 6, 7
    ON CONFLICT (minute, service, role, tenant, status, pickup_b, total_b) DO UPDATE SET n = d.n + EXCLUDED.n
  )
  SELECT count(*) INTO v_n FROM moved;
  RETURN v_n;
END $$;

-- Both counter tables as one.
CREATE OR REPLACE VIEW cogo.bus_counts WITH (security_invoker = true) AS
  SELECT minute, service, role, tenant, status, pickup_b, total_b, n FROM cogo.bus_stats_minutes
  UNION ALL
  SELECT date_trunc('minute', at), service, role, tenant, status, pickup_b, total_b, n FROM cogo.bus_stats;
