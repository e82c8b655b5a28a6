-- Moves of policies. Each is written down as a bus event in the same transaction; it belongs to no tenant: '*'.

-- Make a policy `active` or `shadow`, or retire it; who was there before makes room. NULL: there is no such policy;
-- else whether anything changed.
CREATE OR REPLACE FUNCTION cogo.move_policy(
  p_version text, p_status text, p_reason text, p_evaluation jsonb, p_by text)
RETURNS boolean
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE v_from text; v_instead text;
BEGIN
  LOCK TABLE cogo.policies IN SHARE ROW EXCLUSIVE MODE;  -- one move at a time; who decides goes on reading
  SELECT p.status INTO v_from FROM cogo.policies p WHERE p.version = p_version;
  IF NOT FOUND THEN RETURN NULL; END IF;
  IF v_from = p_status THEN RETURN false; END IF;
  IF p_status IN ('active', 'shadow') THEN
    UPDATE cogo.policies p SET status = CASE WHEN p_status = 'active' THEN 'retired' ELSE 'candidate' END
    WHERE p.status = p_status RETURNING p.version INTO v_instead;
  END IF;
  UPDATE cogo.policies p SET status = p_status, evaluation = coalesce(p_evaluation, p.evaluation),
    activated_by = CASE WHEN p_status = 'active' THEN p_by ELSE p.activated_by END,
    activated_at = CASE WHEN p_status = 'active' THEN cogo.now() ELSE p.activated_at END
  WHERE p.version = p_version;
  INSERT INTO public.bus_events (kind, tenant, service, role, shard, actor, detail)
  VALUES ('orchestrate_policy', '*', 'orchestrator', 'decide', 0, p_by, jsonb_build_object(
    'version', p_version, 'from', v_from, 'to', p_status, 'instead_of', v_instead, 'reason', p_reason,
    'evaluation', p_evaluation));
  RETURN true;
END $$;
