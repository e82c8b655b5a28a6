-- Budgets of tenants, and the outcomes that the bus itself knows.

-- Begin a new window when the last one has passed. Reservations stay: what they are for still runs.
CREATE OR REPLACE FUNCTION cogo.roll_budget(p_tenant text, p_now timestamptz) RETURNS void
LANGUAGE sql SECURITY INVOKER SET search_path = '' AS $$
  UPDATE cogo.budgets b SET window_at = p_now, spent_usd = 0, tasks = 0
  WHERE b.tenant = p_tenant AND (b.window_at IS NULL OR b.window_at + b.window_s * interval '1 s' <= p_now)
$$;

-- Take up to p_most out of a tenant's budget, p_least at the least; NULL: there isn't as much left. Without a
-- budget everything is granted. The row's lock makes callers wait for each other, so none overdraws it.
CREATE OR REPLACE FUNCTION cogo.reserve(p_tenant text, p_now timestamptz, p_least numeric, p_most numeric)
RETURNS numeric
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE v_left numeric;
BEGIN
  PERFORM cogo.roll_budget(p_tenant, p_now);
  SELECT b.limit_usd - b.spent_usd - b.reserved_usd INTO v_left
  FROM cogo.budgets b WHERE b.tenant = p_tenant FOR UPDATE;
  IF NOT FOUND THEN RETURN p_most; END IF;
  IF v_left < p_least OR v_left <= 0 THEN RETURN NULL; END IF;
  v_left := least(v_left, p_most);
  UPDATE cogo.budgets b SET reserved_usd = b.reserved_usd + v_left WHERE b.tenant = p_tenant;
  RETURN v_left;
END $$;

-- A task was decided within the window, at this price of a dollar.
CREATE OR REPLACE FUNCTION cogo.count_task(p_tenant text, p_now timestamptz, p_lambda double precision) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
BEGIN
  PERFORM cogo.roll_budget(p_tenant, p_now);
  UPDATE cogo.budgets b SET tasks = b.tasks + 1, lambda_cost = p_lambda WHERE b.tenant = p_tenant;
END $$;

-- What an error says about whose fault it was.
CREATE OR REPLACE FUNCTION cogo.error_class(p_error text) RETURNS text
LANGUAGE sql IMMUTABLE SECURITY INVOKER SET search_path = '' AS $$
  SELECT CASE
    WHEN p_error IS NULL THEN NULL
    WHEN split_part(p_error, ':', 1) IN ('task_invalid', 'assignment_invalid', 'assignment_forbidden', 'invalid', 'routing_invalid',
      'forbidden', 'not_found', 'intent_unknown', 'model_denied', 'rejected') THEN 'caller'
    WHEN split_part(p_error, ':', 1) IN ('budget_exceeded', 'budget_refused') THEN 'budget'
    WHEN split_part(p_error, ':', 1) IN ('claim_lost', 'bus_unavailable', 'no_feasible_arm') THEN 'infra'
    WHEN split_part(p_error, ':', 1) IN ('handler_timeout', 'ttl_expired', 'target_busy') THEN 'timeout'
    ELSE 'callee' END
$$;

-- A root has ended: its reservation becomes what was spent, and its decision has an outcome. Of one that was
-- cancelled nothing is learnt.
CREATE OR REPLACE FUNCTION cogo.on_hold_closed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
BEGIN
  UPDATE cogo.budgets b SET
    reserved_usd = greatest(b.reserved_usd - NEW.reserved_usd, 0), spent_usd = b.spent_usd + NEW.spent_cost_usd
  WHERE b.tenant = NEW.tenant AND (NEW.reserved_usd > 0 OR NEW.spent_cost_usd > 0);
  INSERT INTO cogo.outcomes (tenant, decision_id, source, past, ok, error_class, cost_usd, latency_ms, at)
  SELECT d.tenant, d.id, 'run', d.past, m.status = 'done', cogo.error_class(m.error), NEW.spent_cost_usd,
    extract(epoch FROM m.done_at - m.created_at) * 1000, cogo.now()
  FROM cogo.decisions d JOIN public.agent_messages m ON m.id = d.message_id
  WHERE d.message_id = NEW.root_id AND d.past IS NOT NULL AND m.status IN ('done', 'failed')
  ON CONFLICT DO NOTHING;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER budget_holds_closed AFTER UPDATE OF closed_at ON cogo.budget_holds
  FOR EACH ROW WHEN (OLD.closed_at IS NULL AND NEW.closed_at IS NOT NULL) EXECUTE FUNCTION cogo.on_hold_closed();
