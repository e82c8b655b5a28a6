-- Flow control: strict order by key, pauses of tenants, limits and fairness of lanes.
--
-- By scope and key, so that the same word used by another tenant is no neighbour. Only rows that have a key
-- and have not ended are in these two.
DROP INDEX public.agent_messages_ordering;
CREATE INDEX agent_messages_keys ON public.agent_messages (service, role, tenant, ordering_key, id)
  WHERE ordering_key IS NOT NULL AND status IN ('queued', 'claimed', 'waiting');
-- Who stands at the door of its key: all that are not set aside (cogo.aside()), so about one of each key.
CREATE INDEX agent_messages_doors ON public.agent_messages (service, role, tenant, ordering_key)
  WHERE ordering_key IS NOT NULL AND status IN ('queued', 'claimed', 'waiting')
    AND (retry_at IS NULL OR retry_at < '9999-12-31 00:00:00+00');

-- Keys whose door somebody has to look at again, because a lock kept the last one from it. Insert-only.
CREATE TABLE cogo.bus_keys (
  id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  service      text NOT NULL,
  role         text NOT NULL,
  tenant       text NOT NULL,
  ordering_key text NOT NULL
);

-- Where claims of a lane with paused tenants begin to look, so that they don't walk over the same messages
-- again and again; one seq for each priority. Short-lived (`until`), so it may be lost.
CREATE UNLOGGED TABLE cogo.bus_floors (
  service text NOT NULL,
  role    text NOT NULL,
  shard   integer NOT NULL,
  seqs    bigint[] NOT NULL,
  until   timestamptz NOT NULL,
  PRIMARY KEY (service, role, shard)
);

-- Whose turn it is in a fair lane: the hash of the tenant that was served last. A sequence takes a new value in
-- its place, whatever snapshots are held; a row would leave a dead version behind for every claim. Lanes that
-- share one only begin at another place.
DO $$
BEGIN
  FOR n IN 0 .. 15 LOOP
    EXECUTE format('CREATE SEQUENCE cogo.bus_turn_%s MINVALUE %s START 0', n, -9223372036854775808);
  END LOOP;
END $$;

REVOKE ALL ON cogo.bus_keys, cogo.bus_floors FROM PUBLIC, anon, authenticated;
GRANT ALL ON cogo.bus_keys, cogo.bus_floors TO service_role;
GRANT ALL ON ALL SEQUENCES IN SCHEMA cogo TO service_role;
GRANT USAGE ON SEQUENCE public.agent_messages_id_seq TO service_role;  -- bulk enqueue draws ids ahead
