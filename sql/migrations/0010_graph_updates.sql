-- An update of the graph reads only what it needs.

-- Other names in the order of the file: of two star imports the later one wins.
ALTER TABLE cogo.kg_aliases ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY;
-- The words of all names that the file refers to, each between line feeds. A word that changed its meaning is looked
-- for here first: a few megabytes for a large repository, where its edges are hundreds of thousands.
ALTER TABLE cogo.kg_files ADD COLUMN words text NOT NULL DEFAULT E'\n';
