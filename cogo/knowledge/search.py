"""Ranked spans for questions: by words (BM25) and by vectors, in one statement per question.

Where nothing is embedded, or the model can't be used here, words alone decide; a hit says by its `scores`
what it was found by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cogo import errors

from . import queries, tokens, vectors

if TYPE_CHECKING:
    from cogo import Database

K_MAX = 1_000
BATCH_MAX = 1_000
TERMS_MAX = 64
"""Distinct words of a question that count; the first ones."""
BUDGET = 2_500
"""Spans that the words which choose candidates may stand in together: what bounds the time."""
CANDIDATES = 300
MODULE = 0.7
"""What the score by words and vectors counts for the head of a module: imports and constants name much and say little."""
FILE = 0.3
"""How much of the best score in its file a section gets, beside its own: pages are about one thing. Measured (docs/adr/0011)."""


class Scope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to search. `paths` are files or folders, `kinds` as in `Chunk.kind`; None is everywhere."""

    repo: str | None = None
    paths: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None


class Scores(msgspec.Struct, frozen=True):
    """What a hit's score is made of."""

    lexical: float
    """BM25."""
    dense: float | None = None
    """Cosine of the angle between the question's vector and the span's; None where it is not among the nearest."""


class Hit(msgspec.Struct, frozen=True):
    """A span. Lines are 1-based and inclusive; `text` is exactly these lines."""

    path: str
    start: int
    end: int
    qualname: str
    score: float
    scores: Scores
    text: str
    repo: str
    kind: str
    lang: str
    coverage: float
    """Share of the question's weight (idf) whose words stand in this span; unknown words weigh most."""
    strength: float
    """The score for each unit of the question's weight: how much the span is about these words."""
    by_vectors: bool = False
    """Whether vectors had a say in the score, which then is from 0 to 1."""
    certainty: float = 0.0
    """How sure it is by the vectors alone that the span is about the question, from 0 to 1."""


Tenants = str | Sequence[str] | None
"""One tenant, several, or None for all of them: what the caller may read."""


async def search(
    db: Database, tenant: Tenants, texts: Sequence[str], k: int = 10, scope: Scope | None = None
) -> list[list[Hit]]:
    """The best `k` spans of the tenant for each text, best first; none for a text without words.

    Raises Invalid for more than 1,000 texts or an impossible k, NotFound for an unknown repository.
    """
    if len(texts) > BATCH_MAX or not 1 <= k <= K_MAX:
        raise errors.Invalid(f"at most {BATCH_MAX} queries, and k from 1 to {K_MAX} - at `$.queries`")
    scope = scope or Scope()
    repos = await repo_ids(db, tenant, scope.repo)
    narrow = (queries.NARROW_PATHS if scope.paths is not None else "") + (
        queries.NARROW_KINDS if scope.kinds is not None else ""
    )
    near = await vectors.near(db, repos, texts, scope)
    if near is None:
        statement = queries.SEARCH.format(narrow=narrow)
    else:
        statement = queries.SEARCH_BOTH.format(narrow=narrow, near=near.sql, table=near.table.name)
    found: list[list[Hit]] = []
    async with db.transaction() as conn:
        if near is not None and near.table.pgvector is not None:
            await conn.execute(queries.NEAR_SETTINGS, (str(vectors.NEAREST), str(vectors.MAX_SCANNED)))
        for place, text in enumerate(texts):
            params = _params(text, k, scope, repos)
            if not params["terms"]:
                found.append([])
                continue
            if near is not None:
                params |= {"module": MODULE, "file": FILE, **near.params(place)}
            rows = await (await conn.execute(statement, params)).fetchall()
            found.append([_hit(row, near) for row in rows])
    return found


async def repo_ids(db: Database, tenant: Tenants, repo: str | None) -> list[int]:
    """Ids of the tenant's repositories, or of the one of that name. Raises NotFound when it isn't there."""
    tenants = [tenant] if isinstance(tenant, str) else None if tenant is None else list(tenant)
    rows = await db.fetch(queries.REPO_IDS, {"tenants": tenants, "repo": repo})
    if repo is not None and not rows:
        raise errors.NotFound(
            f"nothing is indexed under the name {repo!r}", hint="`cogo index PATH` indexes it."
        )
    return [row["id"] for row in rows]


async def repos(db: Database, tenants: Sequence[str] | None) -> list[dict[str, Any]]:
    """The indexed repositories of these tenants (None: all), with their sizes counted from the rows."""
    return await db.fetch(queries.REPOS, {"tenants": None if tenants is None else list(tenants)})


async def idf(db: Database, repos: Sequence[int], terms: Sequence[str]) -> dict[str, float]:
    """How rare each term is in these repositories; a term that isn't there weighs most."""
    rows = await db.fetch(queries.IDF, {"repos": list(repos), "terms": list(terms)})
    return {row["term"]: row["idf"] for row in rows}


def _params(text: str, k: int, scope: Scope, repos: list[int]) -> dict[str, Any]:
    counts = Counter(tokens.terms(text))
    terms = list(counts)[:TERMS_MAX]
    return {
        "terms": terms, "counts": [float(counts[term]) for term in terms], "repos": repos, "k": k,
        "budget": BUDGET, "candidates": max(CANDIDATES, k),
        "paths": None if scope.paths is None else list(scope.paths),
        "kinds": None if scope.kinds is None else list(scope.kinds),
    }  # fmt: skip


def _hit(row: Mapping[str, Any], near: vectors.Near | None) -> Hit:
    score = round(row["score"], 4)
    if near is None:
        scores, certainty = Scores(score), 0.0
    else:
        likeness = row["likeness"]
        scores = Scores(round(row["words"], 4), None if likeness is None else round(likeness, 4))
        certainty = 0.0 if likeness is None else vectors.certainty(near.table.model, likeness)
    return Hit(
        path=row["path"], start=row["start"], end=row["end"], qualname=row["qualname"], score=score, scores=scores,
        text=row["text"], repo=row["repo"], kind=row["kind"], lang=row["lang"],
        coverage=round(min(row["mass"], 1.0), 4), strength=round(row["strength"], 4),
        by_vectors=near is not None, certainty=certainty,
    )  # fmt: skip
