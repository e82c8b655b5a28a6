-- The executor's policies, by target (service, role): breaker, concurrency, retry budget. docs/adr/0014.

-- Those who decide about one target take turns, so that what they count holds until they commit.
CREATE OR REPLACE FUNCTION cogo.lock_target(p_what text, p_service text, p_role text) RETURNS void
LANGUAGE sql VOLATILE SECURITY INVOKER SET search_path = '' AS $$
  SELECT pg_advisory_xact_lock(hashtextextended('cogo.' || p_what || ':' || p_service || '/' || p_role, 0))
$$;

-- How often a target failed since it last succeeded (100 at most), and until when it is left alone: p_open_ms from
-- the last failure on, twice as long for each probe that failed, five minutes at most. No row: the breaker is closed.
CREATE OR REPLACE FUNCTION cogo.breaker(p_service text, p_role text, p_failures integer, p_open_ms double precision)
RETURNS TABLE (failures bigint, until timestamptz)
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
BEGIN
  RETURN QUERY
    SELECT f.n, f.last_at + least(p_open_ms * power(2, least(f.probes, 20)), 300000) * interval '1 ms'
    FROM (
      SELECT count(*) AS n, count(*) FILTER (WHERE s.probe) AS probes, max(s.ended_at) AS last_at FROM (
        SELECT d.probe, d.ended_at FROM cogo.dispatches d
        WHERE d.service = p_service AND d.role = p_role AND NOT d.ok AND d.ended_at > coalesce((
            SELECT o.ended_at FROM cogo.dispatches o
            WHERE o.service = p_service AND o.role = p_role AND o.ok ORDER BY o.ended_at DESC LIMIT 1), '-infinity')
        ORDER BY d.ended_at DESC LIMIT 100) s
    ) f WHERE f.n >= p_failures;
END $$;

-- Whether a message of the executor may be handed out now. If so, its hold is opened and the dispatch is noted, and
-- the caller makes the target's message in the same transaction. If not, `refused` is a code, not before wait_ms from now
-- is worth another try, and left_ms is what the time to live leaves (from waited_ms on, which began at the
-- creation or the last requeue).
CREATE OR REPLACE FUNCTION cogo.dispatch(
  p_id bigint, p_fence bigint, p_root bigint, p_tenant text, p_service text, p_role text,
  p_cost numeric, p_tokens bigint, p_ttl_ms bigint, p_most integer, p_most_of_tenant integer,
  p_failures integer, p_open_ms double precision, p_retry_ratio double precision, p_retry_floor integer
) RETURNS TABLE (
  refused text, why text, wait_ms double precision, waited_ms double precision, left_ms double precision
)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := cogo.now();
  v_failures bigint; v_until timestamptz; v_probe boolean := false; v_code text; v_why text; v_wait_ms float8 := 0;
BEGIN
  IF p_failures > 0 THEN
    SELECT b.failures, b.until INTO v_failures, v_until FROM cogo.breaker(p_service, p_role, p_failures, p_open_ms) b;
  END IF;
  IF v_until IS NOT NULL OR p_most IS NOT NULL OR p_most_of_tenant IS NOT NULL THEN
    PERFORM cogo.lock_target('dispatch', p_service, p_role);
  END IF;
  IF v_until IS NOT NULL THEN  -- once more, now that nobody else decides
    v_until := NULL;
    SELECT b.failures, b.until INTO v_failures, v_until FROM cogo.breaker(p_service, p_role, p_failures, p_open_ms) b;
    IF v_until > v_now THEN
      v_wait_ms := extract(epoch FROM v_until - v_now) * 1000;
      v_code := 'target_unavailable';
      v_why := format('%s/%s failed %s times in a row and is left alone for a while', p_service, p_role, v_failures);
    ELSIF v_until IS NOT NULL THEN
      v_probe := true;
      IF EXISTS (SELECT FROM cogo.dispatches d WHERE d.service = p_service AND d.role = p_role
                 AND d.ended_at IS NULL AND d.probe) THEN
        v_code := 'target_unavailable';
        v_why := format('%s/%s failed %s times in a row and is being tried with another message',
                        p_service, p_role, v_failures);
      END IF;
    END IF;
  END IF;
  IF v_code IS NULL AND (p_most IS NOT NULL OR p_most_of_tenant IS NOT NULL) THEN
    v_why := cogo.too_many(p_service, p_role, p_tenant, p_most, p_most_of_tenant);
    v_code := CASE WHEN v_why IS NOT NULL THEN 'target_busy' END;
  END IF;
  IF v_code IS NOT NULL THEN
    RETURN QUERY SELECT v_code, v_why, v_wait_ms, o.waited_ms, o.left_ms
      FROM cogo.put_off(p_id, v_code || ': ' || v_why, v_wait_ms, p_ttl_ms) o;
    RETURN;
  END IF;
  PERFORM cogo.hold(p_root, p_tenant, p_cost, p_tokens);
  INSERT INTO cogo.dispatches (message_id, fence, service, role, tenant, probe, retry_ratio, retry_floor, at)
  VALUES (p_id, p_fence, p_service, p_role, p_tenant, v_probe, p_retry_ratio, p_retry_floor, v_now);
END $$;

