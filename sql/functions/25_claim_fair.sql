-- The claim of lanes that are fair, limited, or have paused tenants: cogo.claim() hands over to it.
--
-- With the lane's index of tenants (cogo.lane_indexes) it goes from tenant to tenant and takes from each its
-- share. Without it, it walks the lane in order and passes over the messages of tenants that may not run:
-- right as well, but slower by what it passes over, and fair only among the messages that it looks at.
-- It doesn't read the lane in order of seq, so it returns none: a watermark has nothing to learn from it.

-- Two indexes of one lane: `tenants`, by which the tenants that have something ready are found, and `running`,
-- which counts what is claimed. Processes make them when they publish a lane that wants them: for every lane
-- each would cost producers 8 microseconds a message, and a count over all lanes would walk, while a
-- snapshot is held, over whatever the others have handled since.
CREATE OR REPLACE FUNCTION cogo.lane_index(p_kind text, p_service text, p_role text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT 'agent_messages_' || p_kind || '_' || pg_catalog.left(pg_catalog.md5(p_service || '/' || p_role), 12)
$$;

-- What is in such an index. The predicates are written so that agent_messages_ready and _inflight, whose
-- rows they share, can't serve the same queries: the planner might prefer them, and walk over other lanes
-- and tenants.
CREATE OR REPLACE FUNCTION cogo.lane_index_where(p_kind text, p_service text, p_role text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT pg_catalog.format('service = %L AND role = %L AND ', p_service, p_role) || CASE p_kind
    WHEN 'tenants' THEN $q$status = 'queued' AND coalesce(retry_at, '-infinity') = '-infinity'$q$
    WHEN 'running' THEN $q$status || '' = 'claimed'$q$ END
$$;

CREATE OR REPLACE FUNCTION cogo.has_lane_index(p_kind text, p_service text, p_role text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = '' AS $$
  SELECT coalesce((SELECT i.indisvalid FROM pg_catalog.pg_index i
    WHERE i.indexrelid = to_regclass('public.' || cogo.lane_index(p_kind, p_service, p_role))), false)
$$;

-- The indexes that a lane wants by its row in bus_lanes: name, whether it is there (NULL: it is there and
-- invalid, as a broken CREATE INDEX CONCURRENTLY leaves it), and the statement that makes it. Tenants are in the
-- order of a hash: so a number, which a sequence can hold, says whose turn it is.
CREATE OR REPLACE FUNCTION cogo.lane_indexes(p_service text, p_role text)
RETURNS TABLE (name text, made boolean, sql text) LANGUAGE sql STABLE SET search_path = '' AS $$
  SELECT n.name, CASE WHEN to_regclass('public.' || n.name) IS NULL THEN false
                      WHEN cogo.has_lane_index(k.kind, p_service, p_role) THEN true END,
    format('CREATE INDEX CONCURRENTLY IF NOT EXISTS %I ON public.agent_messages (%s)'
           ' WITH (deduplicate_items = off) WHERE %s', n.name, k.columns,
           cogo.lane_index_where(k.kind, p_service, p_role))
  FROM cogo.bus_lanes l CROSS JOIN LATERAL (VALUES
    ('tenants', 'shard, hashtextextended(tenant, 0), priority, seq', l.fair OR l.limits ? 'max_running_per_tenant'),
    ('running', 'tenant', l.fair OR l.limits <> '{}')) AS k(kind, columns, wanted)
  CROSS JOIN LATERAL (SELECT cogo.lane_index(k.kind, p_service, p_role)) AS n(name)
  WHERE l.service = p_service AND l.role = p_role AND k.wanted
$$;

CREATE OR REPLACE FUNCTION cogo.lane_lock(p_service text, p_role text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT pg_catalog.hashtextextended(p_service || '/' || p_role, 2)
$$;

-- p_free slots among tenants that run p_busy[i] messages each, so that those with the fewest come first and
-- all come as close to the same number as can be; ties go by place. How many each of them gets.
CREATE OR REPLACE FUNCTION cogo.shares(p_busy bigint[], p_free bigint) RETURNS bigint[]
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
  WITH t AS (
    SELECT u.i, u.busy, row_number() OVER w AS n, sum(u.busy) OVER w AS below
    FROM unnest(p_busy) WITH ORDINALITY AS u(busy, i) WINDOW w AS (ORDER BY u.busy, u.i)
  ), last AS (  -- the tenants up to this one can be raised to its level, and some slots are left
    SELECT t.n, t.busy AS level, p_free - (t.n * t.busy - t.below) AS left_over
    FROM t WHERE t.n * t.busy - t.below < p_free ORDER BY t.n DESC LIMIT 1
  )
  SELECT array_agg(CASE WHEN t.n <= last.n
      THEN (last.level - t.busy + div(last.left_over, last.n) + (t.n <= last.left_over % last.n)::integer)::bigint
      ELSE 0 END ORDER BY t.i)
  FROM t CROSS JOIN last
$$;

-- The partial index of a lane serves only a query that names the lane literally, so there is a statement for
-- each lane. It is prepared once a session: planning it takes longer than running it. Its name.
CREATE OR REPLACE FUNCTION cogo.prepared(p_arguments text, p_sql text) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE v_name text := 'cogo_' || md5(p_sql);
BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_prepared_statements s WHERE s.name = v_name) THEN
    EXECUTE 'PREPARE ' || v_name || p_arguments || ' AS ' || p_sql;
  END IF;
  RETURN v_name;
END $$;

-- The next $4 tenants of shard $5 that have something ready, round the circle of hashes: from $1 ($2: past the
-- end of the numbers already) to $3. How many; where it stopped; hashes and $6/$7 of those that may run.
CREATE OR REPLACE FUNCTION cogo.tenants_statement(p_service text, p_role text) RETURNS text
LANGUAGE sql VOLATILE SET search_path = '' AS $$
  SELECT cogo.prepared('(bigint, boolean, bigint, integer, integer, text[], bigint[], bigint, text[])', format($q$
    WITH RECURSIVE t(h, tenant, wrapped, n) AS (
      SELECT $1, NULL::text, $2, 0
      UNION ALL
      SELECT x.* FROM t CROSS JOIN LATERAL (
        (SELECT hashtextextended(m.tenant, 0), m.tenant, t.wrapped, t.n + 1
         FROM public.agent_messages m WHERE %1$s AND m.shard = $5
           AND hashtextextended(m.tenant, 0) > t.h
           AND hashtextextended(m.tenant, 0) <= CASE WHEN t.wrapped THEN $3 ELSE 9223372036854775807 END
         ORDER BY hashtextextended(m.tenant, 0) LIMIT 1)
        UNION ALL
        (SELECT hashtextextended(m.tenant, 0), m.tenant, true, t.n + 1
         FROM public.agent_messages m WHERE %1$s AND m.shard = $5
           AND NOT t.wrapped AND hashtextextended(m.tenant, 0) <= $3
         ORDER BY hashtextextended(m.tenant, 0) LIMIT 1)
        LIMIT 1) x
      WHERE t.n < $4
    ), k AS (
      SELECT t.*, coalesce(b.busy, 0) AS busy FROM t
      LEFT JOIN unnest($6, $7) AS b(tenant, busy) ON b.tenant = t.tenant WHERE t.n > 0
    )
    SELECT count(*), (array_agg(k.h ORDER BY k.n DESC))[1], bool_or(k.wrapped),
      array_agg(k.h ORDER BY k.n) FILTER (WHERE k.busy < $8 AND k.tenant <> ALL ($9)),
      array_agg(k.busy ORDER BY k.n) FILTER (WHERE k.busy < $8 AND k.tenant <> ALL ($9))
    FROM k $q$, cogo.lane_index_where('tenants', p_service, p_role)))
$$;

-- $5 messages of these tenants ($1 hashes, $2 what they run) in shard $7 by their shares, behind (level, mark),
-- locked; nobody gets above $6. Their ids; the last tenant that got one; then, if they were too few, who has
-- more: hashes, busy, levels, marks.
CREATE OR REPLACE FUNCTION cogo.shares_statement(p_service text, p_role text) RETURNS text
LANGUAGE sql VOLATILE SET search_path = '' AS $$
  SELECT cogo.prepared('(bigint[], bigint[], bigint[], bigint[], bigint, bigint, integer)', format($q$
    WITH u AS (
      SELECT u.*, least(u.share, $6 - u.busy) AS due
      FROM unnest($1, $2, $3, $4, cogo.shares($2, $5)) WITH ORDINALITY AS u(h, busy, level, mark, share, i)
    ), x AS MATERIALIZED (
      SELECT u.i, x.* FROM u CROSS JOIN LATERAL (
        SELECT m.id, m.priority::bigint AS priority, m.seq
        FROM public.agent_messages m WHERE %1$s AND m.shard = $7 AND hashtextextended(m.tenant, 0) = u.h
          AND (m.priority, m.seq) > (u.level, u.mark) AND (m.expires_at IS NULL OR m.expires_at > cogo.now())
          AND (m.ordering_key IS NULL OR cogo.is_head(m.service, m.role, m.tenant, m.ordering_key, m.id))
        ORDER BY m.priority, m.seq LIMIT u.due FOR UPDATE SKIP LOCKED) x
      WHERE u.due > 0
    ), g AS (
      SELECT u.i, u.h, u.busy + count(x.id) AS busy, u.due = count(x.id) AS filled, coalesce(
        max(ARRAY[x.priority, x.seq]) FILTER (WHERE x.id IS NOT NULL), ARRAY[u.level, u.mark]) AS last
      FROM u LEFT JOIN x ON x.i = u.i GROUP BY u.i, u.h, u.busy, u.due, u.level, u.mark
    )
    SELECT (SELECT array_agg(x.id) FROM x), (SELECT u.h FROM u JOIN x ON x.i = u.i ORDER BY u.i DESC LIMIT 1),
      array_agg(g.h ORDER BY g.i), array_agg(g.busy ORDER BY g.i),
      array_agg(g.last[1] ORDER BY g.i), array_agg(g.last[2] ORDER BY g.i)
    FROM g WHERE g.filled AND g.busy < $6 AND (SELECT count(*) FROM x) < $5 AND EXISTS (
      SELECT FROM public.agent_messages m WHERE %1$s AND m.shard = $7 AND hashtextextended(m.tenant, 0) = g.h
        AND (m.priority, m.seq) > (g.last[1], g.last[2])) $q$, cogo.lane_index_where('tenants', p_service, p_role)))
$$;

-- Messages of the tenants of a lane by their shares, locked; needs the index of tenants. p_busy[i] is what
-- p_tenants[i] runs already (who runs nothing is absent); no tenant gets above p_most.
CREATE OR REPLACE FUNCTION cogo.pick_fair(
  p_service text, p_role text, p_shard integer, p_limit integer, p_tenants text[], p_busy bigint[],
  p_most bigint, p_paused text[]
) RETURNS bigint[]
LANGUAGE plpgsql SECURITY INVOKER SET search_path = ''
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
  TENANTS constant integer := greatest(32, p_limit);  -- looked at in one go
  v_tenants text := cogo.tenants_statement(p_service, p_role);
  v_shares text := cogo.shares_statement(p_service, p_role);
  v_turn regclass := 'cogo.bus_turn_' || (hashtextextended(p_service || '/' || p_role || '/' || p_shard, 3) & 15);
  v_start bigint := coalesce(pg_sequence_last_value(v_turn), 0);
  v_at bigint := v_start;
  v_wrapped boolean := false;
  v_hashes bigint[]; v_busy bigint[]; v_levels bigint[]; v_marks bigint[];
  v_ids bigint[] := '{}'; v_new bigint[]; v_last bigint;
  v_seen integer;
BEGIN
  FOR v_round IN 1 .. 8 LOOP
    EXECUTE format('EXECUTE %s (%L, %L, %L, %L, %L, %L, %L, %L, %L)', v_tenants, v_at, v_wrapped, v_start,
                   TENANTS, p_shard, p_tenants, p_busy, p_most, p_paused)
    INTO v_seen, v_at, v_wrapped, v_hashes, v_busy;
    v_levels := array_fill(-1::bigint, ARRAY[coalesce(cardinality(v_hashes), 0)]);
    v_marks := v_levels;
    -- Who has less than its share leaves the rest to the others, so there may be some rounds.
    WHILE v_hashes IS NOT NULL AND cardinality(v_ids) < p_limit LOOP
      EXECUTE format('EXECUTE %s (%L, %L, %L, %L, %L, %L, %L)', v_shares, v_hashes, v_busy, v_levels, v_marks,
                     p_limit - cardinality(v_ids), p_most, p_shard)
      INTO v_new, v_last, v_hashes, v_busy, v_levels, v_marks;
      IF v_round = 1 AND cardinality(v_ids) = 0 AND v_last IS NOT NULL THEN
        PERFORM setval(v_turn, v_last);
      END IF;
      v_ids := v_ids || v_new;
    END LOOP;
    EXIT WHEN v_seen < TENANTS OR cardinality(v_ids) >= p_limit;
  END LOOP;
  RETURN v_ids;
END $$;

-- What a lane has claimed, by tenant, over all shards and processes.
CREATE OR REPLACE FUNCTION cogo.running(p_service text, p_role text, OUT tenants text[], OUT counts bigint[])
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = ''
SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
BEGIN
  IF cogo.has_lane_index('running', p_service, p_role) THEN
    EXECUTE 'EXECUTE ' || cogo.prepared('', format($q$
      SELECT array_agg(b.tenant), array_agg(b.n) FROM (
        SELECT m.tenant, count(*) AS n FROM public.agent_messages m WHERE %s GROUP BY m.tenant) b
      $q$, cogo.lane_index_where('running', p_service, p_role))) INTO tenants, counts;
  ELSE
    SELECT array_agg(b.tenant), array_agg(b.n) INTO tenants, counts FROM (
      SELECT m.tenant, count(*) AS n FROM public.agent_messages m
      WHERE m.status = 'claimed' AND m.service = p_service AND m.role = p_role GROUP BY m.tenant) b;
  END IF;
  tenants := coalesce(tenants, '{}');
  counts := coalesce(counts, '{}');
END $$;

-- Messages of a lane in its order, without the index: those of paused tenants and of tenants that run
-- p_most are passed over; when the lane is fair, each tenant gets its share of what was looked at. The
-- caller has the lane's lock, so nobody else picks the same. more: there is more to look at.
--
-- Paused messages at the front are remembered as passed for ten seconds (cogo.bus_floors), so that not every
-- claim walks over them; a message that shows late with an older seq is seen when those are over.
CREATE OR REPLACE FUNCTION cogo.pick_in_order(
  p_service text, p_role text, p_shard integer, p_limit integer, p_tenants text[], p_busy bigint[],
  p_most bigint, p_paused text[], p_fair boolean, OUT ids bigint[], OUT more boolean
)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = ''
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_walk integer := CASE WHEN p_fair OR p_most < 1e9 THEN greatest(2000, 4 * p_limit) ELSE 2 * p_limit + 50 END;
  v_plain boolean := NOT p_fair AND p_most >= 1e9 AND p_paused = '{}';
  v_now timestamptz := cogo.now();
  v_from bigint[];  -- where this turn begins, for each priority
  v_past bigint[];  -- up to where all belong to paused tenants
  v_last bigint[]; v_clear bigint[];
  v_new bigint[]; v_new_tenants text[]; v_tenants text[] := p_tenants; v_busy bigint[] := p_busy;
  v_seen integer; v_skipped integer := 0; v_paused_first integer;
BEGIN
  IF v_plain THEN  -- only the number is limited: as cogo.claim picks
    ids := ARRAY(
      SELECT b.id FROM (
        (SELECT m.id FROM public.agent_messages m
         WHERE m.service = p_service AND m.role = p_role AND m.shard = p_shard
           AND m.status = 'queued' AND m.retry_at IS NOT NULL AND m.retry_at <= v_now
           AND (m.expires_at IS NULL OR m.expires_at > v_now)
           AND (m.ordering_key IS NULL OR cogo.is_head(p_service, p_role, m.tenant, m.ordering_key, m.id))
         ORDER BY m.retry_at LIMIT greatest(1, p_limit / 2))
        UNION ALL
        SELECT ready.id FROM (VALUES (0::smallint), (1), (2), (3)) AS level(priority) CROSS JOIN LATERAL (
          SELECT m.id FROM public.agent_messages m
          WHERE m.service = p_service AND m.role = p_role AND m.shard = p_shard
            AND m.priority = level.priority AND m.status = 'queued' AND m.retry_at IS NULL
            AND (m.expires_at IS NULL OR m.expires_at > v_now)
            AND (m.ordering_key IS NULL OR cogo.is_head(p_service, p_role, m.tenant, m.ordering_key, m.id))
          ORDER BY m.seq LIMIT p_limit) ready
      ) b LIMIT p_limit);
    more := false;
    RETURN;
  END IF;
  SELECT f.seqs INTO v_from FROM cogo.bus_floors f
  WHERE f.service = p_service AND f.role = p_role AND f.shard = p_shard AND f.until > v_now;
  v_from := coalesce(v_from, '{0,0,0,0}');
  v_past := v_from;
  ids := '{}';
  FOR v_turn IN 1 .. 20 LOOP  -- each looks twice as far
    WITH w AS MATERIALIZED (
      SELECT b.*, row_number() OVER () AS n, b.tenant = ANY (p_paused) AS paused FROM (
        (SELECT m.id, m.tenant, NULL::smallint AS priority, NULL::bigint AS seq FROM public.agent_messages m
         WHERE v_turn = 1 AND m.service = p_service AND m.role = p_role AND m.shard = p_shard
           AND m.status = 'queued' AND m.retry_at IS NOT NULL AND m.retry_at <= v_now
           AND (m.expires_at IS NULL OR m.expires_at > v_now)
           AND (m.ordering_key IS NULL OR cogo.is_head(p_service, p_role, m.tenant, m.ordering_key, m.id))
         ORDER BY m.retry_at LIMIT v_walk)
        UNION ALL
        (SELECT ready.* FROM (VALUES (0::smallint), (1), (2), (3)) AS level(priority) CROSS JOIN LATERAL (
           SELECT m.id, m.tenant, m.priority, m.seq FROM public.agent_messages m
           WHERE m.service = p_service AND m.role = p_role AND m.shard = p_shard
             AND m.priority = level.priority AND m.status = 'queued' AND m.retry_at IS NULL
             AND m.seq > v_from[level.priority + 1] AND (m.expires_at IS NULL OR m.expires_at > v_now)
             AND (m.ordering_key IS NULL OR cogo.is_head(p_service, p_role, m.tenant, m.ordering_key, m.id))
           ORDER BY m.seq LIMIT v_walk) ready LIMIT v_walk)
      ) b
    ), may AS (
      SELECT w.id, w.tenant, w.n, row_number() OVER (PARTITION BY w.seq IS NULL ORDER BY w.n) AS place,
        w.seq IS NULL AS due, row_number() OVER (PARTITION BY w.tenant ORDER BY w.n) + coalesce(b.busy, 0) AS rank
      FROM w LEFT JOIN (
        SELECT u.tenant, sum(u.busy)::bigint AS busy FROM unnest(v_tenants, v_busy) AS u(tenant, busy) GROUP BY 1
      ) b ON b.tenant = w.tenant WHERE NOT w.paused
    ), pick AS (
      SELECT m.* FROM may m
      WHERE m.rank <= p_most AND NOT (m.due AND m.place > greatest(1, p_limit / 2))
      ORDER BY CASE WHEN p_fair THEN m.rank END, m.n LIMIT p_limit - cardinality(ids)
    ), level AS (
      SELECT w.priority, max(w.seq) AS last,
        max(w.seq) FILTER (WHERE w.n < coalesce(f.n, 1e9)) AS past, count(*) FILTER (WHERE w.n < coalesce(f.n, 1e9)) AS passed
      FROM w LEFT JOIN (SELECT w.priority, min(w.n) AS n FROM w WHERE NOT w.paused GROUP BY 1) f
        ON f.priority = w.priority
      WHERE w.seq IS NOT NULL GROUP BY w.priority
    )
    SELECT (SELECT array_agg(p.id ORDER BY p.n) FROM pick p), (SELECT array_agg(p.tenant) FROM pick p),
      (SELECT count(*) FROM w WHERE w.seq IS NOT NULL), (SELECT sum(l.passed) FROM level l),
      array_agg(coalesce(l.last, v_from[i.p + 1]) ORDER BY i.p),
      array_agg(CASE WHEN v_past[i.p + 1] = v_from[i.p + 1] THEN coalesce(l.past, v_past[i.p + 1])
                     ELSE v_past[i.p + 1] END ORDER BY i.p)
    INTO v_new, v_new_tenants, v_seen, v_paused_first, v_last, v_clear
    FROM generate_series(0, 3) AS i(p) LEFT JOIN level l ON l.priority = i.p;
    ids := ids || v_new;
    v_tenants := v_tenants || v_new_tenants;
    v_busy := v_busy || array_fill(1::bigint, ARRAY[coalesce(cardinality(v_new), 0)]);
    v_skipped := v_skipped + coalesce(v_paused_first, 0);
    v_from := v_last;
    v_past := v_clear;
    more := v_seen >= v_walk;
    EXIT WHEN NOT more OR cardinality(ids) >= p_limit OR v_walk > 10000;
    v_walk := 2 * v_walk;
  END LOOP;
  IF p_paused <> '{}' AND v_skipped >= 500 THEN
    INSERT INTO cogo.bus_floors AS f VALUES (p_service, p_role, p_shard, v_past, v_now + interval '10 s')
    ON CONFLICT (service, role, shard) DO UPDATE SET seqs = excluded.seqs,
      until = CASE WHEN f.until > v_now THEN f.until ELSE excluded.until END;
  END IF;
END $$;

CREATE OR REPLACE FUNCTION cogo.claim_fair(
  p_service text, p_role text, p_shard integer, p_limit integer,
  p_holder text, p_epoch bigint, p_timeout_ms bigint, p_after bigint[]
) RETURNS TABLE (
  id bigint, fence bigint, tenant text, payload text, attempts integer, root_id bigint,
  traceparent text, runtime_s double precision, expires_in_s double precision,
  queued_ms double precision, max_attempts integer, priority smallint, seq bigint
)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = ''
SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE
  NO_LIMIT constant bigint := 1000000000;
  v_now timestamptz := cogo.now();
  v_lane cogo.bus_lanes;
  v_most bigint; v_free bigint;
  v_indexed boolean;
  v_tenants text[]; v_busy bigint[]; v_ids bigint[];
  v_more boolean := false;
BEGIN
  SELECT * INTO v_lane FROM cogo.bus_lanes l WHERE l.service = p_service AND l.role = p_role;
  v_most := coalesce((v_lane.limits ->> 'max_running_per_tenant')::bigint, NO_LIMIT);
  v_indexed := (v_lane.fair OR v_most < NO_LIMIT OR v_lane.paused_tenants <> '{}')
               AND cogo.has_lane_index('tenants', p_service, p_role);
  -- Who counts what runs, and who picks without locking, goes alone. What this waits for is a claim.
  IF v_lane.limits <> '{}' OR NOT v_indexed THEN
    PERFORM pg_advisory_xact_lock(cogo.lane_lock(p_service, p_role));
  END IF;
  -- A statement of its own, after the lock: it sees what the claims before it have taken.
  SELECT r.tenants, r.counts INTO v_tenants, v_busy FROM cogo.running(p_service, p_role) r;
  v_free := coalesce((v_lane.limits ->> 'max_running')::bigint, NO_LIMIT)
            - (SELECT coalesce(sum(n), 0) FROM unnest(v_busy) AS n);

  IF v_free <= 0 THEN
    NULL;
  ELSIF v_indexed THEN
    -- Retries that are due join their tenant's line; they have a place in it by the time of the failure.
    UPDATE public.agent_messages m SET retry_at = NULL WHERE m.id = ANY (ARRAY(
      SELECT d.id FROM public.agent_messages d
      WHERE d.service = p_service AND d.role = p_role AND d.shard = p_shard
        AND d.status = 'queued' AND d.retry_at IS NOT NULL AND d.retry_at <= v_now
      ORDER BY d.retry_at LIMIT 2 * p_limit FOR UPDATE SKIP LOCKED));
    v_ids := cogo.pick_fair(p_service, p_role, p_shard, least(p_limit, v_free)::integer, v_tenants, v_busy,
                            v_most, v_lane.paused_tenants);
  ELSE
    SELECT p.ids, p.more INTO v_ids, v_more FROM cogo.pick_in_order(
      p_service, p_role, p_shard, least(p_limit, v_free)::integer, v_tenants, v_busy, v_most,
      v_lane.paused_tenants, v_lane.fair) p;
  END IF;

  RETURN QUERY
  WITH taken AS (
    UPDATE public.agent_messages m SET
      status = 'claimed', claimed_by = p_holder, holder_epoch = p_epoch, claimed_at = v_now,
      attempts = m.attempts + 1, fence = nextval('cogo.bus_fence'), retry_at = NULL,
      deadline_at = least(m.expires_at, v_now + coalesce(v_lane.timeout_ms, p_timeout_ms) * interval '1 ms')
    WHERE m.id = ANY (ARRAY(
      SELECT a.id FROM public.agent_messages a
      WHERE a.id = ANY (v_ids) AND a.status = 'queued' AND (a.retry_at IS NULL OR a.retry_at <= v_now)
        AND (a.ordering_key IS NULL OR cogo.is_head(p_service, p_role, a.tenant, a.ordering_key, a.id))
      FOR UPDATE SKIP LOCKED))
    RETURNING m.id, m.fence, m.tenant, m.payload::text, m.attempts, coalesce(m.root_id, m.id), m.traceparent,
      date_part('epoch', m.deadline_at - v_now), date_part('epoch', m.expires_at - v_now),
      date_part('epoch', v_now - m.created_at) * 1000, coalesce(v_lane.max_attempts, 5), m.priority, NULL::bigint
  )
  SELECT t.* FROM taken t ORDER BY array_position(v_ids, t.id);  -- by turns, as they were picked
  IF NOT FOUND THEN
    -- Nothing: when to look again without being woken. Slots may become free in ways that wake nobody.
    RETURN QUERY
      SELECT NULL::bigint, NULL::bigint, NULL::text, NULL::text, NULL::integer, NULL::bigint, NULL::text,
        hint.s, NULL::double precision, NULL::double precision, NULL::integer, NULL::smallint, NULL::bigint
      FROM (SELECT least(
        CASE WHEN v_more THEN 0.05
             WHEN v_lane.limits <> '{}' AND cogo.depth(p_service, p_role, p_shard, 1) > 0 THEN 1.0
             END::double precision,
        (SELECT date_part('epoch', m.retry_at - v_now) FROM public.agent_messages m
         WHERE m.service = p_service AND m.role = p_role AND m.shard = p_shard
           AND m.status = 'queued' AND m.retry_at > v_now AND m.retry_at < cogo.aside()
         ORDER BY m.retry_at LIMIT 1)) AS s) hint
      WHERE hint.s IS NOT NULL;
  END IF;
END $$;
