"""What people use instead, on the same spans: the text of each as it stands in the file.

Postgres' full text search, bm25s, the same MiniLM without words, and the ranks of the last two added (RRF).
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import scoring

from cogo import Database
from cogo.knowledge import vectors
from cogo.knowledge.embedding import Embedder

BM25S = "bm25s==0.3.16"
RRF_K, RRF_DEPTH = 60, 300

SPANS = """
SELECT f.path, c.start_line, c.end_line, c.text FROM cogo.kb_repos r
JOIN cogo.kb_files f ON f.repo_id = r.id JOIN cogo.kb_chunks c ON c.file_id = f.id WHERE r.name = %s
ORDER BY f.path, c.ord
"""
FTS_TABLE = """
CREATE TABLE {table} AS SELECT f.path, c.start_line, c.end_line, to_tsvector('{config}', c.text) AS words
FROM cogo.kb_repos r JOIN cogo.kb_files f ON f.repo_id = r.id JOIN cogo.kb_chunks c ON c.file_id = f.id
WHERE r.name = %s
"""
# Any of the words: with all of them it finds next to nothing. 1: divided by the logarithm of the length.
FTS_FIND = """
SELECT path, start_line, end_line FROM {table},
  (SELECT replace(plainto_tsquery('{config}', %s)::text, ' & ', ' | ')::tsquery AS q) asked
WHERE words @@ q ORDER BY ts_rank(words, q, 1) DESC LIMIT 10
"""


async def full_text(db: Database, repo: str, config: str) -> scoring.Find:
    """Postgres' own, with a GIN index."""
    names = {"table": f"public.fts_{config}_{repo.replace('-', '_')}", "config": config}
    await db.execute(FTS_TABLE.format(**names), (repo,))
    await db.execute("CREATE INDEX ON {table} USING gin (words)".format(**names))
    await db.execute("ANALYZE {table}".format(**names))

    async def find(text: str) -> list[scoring.Span]:
        rows = await db.fetch(FTS_FIND.format(**names), (text,))
        return [(row["path"], row["start_line"], row["end_line"]) for row in rows]

    return find


def install(folder: Path) -> Any:
    """bm25s in a folder of its own; numpy it takes from here. None without a network."""
    command = ["pip", "install", "--quiet", "--no-deps", "--target", str(folder), BM25S]
    ran = subprocess.run([sys.executable, "-m", *command], check=False, capture_output=True, text=True)
    if ran.returncode:
        ran = subprocess.run([sys.executable, "-m", "uv", *command], check=False)
    if ran.returncode:
        return None
    sys.path.append(str(folder))
    return importlib.import_module("bm25s")


class Ranked:
    """Spans ranked by bm25s, by MiniLM, or by both."""

    def __init__(self, spans: Sequence[dict[str, Any]], bm25s: Any) -> None:
        self._spans = [(s["path"], s["start_line"], s["end_line"]) for s in spans]
        self._texts = [s["text"] for s in spans]
        self._bm25s, self._model, self._vectors = bm25s, None, None
        if bm25s is not None:
            self._model = bm25s.BM25()
            self._model.index(bm25s.tokenize(self._texts, show_progress=False), show_progress=False)

    @property
    def has_words(self) -> bool:
        return self._model is not None

    async def embed(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._vectors = await embedder.embed([text[: vectors.TEXT_MAX] for text in self._texts])

    def _words(self, text: str, k: int) -> list[int]:
        asked = self._bm25s.tokenize([text], show_progress=False)
        places, _ = self._model.retrieve(asked, k=min(k, len(self._spans)), show_progress=False)
        return places[0].tolist()

    async def _meaning(self, text: str, k: int) -> list[int]:
        (question,) = await self._embedder.embed([text])
        return (-(self._vectors @ question)).argsort()[:k].tolist()

    async def by_words(self, text: str) -> list[scoring.Span]:
        places = await anyio.to_thread.run_sync(self._words, text, scoring.TOP)
        return [self._spans[place] for place in places]

    async def by_meaning(self, text: str) -> list[scoring.Span]:
        return [self._spans[place] for place in await self._meaning(text, scoring.TOP)]

    async def by_ranks(self, text: str) -> list[scoring.Span]:
        total: dict[int, float] = {}
        for places in (self._words(text, RRF_DEPTH), await self._meaning(text, RRF_DEPTH)):
            for rank, place in enumerate(places, 1):
                total[place] = total.get(place, 0.0) + 1 / (RRF_K + rank)
        best = sorted(total, key=lambda place: -total[place])[: scoring.TOP]
        return [self._spans[place] for place in best]
