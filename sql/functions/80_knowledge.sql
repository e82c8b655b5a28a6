-- Tables whose rows are documents: triggers tell rag/embed which rows of a statement changed.

-- The triggers' one function. TG_ARGV: source, id column, tenant column ('' = the default tenant).
-- One message per statement, tenant and 500 rows. SECURITY DEFINER: who may write the table need not be allowed
-- to use the bus. A table whose columns have gone must not refuse its owner's writes: they are warned.
CREATE OR REPLACE FUNCTION cogo.on_source_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  v_tenant text := CASE WHEN TG_ARGV[2] = '' THEN quote_literal('default') || '::text'
                        ELSE format('coalesce(%I::text, %L)', TG_ARGV[2], 'default') END;
  v_part text := format('SELECT %s AS tenant, %I::text AS id FROM ', v_tenant, TG_ARGV[1]);
  v_gone text;
BEGIN
  IF TG_OP = 'TRUNCATE' THEN  -- what is indexed is looked at again, and found gone
    PERFORM cogo.tell_source(TG_ARGV[0], array_agg(r.tenant), array_agg(substr(f.path, length(r.name) + 2)))
    FROM cogo.kb_repos r JOIN cogo.kb_files f ON f.repo_id = r.id WHERE r.name = TG_ARGV[0] AND r.root IS NULL;
    RETURN NULL;
  END IF;
  SELECT min(w.name) INTO v_gone FROM unnest(ARRAY[TG_ARGV[1], nullif(TG_ARGV[2], '')]) AS w(name)
  WHERE w.name IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = TG_RELID AND a.attname = w.name AND a.attnum > 0 AND NOT a.attisdropped);
  IF v_gone IS NOT NULL THEN
    RAISE WARNING 'COGO does not see this change: % has no column % any more', TG_ARGV[0], v_gone
      USING HINT = 'Correct tables of [plugins.rag-dispatcher] and restart that role.';
    RETURN NULL;
  END IF;
  EXECUTE format(
    'SELECT cogo.tell_source(%L, array_agg(tenant), array_agg(id)) FROM (%s) changed', TG_ARGV[0],
    CASE TG_OP WHEN 'INSERT' THEN v_part || 'new_rows' WHEN 'DELETE' THEN v_part || 'old_rows'
               ELSE v_part || 'new_rows UNION ' || v_part || 'old_rows' END);
  RETURN NULL;
END $$;

