-- Retention goes by when an outcome was written down: `at` is the caller's clock in simulations, which may begin at 0.

ALTER TABLE cogo.outcomes ADD COLUMN noted_at timestamptz NOT NULL DEFAULT now();
