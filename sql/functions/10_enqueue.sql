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

-- The rule that a routing breaks, by the column's name; NULL when it is sound. Bounded repetition in a
-- regular expression is ten times slower, so lengths stand apart.
CREATE OR REPLACE FUNCTION cogo.unsound(
  p_service text, p_role text, p_tenant text, p_shard integer, p_priority smallint
) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN p_service !~ '^[a-z][a-z0-9_-]*$' OR length(p_service) > 63 THEN 'service'
    WHEN p_role !~ '^[a-z][a-z0-9_-]*$' OR length(p_role) > 63 THEN 'role'
    WHEN p_tenant !~ '^[A-Za-z0-9][A-Za-z0-9._-]*$' OR length(p_tenant) > 63 THEN 'tenant'
    WHEN p_shard NOT BETWEEN 0 AND 32767 THEN 'shard'
    WHEN p_priority NOT BETWEEN 0 AND 3 THEN 'priority' END
$$;

CREATE OR REPLACE FUNCTION cogo.refuse(p_column text) RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
  RAISE EXCEPTION 'a message was refused: its % is not valid', p_column USING
    ERRCODE = 'check_violation', CONSTRAINT = 'agent_messages_' || p_column, COLUMN = p_column,
    TABLE = 'agent_messages', SCHEMA = 'public', HINT = CASE p_column
      WHEN 'service' THEN 'a to z, 0 to 9, _ and -, a letter first, 63 at most'
      WHEN 'role' THEN 'a to z, 0 to 9, _ and -, a letter first, 63 at most'
      WHEN 'tenant' THEN 'letters, digits, ., _ and -, a letter or digit first, 63 at most'
      WHEN 'shard' THEN '0 to 32767' WHEN 'priority' THEN '0 (first) to 3 (last)'
      WHEN 'idempotency_key' THEN '1 to 255 characters'
      WHEN 'traceparent' THEN 'as W3C Trace Context writes it: 00-<32 hex>-<16 hex>-<2 hex>' END;
END $$;

-- AFTER INSERT, once per statement (so COPY stays fast): what may be inserted at all, audit of the ingress
-- lane, and wakeups, but only when somebody sleeps. A consumer registers as idle, commits, and claims
-- once more; an insert that was uncommitted then is found by its short polls.
CREATE OR REPLACE FUNCTION cogo.on_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE v_bad text; v_decides boolean; v_idle boolean;
BEGIN
  SELECT min(coalesce(cogo.unsound(g.service, g.role, g.tenant, g.shard, g.priority), g.bad)),
         bool_or(g.service = 'orchestrator' AND g.role = 'decide'), EXISTS (SELECT FROM cogo.bus_idle)
  INTO v_bad, v_decides, v_idle
  FROM (
    SELECT n.service, n.role, n.tenant, n.shard, n.priority, min(CASE
        WHEN length(n.idempotency_key) NOT BETWEEN 1 AND 255 THEN 'idempotency_key'
        WHEN length(n.traceparent) <> 55 OR n.traceparent !~ '^[0-9a-f]*-[0-9a-f]*-[0-9a-f]*-[0-9a-f]*$'
          OR n.traceparent NOT LIKE '__-________________________________-________________-__'
          THEN 'traceparent' END) AS bad
    FROM new_rows n GROUP BY 1, 2, 3, 4, 5
  ) g;
  IF v_bad IS NOT NULL THEN PERFORM cogo.refuse(v_bad); END IF;
  IF v_decides THEN
    INSERT INTO public.bus_events (kind, message_id, trace_id, tenant, service, role, shard, actor, detail)
    SELECT 'orchestrate_enqueued', n.id, n.trace_id, n.tenant, n.service, n.role, n.shard, cogo.actor(),
           jsonb_strip_nulls(jsonb_build_object('intent', n.payload -> 'intent'))
    FROM new_rows n WHERE n.service = 'orchestrator' AND n.role = 'decide';
  END IF;
  IF v_idle THEN
    PERFORM cogo.wake(n.service, n.role, n.shard)
    FROM (SELECT DISTINCT service, role, shard FROM new_rows WHERE status = 'queued') n;
  END IF;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER agent_messages_insert AFTER INSERT ON public.agent_messages
  REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION cogo.on_insert();

-- Nobody sends a message elsewhere in a way that the insert would have refused. Ours never change these.
-- (AFTER: where a BEFORE row trigger exists, each UPDATE locks its row first, and logs that, for any columns.)
CREATE OR REPLACE FUNCTION cogo.on_reroute() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE v_bad text := cogo.unsound(NEW.service, NEW.role, NEW.tenant, NEW.shard, NEW.priority);
BEGIN
  IF v_bad IS NOT NULL THEN PERFORM cogo.refuse(v_bad); END IF;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER agent_messages_reroute
  AFTER UPDATE OF service, role, tenant, shard, priority ON public.agent_messages
  FOR EACH ROW EXECUTE FUNCTION cogo.on_reroute();
