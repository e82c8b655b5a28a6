-- What operators do: cancel, requeue. Each leaves an audit event with actor and reason.

-- A cancelled message: audit; the holder that runs it is told; the child of a waiting one is noted
-- for cascade_cancels(), because locks must go child -> parent only.
CREATE OR REPLACE FUNCTION cogo.record_cancel(p_id bigint, p_was text, p_awaits bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  INSERT INTO public.bus_events (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
  SELECT 'cancelled', m.id, m.trace_id, m.tenant, m.service, m.role, m.shard,
         cogo.actor(), jsonb_strip_nulls(jsonb_build_object('was', p_was,
           'reason', nullif(current_setting('cogo.reason', true), '')))
  FROM public.agent_messages m WHERE m.id = p_id;
  IF p_was = 'claimed' THEN PERFORM pg_notify('cogo', 'cancel:' || p_id); END IF;
  IF p_awaits IS NOT NULL THEN
    INSERT INTO cogo.bus_cancels (parent_id, awaits) VALUES (p_id, p_awaits);
  END IF;
END $$;

-- Cancel one message; its status afterwards, NULL for an unknown id. The outsiders' trigger does the
-- rest, so that a client's plain UPDATE and this function are the same thing.
CREATE OR REPLACE FUNCTION cogo.cancel(p_id bigint, p_actor text, p_reason text) RETURNS text
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE v_status text;
BEGIN
  PERFORM set_config('cogo.actor', p_actor, true), set_config('cogo.reason', coalesce(p_reason, ''), true);
  UPDATE public.agent_messages m SET status = 'cancelled',
    error = 'cancelled: ' || coalesce(nullif(p_reason, ''), 'by ' || p_actor)
  WHERE m.id = p_id AND m.status IN ('queued', 'claimed', 'waiting') RETURNING m.status INTO v_status;
  IF v_status IS NULL THEN
    SELECT m.status INTO v_status FROM public.agent_messages m WHERE m.id = p_id;
  END IF;
  RETURN v_status;
END $$;

-- Cancel what cancelled parents were waiting for; a transaction of its own. Returns how many.
CREATE OR REPLACE FUNCTION cogo.cascade_cancels() RETURNS integer
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
DECLARE v_n integer;
BEGIN
  WITH taken AS (DELETE FROM cogo.bus_cancels RETURNING parent_id, awaits),
  kids AS (
    SELECT m.id FROM taken t
    JOIN public.agent_messages m ON m.reply_to = t.parent_id AND m.reply_fence = t.awaits
    WHERE m.status IN ('queued', 'claimed', 'waiting') ORDER BY m.id FOR UPDATE OF m
  )
  UPDATE public.agent_messages m SET status = 'cancelled', error = 'cancelled: the message that waited for it was'
  FROM kids WHERE m.id = ANY (ARRAY[kids.id]);
  GET DIAGNOSTICS v_n = ROW_COUNT;
  RETURN v_n;
END $$;

-- Refused (CG410) for a child: its parent has ended with it, so nobody waits for its answer any more.
CREATE OR REPLACE FUNCTION cogo.check_requeue(m public.agent_messages) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
BEGIN
  IF m.reply_to IS NOT NULL THEN
    RAISE EXCEPTION 'message % answered message %, which has ended: requeue the root, %',
      m.id, m.reply_to, m.root_id USING ERRCODE = 'CG410';
  END IF;
END $$;

-- Messages that left a terminal state begin a new life: attempts 0, a fresh budget, the same ttl from now on
-- (it ran from the last requeue, or from the creation). The audit says so, and the counters take the
-- end back.
CREATE OR REPLACE FUNCTION cogo.renew_all(p_ids bigint[], p_was text, p_reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
BEGIN
  UPDATE public.agent_messages m SET
    attempts = 0, claimed_at = NULL, done_at = NULL, error = NULL, result_snippet = NULL, result_url = NULL,
    expires_at = cogo.now() + (m.expires_at - coalesce((SELECT max(e.created_at) FROM public.bus_events e
      WHERE e.message_id = m.id AND e.kind = 'requeued'), m.created_at))
  WHERE m.id = ANY (p_ids);
  DELETE FROM cogo.budget_holds WHERE root_id = ANY (p_ids);
  INSERT INTO public.bus_events
    (created_at, kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
  SELECT cogo.now(), 'requeued', m.id, m.trace_id, m.tenant, m.service, m.role, m.shard, cogo.actor(),
         jsonb_strip_nulls(jsonb_build_object('was', p_was, 'reason', nullif(p_reason, '')))
  FROM public.agent_messages m WHERE m.id = ANY (p_ids) ORDER BY m.id;
  INSERT INTO cogo.bus_stats (service, role, tenant, status, n)
  SELECT m.service, m.role, m.tenant, p_was, -count(*) FROM public.agent_messages m
  WHERE m.id = ANY (p_ids) GROUP BY 1, 2, 3;
END $$;
CREATE OR REPLACE FUNCTION cogo.renew(p_id bigint, p_was text, p_reason text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = '' AS $$
  SELECT cogo.renew_all(ARRAY[p_id], p_was, p_reason)
$$;

-- Put a failed or cancelled message back, at the end of its lane. NULL for an unknown id.
CREATE OR REPLACE FUNCTION cogo.requeue(p_id bigint, p_actor text, p_reason text) RETURNS text
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE m public.agent_messages;
BEGIN
  SELECT * INTO m FROM public.agent_messages a WHERE a.id = p_id FOR UPDATE;
  IF NOT FOUND THEN RETURN NULL; END IF;
  IF m.status NOT IN ('failed', 'cancelled') THEN
    RAISE EXCEPTION 'message % is %: only failed and cancelled ones are requeued', p_id, m.status
      USING ERRCODE = 'CG410';
  END IF;
  PERFORM cogo.check_requeue(m), set_config('cogo.actor', p_actor, true);
  UPDATE public.agent_messages a SET
    status = 'queued', seq = nextval('cogo.bus_seq'), claimed_by = NULL, retry_at = NULL WHERE a.id = p_id;
  PERFORM cogo.renew(p_id, m.status, p_reason), cogo.wake(m.service, m.role, m.shard);
  RETURN 'queued';
END $$;
