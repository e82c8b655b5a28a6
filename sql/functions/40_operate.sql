-- What operators do: cancel, requeue. Each leaves an audit event with actor and reason.

-- A cancelled message: audit; the holder that runs it is told; the child of a waiting one is noted
-- for cascade_cancels(), because locks must go child -> parent only.
CREATE OR REPLACE FUNCTION cogo.record_cancel(p_id bigint, p_was text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  INSERT INTO public.bus_events (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
  SELECT 'cancelled', m.id, m.trace_id, m.tenant, m.service, m.role, m.shard,
         coalesce(nullif(current_setting('cogo.actor', true), ''), session_user),
         jsonb_strip_nulls(jsonb_build_object('was', p_was,
           'reason', nullif(current_setting('cogo.reason', true), '')))
  FROM public.agent_messages m WHERE m.id = p_id;
  IF p_was = 'claimed' THEN PERFORM pg_notify('cogo', 'cancel:' || p_id); END IF;
  IF p_was = 'waiting' THEN INSERT INTO cogo.bus_cancels (parent_id) VALUES (p_id); END IF;
END $$;

-- Cancel one message; its status afterwards, NULL for an unknown id. The outsiders' trigger does the
-- rest, so that a client's plain UPDATE and this function are the same thing.
CREATE OR REPLACE FUNCTION cogo.cancel(p_id bigint, p_actor text, p_reason text) RETURNS text
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE v_status text;
BEGIN
  PERFORM set_config('cogo.actor', p_actor, true), set_config('cogo.reason', coalesce(p_reason, ''), true);
  UPDATE public.agent_messages m SET status = 'cancelled', error = 'cancelled: ' || coalesce(p_reason, '')
  WHERE m.id = p_id AND m.status IN ('queued', 'claimed', 'waiting') RETURNING m.status INTO v_status;
  IF v_status IS NULL THEN
    SELECT m.status INTO v_status FROM public.agent_messages m WHERE m.id = p_id;
  END IF;
  RETURN v_status;
END $$;

-- Cancel what cancelled parents were waiting for; a transaction of its own. Returns how many.
CREATE OR REPLACE FUNCTION cogo.cascade_cancels() RETURNS integer
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE v_n integer;
BEGIN
  WITH taken AS (DELETE FROM cogo.bus_cancels RETURNING parent_id),
  kids AS (
    SELECT m.id FROM taken t JOIN public.agent_messages m ON m.reply_to = t.parent_id
    WHERE m.status IN ('queued', 'claimed', 'waiting') ORDER BY m.id FOR UPDATE OF m
  )
  UPDATE public.agent_messages m SET status = 'cancelled', error = 'cancelled: the message that waited for it was'
  FROM kids WHERE m.id = kids.id;
  GET DIAGNOSTICS v_n = ROW_COUNT;
  RETURN v_n;
END $$;

-- A message that left a terminal state: audit, and the counters take the end back.
CREATE OR REPLACE FUNCTION cogo.record_requeue(p_id bigint, p_was text, p_actor text, p_reason text)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  INSERT INTO public.bus_events (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
  SELECT 'requeued', m.id, m.trace_id, m.tenant, m.service, m.role, m.shard, p_actor,
         jsonb_strip_nulls(jsonb_build_object('was', p_was, 'reason', p_reason))
  FROM public.agent_messages m WHERE m.id = p_id;
  INSERT INTO cogo.bus_stats (service, role, tenant, status, n)
  SELECT m.service, m.role, m.tenant, p_was, -1 FROM public.agent_messages m WHERE m.id = p_id;
END $$;

-- Put a failed or cancelled message back: attempts 0, a fresh place in the lane, a fresh ttl. Refused
-- (CG410) for a child whose parent has ended: nobody waits for its answer any more.
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
  IF m.reply_to IS NOT NULL THEN
    RAISE EXCEPTION 'message % answered message %, which has ended: requeue the root, %',
      p_id, m.reply_to, m.root_id USING ERRCODE = 'CG410';
  END IF;
  UPDATE public.agent_messages a SET
    status = 'queued', attempts = 0, fence = 0, seq = nextval('cogo.bus_seq'), claimed_by = NULL,
    claimed_at = NULL, done_at = NULL, retry_at = NULL, awaits = NULL, error = NULL,
    expires_at = cogo.now() + (m.expires_at - m.created_at)
  WHERE a.id = p_id;
  DELETE FROM cogo.budget_holds WHERE root_id = p_id;
  PERFORM cogo.record_requeue(p_id, m.status, p_actor, p_reason);
  PERFORM cogo.wake(m.service, m.role, m.shard);
  RETURN 'queued';
END $$;
