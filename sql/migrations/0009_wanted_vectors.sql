-- Which model's vectors are wanted is said once, here, and not by each process; and rows of code say their language.

ALTER TABLE cogo.kb_models ADD COLUMN wanted_at timestamptz;  -- since when the processes shall make its vectors
UPDATE cogo.kb_models SET wanted_at = created_at WHERE serving;
CREATE UNIQUE INDEX kb_models_wanted ON cogo.kb_models ((true)) WHERE wanted_at IS NOT NULL;

ALTER TABLE cogo.kb_sources ADD COLUMN path_column text, ADD COLUMN lang_column text;
