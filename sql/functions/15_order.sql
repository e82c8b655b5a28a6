-- Strict order: of the messages of one ordering key only the first that has not ended can be claimed.
--
-- A key belongs to (service, role, tenant). Its first message stands at the door: it can be claimed, or it is
-- at work, waits for an answer, or for its next attempt. The others are set aside: `queued` with a retry_at that
-- never comes, so that no claim walks over them, and a foreign worker that respects retry_at leaves them
-- alone. What ends the first one opens the door to the next, which goes to the end of the lane.
--
-- Writers of a key take turns by an advisory lock, so that ids are in commit order within it. Who ends a
-- message only tries that lock: a producer's long transaction must not hold up a batch of finishes.

-- The retry_at of messages that are set aside. The same instant stands in the index agent_messages_doors.
CREATE OR REPLACE FUNCTION cogo.aside() RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT timestamptz '9999-12-31 00:00:00+00' $$;

CREATE OR REPLACE FUNCTION cogo.key_lock(p_service text, p_role text, p_tenant text, p_key text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT pg_catalog.hashtextextended(p_service || '/' || p_role || '@' || p_tenant || ':' || p_key, 1)
$$;

-- Under REPEATABLE READ a transaction doesn't see what others committed meanwhile, whatever locks it holds.
CREATE OR REPLACE FUNCTION cogo.sees_commits() RETURNS boolean
LANGUAGE sql STABLE AS $$ SELECT pg_catalog.current_setting('transaction_isolation') = 'read committed' $$;

-- BEFORE INSERT of a message with a key: its place in the order, and aside unless it is alone.
CREATE OR REPLACE FUNCTION cogo.on_keyed_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE v_locked boolean := true;
BEGIN
  IF length(NEW.ordering_key) NOT BETWEEN 1 AND 255 THEN
    RAISE EXCEPTION 'an ordering key has 1 to 255 characters' USING ERRCODE = 'check_violation';
  END IF;
  -- A finish that brings follow-up messages doesn't wait for another sender's transaction: they go aside, and
  -- are as good as sent at the same time.
  IF coalesce(current_setting('cogo.wait_for_keys', true), '') = 'off' THEN
    v_locked := pg_try_advisory_xact_lock(cogo.key_lock(NEW.service, NEW.role, NEW.tenant, NEW.ordering_key));
  ELSE
    PERFORM pg_advisory_xact_lock(cogo.key_lock(NEW.service, NEW.role, NEW.tenant, NEW.ordering_key));
  END IF;
  -- Drawn again, now that it is our turn: the numbers of the defaults may be older than another's commit.
  NEW.id := nextval('public.agent_messages_id_seq');
  NEW.seq := nextval('cogo.bus_seq');
  IF NEW.status <> 'queued' OR NEW.retry_at IS NOT NULL THEN RETURN NEW; END IF;
  PERFORM FROM public.agent_messages m  -- from the newest: the oldest entries may be of ended messages
  WHERE m.service = NEW.service AND m.role = NEW.role AND m.tenant = NEW.tenant
    AND m.ordering_key = NEW.ordering_key AND m.status IN ('queued', 'claimed', 'waiting')
  ORDER BY m.id DESC LIMIT 1;
  IF FOUND THEN NEW.retry_at := cogo.aside(); END IF;
  IF NOT v_locked OR NOT (FOUND OR cogo.sees_commits()) THEN  -- somebody has to look again
    NEW.retry_at := cogo.aside();
    INSERT INTO cogo.bus_keys (service, role, tenant, ordering_key)
    VALUES (NEW.service, NEW.role, NEW.tenant, NEW.ordering_key);
  END IF;
  RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER agent_messages_keyed BEFORE INSERT ON public.agent_messages
  FOR EACH ROW WHEN (NEW.ordering_key IS NOT NULL) EXECUTE FUNCTION cogo.on_keyed_insert();

-- The first message of this key goes to the door, unless one of its key is at work; a later one that stands
-- there goes aside. Waits for nobody. false: look again later, since somebody holds one of their
-- rows, or since the first has come back while a later one is at work.
CREATE OR REPLACE FUNCTION cogo.open_door(p_service text, p_role text, p_tenant text, p_key text)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
DECLARE
  v_id bigint; v_status text; v_retry_at timestamptz; v_shard integer;
  v_door bigint; v_at_work boolean; v_later bigint[];
BEGIN
  SELECT m.id, m.status, m.retry_at, m.shard INTO v_id, v_status, v_retry_at, v_shard FROM public.agent_messages m
  WHERE m.service = p_service AND m.role = p_role AND m.tenant = p_tenant AND m.ordering_key = p_key
    AND m.status IN ('queued', 'claimed', 'waiting') ORDER BY m.id LIMIT 1;
  IF NOT FOUND THEN RETURN true; END IF;
  IF v_retry_at IS DISTINCT FROM cogo.aside() THEN  -- it stands there already
    IF v_status = 'queued' AND coalesce(v_retry_at <= cogo.now(), true) THEN
      PERFORM cogo.wake(p_service, p_role, v_shard);
    END IF;
    RETURN true;
  END IF;
  SELECT count(*), bool_or(m.status <> 'queued') INTO v_door, v_at_work FROM public.agent_messages m
  WHERE m.service = p_service AND m.role = p_role AND m.tenant = p_tenant AND m.ordering_key = p_key
    AND m.status IN ('queued', 'claimed', 'waiting') AND (m.retry_at IS NULL OR m.retry_at < cogo.aside());
  -- Its end lets this one through, but it may not end: a retry or a reclaim queues it again behind this one,
  -- and tells nobody.
  IF v_at_work THEN RETURN false; END IF;
  IF v_door > 0 THEN
    -- Locked, so that no claim takes one of them by a look at the table that is older than this.
    v_later := ARRAY(
      SELECT m.id FROM public.agent_messages m
      WHERE m.service = p_service AND m.role = p_role AND m.tenant = p_tenant AND m.ordering_key = p_key
        AND m.status IN ('queued', 'claimed', 'waiting') AND (m.retry_at IS NULL OR m.retry_at < cogo.aside())
        AND m.status = 'queued' FOR NO KEY UPDATE SKIP LOCKED);
    IF cardinality(v_later) < v_door THEN RETURN false; END IF;
    UPDATE public.agent_messages m SET retry_at = cogo.aside() WHERE m.id = ANY (v_later);
  END IF;
  UPDATE public.agent_messages m SET retry_at = NULL, seq = nextval('cogo.bus_seq')
  WHERE m.id = (SELECT n.id FROM public.agent_messages n WHERE n.id = v_id FOR NO KEY UPDATE SKIP LOCKED)
    AND m.status = 'queued';
  IF NOT FOUND THEN RETURN false; END IF;
  PERFORM cogo.wake(p_service, p_role, v_shard);
  RETURN true;
END $$;

-- A message of this key has ended. The door opens to the next one that shows; what a producer is just
-- inserting doesn't show yet, and holds the lock: then somebody has to look again.
CREATE OR REPLACE FUNCTION cogo.pass_on(p_service text, p_role text, p_tenant text, p_key text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE v_locked boolean := pg_try_advisory_xact_lock(cogo.key_lock(p_service, p_role, p_tenant, p_key));
BEGIN
  IF NOT cogo.open_door(p_service, p_role, p_tenant, p_key) OR NOT v_locked OR NOT cogo.sees_commits() THEN
    INSERT INTO cogo.bus_keys (service, role, tenant, ordering_key)
    VALUES (p_service, p_role, p_tenant, p_key);
  END IF;
END $$;

-- A message that had ended is queued again: aside, and to the door if it is the first now and none of its key
-- is at work. Operators may wait for the lock.
CREATE OR REPLACE FUNCTION cogo.rejoin(m public.agent_messages) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(cogo.key_lock(m.service, m.role, m.tenant, m.ordering_key));
  UPDATE public.agent_messages a SET retry_at = cogo.aside() WHERE a.id = m.id;
  PERFORM cogo.pass_on(m.service, m.role, m.tenant, m.ordering_key);
END $$;

CREATE OR REPLACE FUNCTION cogo.on_keyed_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  IF TG_OP = 'UPDATE'
    AND (OLD.status IN ('done', 'failed', 'cancelled')) = (NEW.status IN ('done', 'failed', 'cancelled')) THEN
    RETURN NULL;
  ELSIF TG_OP = 'UPDATE' AND NEW.status = 'queued' THEN
    PERFORM cogo.rejoin(NEW);
  ELSE
    PERFORM cogo.pass_on(OLD.service, OLD.role, OLD.tenant, OLD.ordering_key);
  END IF;
  RETURN NULL;
END $$;
-- By name after agent_messages_outsider, which sets retry_at as well.
CREATE OR REPLACE TRIGGER agent_messages_turn AFTER UPDATE OF status ON public.agent_messages
  FOR EACH ROW WHEN (NEW.ordering_key IS NOT NULL) EXECUTE FUNCTION cogo.on_keyed_change();
CREATE OR REPLACE TRIGGER agent_messages_gone AFTER DELETE ON public.agent_messages
  FOR EACH ROW WHEN (OLD.ordering_key IS NOT NULL AND OLD.status IN ('queued', 'claimed', 'waiting'))
  EXECUTE FUNCTION cogo.on_keyed_change();

-- The keys that have to be looked at again. One for which the lock is still held stays on the list.
-- Returns how many it looked at.
CREATE OR REPLACE FUNCTION cogo.open_doors(p_limit integer) RETURNS integer
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE k record; v_n integer := 0;
BEGIN
  FOR k IN
    WITH taken AS (
      DELETE FROM cogo.bus_keys WHERE id IN (
        SELECT b.id FROM cogo.bus_keys b ORDER BY b.id LIMIT p_limit FOR UPDATE SKIP LOCKED) RETURNING *)
    SELECT DISTINCT t.service, t.role, t.tenant, t.ordering_key FROM taken t
  LOOP
    PERFORM cogo.pass_on(k.service, k.role, k.tenant, k.ordering_key);
    v_n := v_n + 1;
  END LOOP;
  RETURN v_n;
END $$;

-- What a claim asks of a message with a key, whatever retry_at says: that nothing of its key comes before it
-- or is at work.
CREATE OR REPLACE FUNCTION cogo.is_head(p_service text, p_role text, p_tenant text, p_key text, p_id bigint)
RETURNS boolean LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = ''
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
BEGIN
  PERFORM FROM public.agent_messages m
  WHERE m.service = p_service AND m.role = p_role AND m.tenant = p_tenant AND m.ordering_key = p_key
    AND m.status IN ('queued', 'claimed', 'waiting') AND m.id < p_id ORDER BY m.id LIMIT 1;
  IF FOUND THEN RETURN false; END IF;
  PERFORM FROM public.agent_messages m
  WHERE m.service = p_service AND m.role = p_role AND m.tenant = p_tenant AND m.ordering_key = p_key
    AND m.status IN ('queued', 'claimed', 'waiting') AND (m.retry_at IS NULL OR m.retry_at < cogo.aside())
    AND m.status <> 'queued' AND m.id <> p_id LIMIT 1;
  RETURN NOT FOUND;
END $$;
