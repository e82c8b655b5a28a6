-- The one ledger of budgets.

-- Open a hold for a root message; the first one counts. A root that has ended gets a closed one.
CREATE OR REPLACE FUNCTION cogo.hold(p_root bigint, p_tenant text, p_cost numeric, p_tokens bigint)
RETURNS void LANGUAGE sql SECURITY INVOKER SET search_path = '' AS $$
  INSERT INTO cogo.budget_holds (root_id, tenant, max_cost_usd, max_tokens, closed_at)
  VALUES (p_root, p_tenant, p_cost, p_tokens, (SELECT cogo.now() FROM public.agent_messages m
    WHERE m.id = p_root AND m.status IN ('done', 'failed', 'cancelled')))
  ON CONFLICT (root_id) DO NOTHING
$$;

-- Draw from a hold, all or nothing. ok = false: it would be overdrawn, or the hold is closed.
CREATE OR REPLACE FUNCTION cogo.draw(p_root bigint, p_cost numeric, p_tokens bigint)
RETURNS TABLE (ok boolean, left_cost_usd numeric, left_tokens bigint)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
BEGIN
  UPDATE cogo.budget_holds h SET
    spent_cost_usd = h.spent_cost_usd + p_cost, spent_tokens = h.spent_tokens + p_tokens
  WHERE h.root_id = p_root AND h.closed_at IS NULL
    AND (h.max_cost_usd IS NULL OR h.spent_cost_usd + p_cost <= h.max_cost_usd)
    AND (h.max_tokens IS NULL OR h.spent_tokens + p_tokens <= h.max_tokens);
  RETURN QUERY SELECT FOUND, h.max_cost_usd - h.spent_cost_usd, h.max_tokens - h.spent_tokens
    FROM cogo.budget_holds h WHERE h.root_id = p_root;
END $$;

-- Give back what was drawn and not used; only to an open hold, and only by the claim that is current: an attempt
-- that was lost leaves what it drew as spent, and can't credit the budget of a root that was requeued meanwhile.
CREATE OR REPLACE FUNCTION cogo.refund(p_root bigint, p_id bigint, p_fence bigint, p_cost numeric, p_tokens bigint)
RETURNS boolean LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
BEGIN
  UPDATE cogo.budget_holds h SET
    spent_cost_usd = greatest(h.spent_cost_usd - p_cost, 0), spent_tokens = greatest(h.spent_tokens - p_tokens, 0)
  WHERE h.root_id = p_root AND h.closed_at IS NULL AND p_cost >= 0 AND p_tokens >= 0
    AND EXISTS (SELECT FROM public.agent_messages m WHERE m.id = p_id AND m.fence = p_fence AND p_fence > 0);
  RETURN FOUND;
END $$;