-- Why no more of a target's work may be under way; NULL: it may. Never counts beyond the limits.
CREATE OR REPLACE FUNCTION cogo.too_many(
  p_service text, p_role text, p_tenant text, p_most integer, p_most_of_tenant integer
) RETURNS text LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
BEGIN
  IF p_most IS NOT NULL AND p_most <= (SELECT count(*) FROM (SELECT FROM cogo.dispatches d
      WHERE d.service = p_service AND d.role = p_role AND d.ended_at IS NULL LIMIT p_most) n) THEN
    RETURN format('%s/%s has %s of %s under way', p_service, p_role, p_most, p_most);
  ELSIF p_most_of_tenant IS NOT NULL AND p_most_of_tenant <= (SELECT count(*) FROM (SELECT FROM cogo.dispatches d
      WHERE d.service = p_service AND d.role = p_role AND d.tenant = p_tenant AND d.ended_at IS NULL
      LIMIT p_most_of_tenant) n) THEN
    RETURN format('%s/%s has %s of %s under way for %s', p_service, p_role, p_most_of_tenant, p_most_of_tenant, p_tenant);
  END IF;
  RETURN NULL;
END $$;

-- A message of the executor is put off for this reason: the audit says so once, not at every try. When it is out of
-- time before it could be tried again, it is about to fail, which the audit says anyway.
CREATE OR REPLACE FUNCTION cogo.put_off(p_id bigint, p_error text, p_wait_ms double precision, p_ttl_ms bigint)
RETURNS TABLE (waited_ms double precision, left_ms double precision)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := cogo.now();
  m public.agent_messages;
  v_waited_ms double precision;
  v_left_ms double precision;
BEGIN
  SELECT * INTO m FROM public.agent_messages a WHERE a.id = p_id;
  v_waited_ms := 1000 * extract(epoch FROM v_now - coalesce((SELECT max(e.created_at) FROM public.bus_events e
    WHERE e.message_id = p_id AND e.kind = 'requeued'), m.created_at));
  v_left_ms := least(p_ttl_ms - v_waited_ms, extract(epoch FROM m.expires_at - v_now) * 1000);
  IF v_left_ms > p_wait_ms AND coalesce(m.error, '') NOT LIKE '%' || split_part(p_error, ':', 1) || ':%' THEN
    INSERT INTO public.bus_events (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
    VALUES ('execute_retry', m.id, m.trace_id, m.tenant, m.service, m.role, m.shard, m.claimed_by,
            jsonb_build_object('error', p_error, 'attempts', m.attempts - 1));
  END IF;
  RETURN QUERY SELECT v_waited_ms, v_left_ms;
END $$;

-- The target's message has ended (cogo.on_settle). A failure counts when it is the target's own: a time to live may
-- have been too short, or run out in the queue.
CREATE OR REPLACE FUNCTION cogo.dispatched(p_message bigint, p_fence bigint, p_status text, p_error text) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
BEGIN  -- (In plpgsql, since that keeps its plans.)
  UPDATE cogo.dispatches d SET ended_at = cogo.now(), ok = CASE
      WHEN p_status = 'done' THEN true
      WHEN p_status = 'failed' AND (cogo.error_class(p_error) = 'callee'
        OR cogo.error_code(p_error) = 'handler_timeout') THEN false END
  WHERE d.message_id = p_message AND d.fence = p_fence AND d.ended_at IS NULL;
END $$;

-- Attempts of targets' messages that failed and would be tried again: as many as their budget allows, the others end
-- here. Within a minute a target has retry_floor retries, and retry_ratio more for each success.
CREATE OR REPLACE FUNCTION cogo.limit_retries(p_ids bigint[], p_fences bigint[], p_kinds text[], p_errors text[])
RETURNS TABLE (kinds text[], errors text[])
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_since timestamptz := cogo.now() - interval '1 minute';
  v_left integer; v_over bigint[] := '{}'; t record;
BEGIN
  FOR t IN  -- in one order for all, since each locks several
    SELECT d.service, d.role, max(d.retry_ratio) AS ratio, max(d.retry_floor) AS least, array_agg(u.n ORDER BY u.n) AS places
    FROM unnest(p_ids, p_fences, p_kinds, p_errors) WITH ORDINALITY AS u(id, fence, kind, error, n)
    JOIN public.agent_messages m ON m.id = ANY (ARRAY[u.id]) AND m.fence = u.fence AND u.fence > 0
    JOIN cogo.dispatches d ON d.message_id = ANY (ARRAY[m.reply_to]) AND d.fence = m.reply_fence
    WHERE u.kind = 'retry' AND cogo.error_class(u.error) IN ('callee', 'timeout')
    GROUP BY 1, 2 ORDER BY 1, 2
  LOOP
    PERFORM cogo.lock_target('retry', t.service, t.role);
    SELECT greatest(0, floor(t.least + t.ratio * (SELECT count(*) FROM (SELECT FROM cogo.dispatches d
        WHERE d.service = t.service AND d.role = t.role AND d.ok AND d.ended_at > v_since LIMIT 10000) n)) - coalesce((
      SELECT sum(r.n) FROM cogo.dispatch_retries r
      WHERE r.service = t.service AND r.role = t.role AND r.at > v_since), 0))
    INTO v_left;
    v_left := least(v_left, cardinality(t.places));
    IF v_left > 0 THEN
      INSERT INTO cogo.dispatch_retries (service, role, n, at) VALUES (t.service, t.role, v_left, cogo.now());
    END IF;
    v_over := v_over || t.places[v_left + 1:];
  END LOOP;
  RETURN QUERY
    SELECT array_agg(CASE WHEN u.n = ANY (v_over) THEN 'failed' ELSE u.kind END ORDER BY u.n),
      array_agg(CASE WHEN u.n = ANY (v_over) THEN 'retry_budget_spent: ' || u.error ELSE u.error END ORDER BY u.n)
    FROM unnest(p_ids, p_kinds, p_errors) WITH ORDINALITY AS u(id, kind, error, n);
END $$;
