-- Nobody but service_role (and the owner) calls a function of this schema. Trigger functions run as
-- their owner; row level security needs claimed_tenants() alone.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA cogo FROM PUBLIC, anon, authenticated;
GRANT EXECUTE ON FUNCTION cogo.claimed_tenants() TO authenticated;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA cogo TO service_role;
REVOKE ALL ON ALL TABLES IN SCHEMA cogo FROM PUBLIC, anon, authenticated;
GRANT ALL ON ALL TABLES IN SCHEMA cogo TO service_role;
