-- Vectors: the table of each model, which one is wanted, and which one answers.

-- The row of a model, with its table made if there is none yet. With pgvector vectors are halfvec with an HNSW
-- index; where the extension can't be had they are bytes, and whoever searches compares all of them.
CREATE OR REPLACE FUNCTION cogo.vector_model(
  p_name text, p_revision text, p_dimension integer, p_base_url text
) RETURNS cogo.kb_models LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE v_model cogo.kb_models; v_schema text; v_table text;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('kb_models', 0));
  SELECT * INTO v_model FROM cogo.kb_models m WHERE (m.name, m.revision, m.dimension) = (p_name, p_revision, p_dimension)
    AND m.base_url IS NOT DISTINCT FROM p_base_url;
  IF FOUND THEN RETURN v_model; END IF;
  v_schema := cogo.pgvector_schema();
  INSERT INTO cogo.kb_models (name, revision, dimension, base_url, pgvector)
  VALUES (p_name, p_revision, p_dimension, p_base_url, v_schema) RETURNING * INTO v_model;
  v_table := 'kb_vectors_' || v_model.id;
  EXECUTE format($q$
    CREATE TABLE cogo.%1$I (
      id bigint GENERATED ALWAYS AS IDENTITY, repo_id integer NOT NULL,
      file_id integer NOT NULL REFERENCES cogo.kb_files ON DELETE CASCADE,
      digest bytea NOT NULL, vector %2$s NOT NULL, PRIMARY KEY (file_id, digest));
    ALTER TABLE cogo.%1$I ALTER COLUMN vector SET STORAGE PLAIN;
    CREATE INDEX ON cogo.%1$I (repo_id, id);
    REVOKE ALL ON cogo.%1$I FROM PUBLIC, anon, authenticated;
    GRANT ALL ON cogo.%1$I TO service_role $q$,
    v_table, CASE WHEN v_schema IS NULL THEN 'bytea' ELSE format('%I.halfvec(%s)', v_schema, p_dimension) END);
  IF v_schema IS NOT NULL THEN
    EXECUTE format('CREATE INDEX ON cogo.%1$I USING hnsw (vector %2$I.halfvec_ip_ops)', v_table, v_schema);
  END IF;
  RETURN v_model;
END $$;

-- The schema that pgvector is in, installed now if that is possible; NULL without it, or when it is older
-- than 0.8 (no halfvec, or no scan that goes on until the filter is satisfied).
CREATE OR REPLACE FUNCTION cogo.pgvector_schema() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE v_schema text; v_version text;
BEGIN
  BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_extension e WHERE e.extname = 'vector') THEN
      EXECUTE format('CREATE EXTENSION vector SCHEMA %I', CASE
        WHEN to_regnamespace('extensions') IS NOT NULL THEN 'extensions' ELSE 'public' END);
    END IF;
  EXCEPTION WHEN OTHERS THEN NULL;  -- not on this server, or not ours to install
  END;
  SELECT n.nspname, e.extversion INTO v_schema, v_version FROM pg_catalog.pg_extension e
  JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector';
  IF string_to_array(v_version, '.')::integer[] >= ARRAY[0, 8] THEN RETURN v_schema; END IF;
  RETURN NULL;
END $$;

-- From now on vectors of this model are to be made (NULL: of none, and words alone answer). Without p_change only
-- if none is wanted yet. Returns the row of the one that is wanted.
CREATE OR REPLACE FUNCTION cogo.want_model(p_id smallint, p_change boolean) RETURNS SETOF cogo.kb_models
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('kb_models', 0));
  IF p_change OR NOT EXISTS (SELECT FROM cogo.kb_models m WHERE m.wanted_at IS NOT NULL) THEN
    UPDATE cogo.kb_models m SET wanted_at = NULL, serving = m.serving AND p_id IS NOT NULL,
      retired_at = CASE WHEN m.serving AND p_id IS NOT NULL THEN NULL ELSE cogo.now() END
    WHERE m.wanted_at IS NOT NULL AND m.id IS DISTINCT FROM p_id OR m.serving AND p_id IS NULL;
    UPDATE cogo.kb_models m SET wanted_at = cogo.now(), retired_at = NULL WHERE m.id = p_id AND m.wanted_at IS NULL;
  END IF;
  RETURN QUERY SELECT * FROM cogo.kb_models m WHERE m.wanted_at IS NOT NULL;
END $$;

