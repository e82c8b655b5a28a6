-- The same key and body of a `decide` is the same decision; and a decision is executed once.

ALTER TABLE cogo.decisions
  ADD COLUMN idempotency_key text,
  ADD COLUMN request_digest  text;
CREATE UNIQUE INDEX decisions_key ON cogo.decisions (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;
