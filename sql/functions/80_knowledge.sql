-- Tables whose rows are documents: triggers tell rag/embed which rows of a statement changed.

-- The triggers' one function. TG_ARGV: source, id column, tenant column ('' = the default tenant).
-- One message per statement, tenant and 500 rows. The key holds the transaction: a row that is changed
-- ten times in one transaction gives one message, which is read after the commit; a later change always
-- gives another one. SECURITY DEFINER: who may write the table need not be allowed to use the bus.
CREATE OR REPLACE FUNCTION cogo.on_source_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  v_tenant text := CASE WHEN TG_ARGV[2] = '' THEN quote_literal('default') || '::text'
                        ELSE format('coalesce(%I::text, %L)', TG_ARGV[2], 'default') END;
  v_part text := format('SELECT %s AS tenant, %I::text AS id FROM ', v_tenant, TG_ARGV[1]);
BEGIN
  EXECUTE format(
    'SELECT cogo.tell_source(%L, array_agg(tenant), array_agg(id)) FROM (%s) changed', TG_ARGV[0],
    CASE TG_OP WHEN 'INSERT' THEN v_part || 'new_rows' WHEN 'DELETE' THEN v_part || 'old_rows'
               ELSE v_part || 'new_rows UNION ' || v_part || 'old_rows' END);
  RETURN NULL;
END $$;

-- Messages to rag/embed for these rows, p_tenants[i] being the tenant of p_ids[i].
CREATE OR REPLACE FUNCTION cogo.tell_source(p_source text, p_tenants text[], p_ids text[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE v_count integer;
BEGIN
  INSERT INTO public.agent_messages (service, role, tenant, payload, idempotency_key)
  SELECT 'rag', 'embed', b.tenant, jsonb_build_object('table', p_source, 'ids', to_jsonb(b.ids)),
         'source:' || md5(p_source || ':' || array_to_string(b.ids, ',')) || ':' || pg_current_xact_id()
  FROM (
    SELECT r.tenant, array_agg(r.id ORDER BY r.id) AS ids
    FROM (SELECT u.tenant, u.id, (row_number() OVER (PARTITION BY u.tenant ORDER BY u.id) - 1) / 500 AS batch
          FROM (SELECT DISTINCT * FROM unnest(p_tenants, p_ids) AS u(tenant, id)) u WHERE u.id IS NOT NULL) r
    GROUP BY r.tenant, r.batch) b
  WHERE b.tenant ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'
  ON CONFLICT (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING;
  GET DIAGNOSTICS v_count = ROW_COUNT;
  RETURN v_count;
END $$;

-- Follow a table, or follow it otherwise than before; what it holds already is told once. Returns the
-- number of messages. The caller has made sure that table and columns exist.
CREATE OR REPLACE FUNCTION cogo.follow_source(
  p_source text, p_id text, p_text text, p_tenant text DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE
  v_table regclass := to_regclass(p_source);
  v_count integer := 0;
  v_event text;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('kb_sources', 0));  -- two processes that start at once
  -- Unchanged: leave at once. CREATE TRIGGER locks the user's table against its writers.
  IF EXISTS (SELECT 1 FROM cogo.kb_sources s WHERE s.source = p_source AND (s.id_column, s.text_column)
             = (p_id, p_text) AND s.tenant_column IS NOT DISTINCT FROM p_tenant)
     AND (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = v_table AND t.tgname LIKE 'cogo\_source\_%') = 3 THEN
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
  INSERT INTO cogo.kb_sources (source, id_column, text_column, tenant_column)
  VALUES (p_source, p_id, p_text, p_tenant)
  ON CONFLICT (source) DO UPDATE SET id_column = excluded.id_column, text_column = excluded.text_column,
    tenant_column = excluded.tenant_column, updated_at = now();
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
      FOREACH v_event IN ARRAY ARRAY['insert', 'update', 'delete'] LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', 'cogo_source_' || v_event, to_regclass(v_source));
      END LOOP;
    END IF;
    DELETE FROM cogo.kb_sources WHERE source = v_source;
  END LOOP;
END $$;

-- The text of one row of a followed table, if it is there and the tenant's.
CREATE OR REPLACE FUNCTION cogo.read_source(p_source text, p_tenant text, p_id text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' AS $$
DECLARE
  s cogo.kb_sources;
  v_text text;
BEGIN
  SELECT * INTO STRICT s FROM cogo.kb_sources k WHERE k.source = p_source;
  EXECUTE format(
    'SELECT %I::text FROM %s WHERE %I = $1::%s AND %s = $2', s.text_column, to_regclass(p_source), s.id_column,
    (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
     WHERE a.attrelid = to_regclass(p_source) AND a.attname = s.id_column),
    CASE WHEN s.tenant_column IS NULL THEN quote_literal('default')
         ELSE format('coalesce(%I::text, %L)', s.tenant_column, 'default') END)
    INTO v_text USING p_id, p_tenant;
  RETURN v_text;
END $$;
