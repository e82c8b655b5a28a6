-- Other names in the order of the file: of two star imports the later one wins.
ALTER TABLE cogo.kg_aliases ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY;
