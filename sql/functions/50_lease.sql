-- Leases of processes, and what becomes of the claims of those that lost theirs.

CREATE OR REPLACE FUNCTION cogo.register_holder(
  p_holder text, p_roles text[], p_lanes text[], p_detail jsonb, p_lease_ms bigint
) RETURNS TABLE (epoch bigint, twins bigint)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
#variable_conflict use_column
DECLARE v_epoch bigint;
BEGIN
  INSERT INTO cogo.bus_holders AS h (holder, lease_until, roles, lanes, detail)
  VALUES (p_holder, cogo.now() + p_lease_ms * interval '1 ms', p_roles, p_lanes, p_detail)
  RETURNING h.epoch INTO v_epoch;
  RETURN QUERY SELECT v_epoch, count(*) FROM cogo.bus_holders h
    WHERE h.holder = p_holder AND h.epoch <> v_epoch AND h.lease_until > cogo.now();
END $$;

-- true: the lease stands for another p_lease_ms. false: the row is gone (register again).
CREATE OR REPLACE FUNCTION cogo.beat(p_epoch bigint, p_lease_ms bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
BEGIN
  UPDATE cogo.bus_holders SET beat_at = cogo.now(), lease_until = cogo.now() + p_lease_ms * interval '1 ms'
  WHERE epoch = p_epoch;
  RETURN FOUND;
END $$;

CREATE OR REPLACE FUNCTION cogo.leave(p_epoch bigint) RETURNS void
LANGUAGE sql SECURITY INVOKER SET search_path = '' AS $$
  DELETE FROM cogo.bus_idle WHERE epoch = p_epoch;
  UPDATE cogo.bus_holders SET lease_until = cogo.now() WHERE epoch = p_epoch;
$$;

-- Fail what outlived its ttl, in any living state. Children go first by themselves: their expires_at
-- is never later than their parent's, and the settle trigger ends the parent with the same code.
CREATE OR REPLACE FUNCTION cogo.expire(p_limit integer) RETURNS integer
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
DECLARE v_ids bigint[]; v_running bigint[];
BEGIN
  WITH v AS MATERIALIZED (
    SELECT m.id, m.status AS was FROM public.agent_messages m
    WHERE m.expires_at <= cogo.now() AND m.status IN ('queued', 'claimed', 'waiting')
    ORDER BY m.expires_at, m.id DESC LIMIT p_limit FOR UPDATE SKIP LOCKED
  ), e AS (
    UPDATE public.agent_messages m SET
      status = 'failed', fence = 0, seq = nextval('cogo.bus_seq'), done_at = cogo.now(),
      last_error_at = cogo.now(), deadline_at = NULL, retry_at = NULL, awaits = NULL,
      error = 'ttl_expired: the time to live ran out while the message was ' || v.was
    FROM v WHERE m.id = ANY (ARRAY[v.id]) RETURNING m.id, v.was
  )
  SELECT array_agg(e.id), array_agg(e.id) FILTER (WHERE e.was = 'claimed') INTO v_ids, v_running FROM e;
  IF v_ids IS NULL THEN RETURN 0; END IF;
  PERFORM cogo.record_ends(v_ids, 'reclaimer');
  PERFORM pg_notify('cogo', 'cancel:' || i) FROM unnest(v_running) AS i;
  RETURN cardinality(v_ids);
END $$;

-- Put back what dead holders hold, what ran past its deadline (its holder has a second or two to end
-- it first, with a better word than ours), and what foreign claimers, who have no lease, have held for
-- too long. Out of attempts: failed, `poison`. The row is locked from the look to the write, so no
-- guard by fence is needed. After a restart of Postgres no lease counts as dead before every process
-- had time to beat again. p_after: no claim with a lower fence is left,
-- as far as the caller knows.
DROP FUNCTION IF EXISTS cogo.reclaim(integer, bigint, bigint);
CREATE OR REPLACE FUNCTION cogo.reclaim(
  p_limit integer, p_lease_ms bigint, p_reclaim_after_ms bigint, p_after bigint DEFAULT 0
) RETURNS TABLE (id bigint, status text, why text)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := cogo.now();
  v_leases_count boolean := pg_postmaster_start_time() + p_lease_ms * interval '1 ms' < v_now;
  v_ids bigint[]; v_statuses text[]; v_whys text[]; v_ended bigint[];
BEGIN
  WITH v AS MATERIALIZED (
    SELECT m.id, cogo.max_attempts(m.service, m.role) AS max_attempts, CASE
        WHEN m.deadline_at <= v_now THEN 'handler_timeout: it ran past the deadline of its lane'
        WHEN m.holder_epoch IS NULL THEN 'claim_lost: a claim without a lease was held too long'
        ELSE 'claim_lost: the lease of ' || coalesce(m.claimed_by, 'its holder') || ' ended' END AS why
    FROM public.agent_messages m
    WHERE m.status = 'claimed' AND m.fence >= p_after AND (
      m.deadline_at <= v_now - interval '2 s'
      OR (m.holder_epoch IS NULL
          AND coalesce(m.claimed_at, m.created_at) <= v_now - p_reclaim_after_ms * interval '1 ms')
      OR (m.holder_epoch IS NOT NULL AND v_leases_count AND NOT EXISTS (
            SELECT 1 FROM cogo.bus_holders h WHERE h.epoch = m.holder_epoch AND h.lease_until > v_now)))
    ORDER BY m.id LIMIT p_limit FOR UPDATE OF m SKIP LOCKED
  ), r AS (
    UPDATE public.agent_messages m SET
      status = CASE WHEN m.attempts >= v.max_attempts THEN 'failed' ELSE 'queued' END,
      error = CASE WHEN m.attempts >= v.max_attempts
        THEN 'poison: all attempts used up; the last one ended as ' || v.why ELSE v.why END,
      done_at = CASE WHEN m.attempts >= v.max_attempts THEN v_now END,
      claimed_by = CASE WHEN m.attempts >= v.max_attempts THEN m.claimed_by END,
      seq = nextval('cogo.bus_seq'), fence = 0, deadline_at = NULL, last_error_at = v_now
    FROM v WHERE m.id = ANY (ARRAY[v.id])
    RETURNING m.id, m.status, v.why
  )
  SELECT array_agg(r.id), array_agg(r.status), array_agg(r.why),
         array_agg(r.id) FILTER (WHERE r.status = 'failed')
  INTO v_ids, v_statuses, v_whys, v_ended FROM r;
  IF v_ids IS NULL THEN RETURN; END IF;
  IF v_ended IS NOT NULL THEN PERFORM cogo.record_ends(v_ended, 'reclaimer'); END IF;
  PERFORM cogo.record_retries(v_ids, 'reclaimer');
  PERFORM cogo.wake(d.service, d.role, d.shard) FROM (
    SELECT DISTINCT m.service, m.role, m.shard FROM public.agent_messages m
    WHERE m.id = ANY (v_ids) AND m.status = 'queued') d;
  RETURN QUERY SELECT * FROM unnest(v_ids, v_statuses, v_whys);
END $$;

-- The fence of the oldest claim that is left from p_after on; the newest fence when none is.
CREATE OR REPLACE FUNCTION cogo.oldest_claim(p_after bigint) RETURNS bigint
LANGUAGE sql STABLE SECURITY INVOKER SET search_path = '' AS $$
  SELECT coalesce(
    (SELECT m.fence FROM public.agent_messages m
     WHERE m.status = 'claimed' AND m.fence >= p_after ORDER BY m.fence LIMIT 1),
    (SELECT s.last_value FROM cogo.bus_fence s))
$$;

-- Put back what a live process holds without knowing it: a claim whose answer was lost with its
-- connection. `p_known` are the fences that it does know; younger claims may still be on their way to
-- it. The attempts don't count: no handler saw them. Returns how many.
CREATE OR REPLACE FUNCTION cogo.give_back(p_holder text, p_epoch bigint, p_known bigint[], p_older_ms bigint)
RETURNS bigint LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE v_n bigint;
BEGIN
  WITH r AS (
    UPDATE public.agent_messages m SET
      status = 'queued', attempts = m.attempts - 1, seq = nextval('cogo.bus_seq'), fence = 0, claimed_by = NULL,
      deadline_at = NULL
    WHERE m.status = 'claimed' AND m.claimed_by = p_holder AND m.holder_epoch = p_epoch
      AND m.claimed_at <= cogo.now() - p_older_ms * interval '1 ms' AND m.fence <> ALL (p_known)
    RETURNING m.service, m.role, m.shard
  ), woken AS (
    SELECT count(*) AS n, cogo.wake(r.service, r.role, r.shard) FROM r GROUP BY r.service, r.role, r.shard
  )
  SELECT sum(woken.n) INTO v_n FROM woken;
  RETURN coalesce(v_n, 0);
END $$;
