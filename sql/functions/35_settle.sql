-- What follows from a change of status: parents settle, and outsiders' UPDATEs are put right.

-- A child has ended: its parent, which waits for exactly this child, ends with it, whatever ended
-- the child (finish, poison, ttl, an outsider's UPDATE). The UPDATE fires this trigger again, so the
-- whole chain settles in one transaction. Locks go child -> parent only.
CREATE OR REPLACE FUNCTION cogo.on_settle() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
DECLARE v_none text;
BEGIN
  IF NEW.status NOT IN ('done', 'failed', 'cancelled') OR OLD.status IN ('done', 'failed', 'cancelled') THEN
    RETURN NULL;
  END IF;
  PERFORM cogo.dispatched(NEW.reply_to, NEW.reply_fence, NEW.status, NEW.error);
  -- Recorded within the statement: the triggers of its rows fire after it, so the audit of a chain
  -- reads from the child up.
  WITH settled AS (
    UPDATE public.agent_messages p SET
      status = NEW.status, done_at = cogo.now(), awaits = NULL, seq = nextval('cogo.bus_seq'),
      error = CASE WHEN NEW.status <> 'done'
        THEN coalesce(NEW.error, NEW.status || ': so ended message ' || NEW.id || ', which was to answer') END,
      last_error_at = CASE WHEN NEW.status = 'failed' THEN cogo.now() ELSE p.last_error_at END,
      result_snippet = NEW.result_snippet, result_url = NEW.result_url
    WHERE p.id = NEW.reply_to AND p.status = 'waiting' AND p.awaits = NEW.reply_fence
    RETURNING p.id
  )
  SELECT cogo.record_ends(ARRAY[settled.id], NEW.claimed_by) INTO v_none FROM settled;
  RETURN NULL;
END $$;
-- (The WHEN of a trigger is prepared anew for each statement, so it is short.)
CREATE OR REPLACE TRIGGER agent_messages_settle AFTER UPDATE OF status ON public.agent_messages
  FOR EACH ROW WHEN (NEW.reply_to IS NOT NULL) EXECUTE FUNCTION cogo.on_settle();

-- Outsiders may claim, finish, cancel and requeue by plain UPDATEs of status. This puts right what
-- their statement left out. An ended message leaves its state only for `queued` (CG410 otherwise).
CREATE OR REPLACE FUNCTION cogo.on_outsider() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_now timestamptz := cogo.now();
  v_was_final boolean := OLD.status IN ('done', 'failed', 'cancelled');
BEGIN
  IF v_was_final AND NEW.status <> 'queued' THEN
    RAISE EXCEPTION 'message % is %: what has ended can only be requeued', NEW.id, OLD.status
      USING ERRCODE = 'CG410';
  ELSIF NEW.status = 'claimed' THEN
    UPDATE public.agent_messages m SET
      fence = nextval('cogo.bus_fence'), claimed_at = v_now, claimed_by = coalesce(NEW.claimed_by, session_user),
      holder_epoch = NULL, deadline_at = NULL, retry_at = NULL, awaits = NULL,
      attempts = greatest(NEW.attempts, OLD.attempts + 1)
    WHERE m.id = NEW.id;
  ELSIF NEW.status = 'queued' THEN
    IF v_was_final THEN PERFORM cogo.check_requeue(NEW); END IF;
    UPDATE public.agent_messages m SET
      fence = 0, seq = nextval('cogo.bus_seq'), claimed_by = NULL, deadline_at = NULL, awaits = NULL,
      retry_at = CASE WHEN NEW.retry_at IS DISTINCT FROM OLD.retry_at THEN NEW.retry_at END
    WHERE m.id = NEW.id;
    IF v_was_final THEN PERFORM cogo.renew(NEW.id, OLD.status, 'by UPDATE'); END IF;
    PERFORM cogo.wake(NEW.service, NEW.role, NEW.shard);
  ELSIF NEW.status = 'waiting' THEN
    UPDATE public.agent_messages m SET fence = 0, deadline_at = NULL WHERE m.id = NEW.id;
  ELSE
    UPDATE public.agent_messages m SET
      fence = 0, deadline_at = NULL, awaits = NULL, done_at = coalesce(NEW.done_at, v_now),
      last_error_at = CASE WHEN NEW.status = 'failed' THEN v_now ELSE NEW.last_error_at END,
      error = CASE WHEN NEW.status = 'cancelled' AND NEW.error IS NOT DISTINCT FROM OLD.error
        THEN 'cancelled: by ' || cogo.actor() ELSE NEW.error END
    WHERE m.id = NEW.id;
    PERFORM cogo.record_ends(ARRAY[NEW.id], coalesce(NEW.claimed_by, cogo.actor()));
    IF NEW.status = 'cancelled' THEN PERFORM cogo.record_cancel(NEW.id, OLD.status, OLD.awaits); END IF;
  END IF;
  RETURN NULL;
END $$;
-- Our own statements always change fence or seq, an outsider's neither, so they never pay for this.
-- AFTER, not BEFORE: a BEFORE row trigger would lock every row a second time. (cogo.cancel leaves both
-- alone on purpose: it is an outsider's UPDATE with a reason.)
CREATE OR REPLACE TRIGGER agent_messages_outsider AFTER UPDATE OF status ON public.agent_messages
  FOR EACH ROW WHEN (
    NEW.fence = OLD.fence AND NEW.seq = OLD.seq AND (NEW.status <> OLD.status
      OR (NEW.status = 'claimed' AND NEW.claimed_by IS DISTINCT FROM OLD.claimed_by)))
  EXECUTE FUNCTION cogo.on_outsider();
