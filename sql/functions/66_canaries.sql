-- Moves of canaries. Each is written down as a bus event in the same transaction.

-- Move a canary, if it still is where the caller saw it; false: somebody else was faster.
CREATE OR REPLACE FUNCTION cogo.move_canary(
  p_id bigint, p_run integer, p_state text, p_step integer, p_resumes integer, p_resume_at timestamptz, p_cause text,
  p_analysis jsonb, p_by text)
RETURNS boolean
LANGUAGE plpgsql SECURITY INVOKER SET search_path = '' AS $$
DECLARE v_from cogo.canaries; v_to cogo.canaries;
BEGIN
  SELECT * INTO v_from FROM cogo.canaries c
  WHERE c.id = p_id AND c.run = p_run AND c.state IN ('running', 'paused') FOR UPDATE;
  IF NOT FOUND THEN RETURN false; END IF;
  UPDATE cogo.canaries c SET state = p_state, step = p_step, run = c.run + 1, resumes = p_resumes,
    resume_at = p_resume_at, cause = p_cause, analysis = coalesce(p_analysis, c.analysis), changed_by = p_by,
    changed_at = cogo.now()
  WHERE c.id = p_id RETURNING * INTO v_to;
  INSERT INTO public.bus_events (kind, tenant, service, role, shard, actor, detail)
  VALUES ('orchestrate_canary', v_to.tenant, 'orchestrator', 'decide', 0, p_by, jsonb_build_object(
    'canary_id', p_id, 'agent_id', v_to.agent_id, 'from', v_from.state, 'to', p_state,
    'weight_from', v_from.steps[v_from.step + 1], 'weight_to', v_to.steps[p_step + 1], 'cause', p_cause,
    'analysis', p_analysis));
  RETURN true;
END $$;
