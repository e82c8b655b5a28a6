-- Into the bus. A plain INSERT is as good as these: the triggers below see every row.

-- One message. created = false: the same key with the same body came before (its id is returned).
-- Raises CG409 when the key was used with another body.
-- (As the first version had it; calls with its nine arguments now mean the one below.)
DROP FUNCTION IF EXISTS cogo.enqueue(text, text, integer, text, jsonb, text, text, bigint, integer);
CREATE OR REPLACE FUNCTION cogo.enqueue(
  p_service text, p_role text, p_shard integer, p_tenant text, p_payload jsonb,
  p_key text DEFAULT NULL, p_traceparent text DEFAULT NULL, p_ttl_ms bigint DEFAULT NULL,
  p_priority integer DEFAULT 2, p_ordering_key text DEFAULT NULL
) RETURNS TABLE (id bigint, created boolean)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE old public.agent_messages;
BEGIN
  LOOP
    RETURN QUERY
      INSERT INTO public.agent_messages AS m
        (service, role, shard, tenant, payload, idempotency_key, traceparent, priority, ordering_key, expires_at)
      VALUES (p_service, p_role, p_shard, p_tenant, p_payload, p_key, p_traceparent, p_priority, p_ordering_key,
              cogo.now() + p_ttl_ms * interval '1 ms')
      ON CONFLICT (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
      RETURNING m.id, true;
    IF FOUND THEN RETURN; END IF;
    -- The conflicting row has committed (ON CONFLICT waited for it); a new snapshot sees it, unless
    -- retention has deleted it in between: then the key is free again.
    SELECT * INTO old FROM public.agent_messages m WHERE m.tenant = p_tenant AND m.idempotency_key = p_key;
    EXIT WHEN FOUND;
  END LOOP;
  IF (old.service, old.role, old.shard, old.payload) IS DISTINCT FROM
     (p_service, p_role, p_shard, p_payload) THEN
    RAISE EXCEPTION 'idempotency key % of tenant % belongs to message % with another body',
      p_key, p_tenant, old.id USING ERRCODE = 'CG409';
  END IF;
  RETURN QUERY SELECT old.id, false;
END $$;

-- BEFORE INSERT, only for rows that carry an assignment or answer another message: the hard end of
-- a request. A child never outlives its parent.
CREATE OR REPLACE FUNCTION cogo.on_admit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  v_ttl jsonb := NEW.payload #> '{__assignment,ttl_ms}';
  v_parent public.agent_messages;
BEGIN
  IF jsonb_typeof(v_ttl) = 'number' AND v_ttl::numeric BETWEEN 0 AND 1e12 THEN
    NEW.expires_at := least(NEW.expires_at, NEW.created_at + v_ttl::numeric::double precision * interval '1 ms');
  END IF;
  IF NEW.reply_to IS NOT NULL THEN
    SELECT * INTO v_parent FROM public.agent_messages p WHERE p.id = NEW.reply_to;
    NEW.expires_at := least(NEW.expires_at, v_parent.expires_at);
    NEW.root_id := coalesce(NEW.root_id, v_parent.root_id, v_parent.id);
  END IF;
  RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER agent_messages_admit BEFORE INSERT ON public.agent_messages
  FOR EACH ROW WHEN (NEW.reply_to IS NOT NULL OR NEW.payload ? '__assignment')
  EXECUTE FUNCTION cogo.on_admit();

-- AFTER INSERT, once per statement (so COPY stays fast): audit of the ingress lane, and wakeups,
-- but only when somebody sleeps. A consumer registers as idle, commits, and claims once more; an
-- insert that was uncommitted then is found by its short polls.
CREATE OR REPLACE FUNCTION cogo.on_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  INSERT INTO public.bus_events (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
  SELECT 'orchestrate_enqueued', n.id, n.trace_id, n.tenant, n.service, n.role, n.shard, cogo.actor(),
         jsonb_strip_nulls(jsonb_build_object('intent', n.payload -> 'intent'))
  FROM new_rows n WHERE n.service = 'orchestrator' AND n.role = 'decide';
  IF EXISTS (SELECT 1 FROM cogo.bus_idle) THEN
    PERFORM cogo.wake(n.service, n.role, n.shard)
    FROM (SELECT DISTINCT service, role, shard FROM new_rows WHERE status = 'queued') n;
  END IF;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER agent_messages_insert AFTER INSERT ON public.agent_messages
  REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION cogo.on_insert();