-- Send a message that looks for what lacks a vector of the wanted model: for one tenant, or (NULL) for each that
-- lacks any. One that waits already will see what is committed now, since it looks after it was claimed: so
-- there is never more than one to wait. Returns how many were sent.
CREATE OR REPLACE FUNCTION cogo.want_vectors(p_tenant text) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE v_id smallint; v_tenants text[] := ARRAY[p_tenant]; v_count integer;
BEGIN
  SELECT m.id INTO v_id FROM cogo.kb_models m WHERE m.wanted_at IS NOT NULL;
  IF NOT FOUND THEN RETURN 0; END IF;
  IF p_tenant IS NULL THEN
    EXECUTE format($q$SELECT array_agg(DISTINCT r.tenant) FROM cogo.kb_repos r WHERE EXISTS (
      SELECT FROM cogo.kb_files f JOIN cogo.kb_chunks c ON c.file_id = f.id
      WHERE f.repo_id = r.id AND c.digest IS NOT NULL AND NOT EXISTS (
        SELECT FROM cogo.%I v WHERE v.file_id = c.file_id AND v.digest = c.digest))$q$, 'kb_vectors_' || v_id) INTO v_tenants;
  END IF;
  INSERT INTO public.agent_messages (service, role, tenant, priority, payload)
  SELECT 'rag', 'embed', t.tenant, 3, '{"vectors": true}' FROM unnest(v_tenants) AS t(tenant)
  WHERE NOT EXISTS (  -- twice, for an index each
    SELECT FROM public.agent_messages m WHERE m.service = 'rag' AND m.role = 'embed' AND m.shard = 0 AND m.priority = 3
      AND m.status = 'queued' AND m.retry_at IS NULL AND m.tenant = t.tenant AND m.payload = '{"vectors": true}')
  AND NOT EXISTS (
    SELECT FROM public.agent_messages m WHERE m.service = 'rag' AND m.role = 'embed' AND m.shard = 0 AND m.priority = 3
      AND m.status = 'queued' AND m.retry_at IS NOT NULL AND m.tenant = t.tenant AND m.payload = '{"vectors": true}');
  GET DIAGNOSTICS v_count = ROW_COUNT;
  RETURN v_count;
END $$;

-- The wanted model begins to answer when it has vectors, and no chunk lacks one of all that was indexed before it was
-- wanted (what came later gets its own as it comes). The one that answered before goes with its vectors, a minute
-- later or with the first fill after that: a question may be on its way to them. True when p_id answers (already).
CREATE OR REPLACE FUNCTION cogo.serve_vectors(p_id smallint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE v_ready boolean; v_old smallint; v_wanted_at timestamptz;
BEGIN
  BEGIN
    PERFORM set_config('lock_timeout', '2s', true);  -- the drop locks kb_files too: better later than a queue behind it
    FOR v_old IN DELETE FROM cogo.kb_models m WHERE m.id <> p_id AND NOT m.serving AND m.wanted_at IS NULL
      AND m.retired_at < cogo.now() - interval '1 minute' RETURNING m.id LOOP
      EXECUTE format('DROP TABLE cogo.%I', 'kb_vectors_' || v_old);
    END LOOP;
  EXCEPTION WHEN lock_not_available THEN NULL;
  END;
  IF EXISTS (SELECT FROM cogo.kb_models m WHERE m.id = p_id AND m.serving) THEN RETURN true; END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended('kb_models', 0));
  SELECT m.wanted_at INTO v_wanted_at FROM cogo.kb_models m WHERE m.id = p_id AND m.wanted_at IS NOT NULL;
  IF NOT FOUND THEN RETURN false; END IF;
  EXECUTE format($q$SELECT EXISTS (SELECT FROM cogo.%1$I) AND NOT EXISTS (
    SELECT FROM cogo.kb_files f JOIN cogo.kb_chunks c ON c.file_id = f.id
    WHERE f.indexed_at <= $1 AND c.digest IS NOT NULL AND NOT EXISTS (
      SELECT FROM cogo.%1$I v WHERE v.file_id = c.file_id AND v.digest = c.digest))$q$, 'kb_vectors_' || p_id)
    INTO v_ready USING v_wanted_at;
  IF NOT v_ready THEN RETURN false; END IF;
  UPDATE cogo.kb_models SET serving = false, retired_at = cogo.now() WHERE serving;
  UPDATE cogo.kb_models SET serving = true, retired_at = NULL WHERE id = p_id;
  RETURN true;
END $$;