-- Messages to rag/embed for these rows, p_tenants[i] being the tenant of p_ids[i].
--
-- While a message for the same rows still waits no other one is sent: ten edits are embedded once. It is touched, so
-- that it is locked until our commit: whoever claims it afterwards reads what we wrote. What can't be locked is
-- being claimed, and may have been read already. (Under REPEATABLE READ a lock on what others changed fails.)
-- The key of a transaction makes its changes one message there, too.
CREATE OR REPLACE FUNCTION cogo.tell_source(p_source text, p_tenants text[], p_ids text[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE v_count integer := 0; v_key text; b record;
BEGIN
  FOR b IN
    SELECT r.tenant, array_agg(r.id ORDER BY r.id) AS ids
    FROM (SELECT u.tenant, u.id, (row_number() OVER (PARTITION BY u.tenant ORDER BY u.id) - 1) / 500 AS batch
          FROM (SELECT DISTINCT * FROM unnest(p_tenants, p_ids) AS u(tenant, id)) u WHERE u.id IS NOT NULL) r
    WHERE r.tenant ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'
    GROUP BY r.tenant, r.batch
  LOOP
    v_key := 'source:' || md5(p_source || ':' || array_to_string(b.ids, ','));
    IF cogo.sees_commits() THEN
      UPDATE public.agent_messages m SET seq = nextval('cogo.bus_seq') WHERE m.id = (
        SELECT n.id FROM public.agent_messages n
        WHERE n.service = 'rag' AND n.role = 'embed' AND n.tenant = b.tenant AND n.ordering_key = v_key
          AND n.status IN ('queued', 'claimed', 'waiting') AND n.status = 'queued'
        ORDER BY n.id DESC LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED);
      IF FOUND THEN
        PERFORM cogo.wake('rag', 'embed', 0);  -- a claim that found it locked went to sleep
        CONTINUE;
      END IF;
    END IF;
    INSERT INTO public.agent_messages (service, role, tenant, payload, ordering_key, idempotency_key)
    VALUES ('rag', 'embed', b.tenant, jsonb_build_object('table', p_source, 'ids', to_jsonb(b.ids)),
            v_key, v_key || ':' || pg_current_xact_id())
    ON CONFLICT (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING;
    IF FOUND THEN v_count := v_count + 1; END IF;
  END LOOP;
  RETURN v_count;
END $$;

-- Follow a table, or follow it otherwise than before; what it holds already is told once. Returns the
-- number of messages. The caller has made sure that table and columns exist.
DROP FUNCTION IF EXISTS cogo.follow_source(text, text, text, text);  -- as the first version had it
CREATE OR REPLACE FUNCTION cogo.follow_source(
  p_source text, p_id text, p_text text, p_tenant text DEFAULT NULL, p_path text DEFAULT NULL, p_lang text DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE
  v_table regclass := to_regclass(p_source);
  v_count integer := 0;
  v_event text;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('kb_sources', 0));  -- two processes that start at once
  -- Unchanged: leave at once. CREATE TRIGGER locks the user's table against its writers.
  IF EXISTS (SELECT 1 FROM cogo.kb_sources s WHERE s.source = p_source
             AND (s.id_column, s.text_column, s.tenant_column, s.path_column, s.lang_column)
             IS NOT DISTINCT FROM (p_id, p_text, p_tenant, p_path, p_lang))
     AND (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = v_table AND t.tgname LIKE 'cogo\_source\_%') = 4 THEN
    RETURN 0;
  END IF;
  PERFORM set_config('lock_timeout', '5s', true);
  FOREACH v_event IN ARRAY ARRAY['INSERT', 'UPDATE', 'DELETE'] LOOP
    EXECUTE format(
      'CREATE OR REPLACE TRIGGER %I AFTER %s ON %s REFERENCING %s FOR EACH STATEMENT'
      ' EXECUTE FUNCTION cogo.on_source_change(%L, %L, %L)',
      'cogo_source_' || lower(v_event), v_event, v_table,
      CASE v_event WHEN 'INSERT' THEN 'NEW TABLE AS new_rows' WHEN 'DELETE' THEN 'OLD TABLE AS old_rows'
                   ELSE 'OLD TABLE AS old_rows NEW TABLE AS new_rows' END,
      p_source, p_id, coalesce(p_tenant, ''));
  END LOOP;
  EXECUTE format('CREATE OR REPLACE TRIGGER cogo_source_truncate AFTER TRUNCATE ON %s FOR EACH STATEMENT'
                 ' EXECUTE FUNCTION cogo.on_source_change(%L, %L, %L)', v_table, p_source, p_id, coalesce(p_tenant, ''));
  INSERT INTO cogo.kb_sources (source, id_column, text_column, tenant_column, path_column, lang_column)
  VALUES (p_source, p_id, p_text, p_tenant, p_path, p_lang)
  ON CONFLICT (source) DO UPDATE SET id_column = excluded.id_column, text_column = excluded.text_column,
    tenant_column = excluded.tenant_column, path_column = excluded.path_column, lang_column = excluded.lang_column,
    updated_at = now();
  EXECUTE format(
    'SELECT cogo.tell_source($1, array_agg(%s), array_agg(%I::text)) FROM %s',
    CASE WHEN p_tenant IS NULL THEN quote_literal('default') || '::text'
         ELSE format('coalesce(%I::text, %L)', p_tenant, 'default') END, p_id, v_table)
    INTO v_count USING p_source;
  RETURN coalesce(v_count, 0);
END $$;

-- Follow no other tables than these: the triggers of the others are dropped, their documents stay.
CREATE OR REPLACE FUNCTION cogo.follow_only(p_sources text[]) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE v_source text; v_event text;
BEGIN
  FOR v_source IN SELECT source FROM cogo.kb_sources WHERE source <> ALL (p_sources) LOOP
    IF to_regclass(v_source) IS NOT NULL THEN
      FOREACH v_event IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', 'cogo_source_' || v_event, to_regclass(v_source));
      END LOOP;
    END IF;
    DELETE FROM cogo.kb_sources WHERE source = v_source;
  END LOOP;
END $$;

-- One row of a followed table, if it is there and the tenant's: its text, and of code the path and the language
-- that its columns name.
CREATE OR REPLACE FUNCTION cogo.read_document(p_source text, p_tenant text, p_id text)
RETURNS TABLE (body text, path text, lang text)
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' AS $$
DECLARE s cogo.kb_sources;
BEGIN
  SELECT * INTO STRICT s FROM cogo.kb_sources k WHERE k.source = p_source;
  RETURN QUERY EXECUTE format(
    'SELECT %I::text, %s, %s FROM %s WHERE %I = $1::%s AND %s = $2', s.text_column,
    coalesce(quote_ident(s.path_column), 'NULL') || '::text', coalesce(quote_ident(s.lang_column), 'NULL') || '::text',
    to_regclass(p_source), s.id_column,
    (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
     WHERE a.attrelid = to_regclass(p_source) AND a.attname = s.id_column),
    CASE WHEN s.tenant_column IS NULL THEN quote_literal('default')
         ELSE format('coalesce(%I::text, %L)', s.tenant_column, 'default') END)
    USING p_id, p_tenant;
END $$;
-- As the version before this one asks for it.
CREATE OR REPLACE FUNCTION cogo.read_source(p_source text, p_tenant text, p_id text) RETURNS text
LANGUAGE sql STABLE SECURITY INVOKER SET search_path = '' AS $$
  SELECT d.body FROM cogo.read_document(p_source, p_tenant, p_id) d
$$;
