"""/api/knowledge/*: ranked spans, and what is indexed."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import JSONBody

from cogo import errors
from cogo.knowledge import search, vectors
from cogo.web import Tenant, db_of, principal_of, tenants_of, unless_over, viewer

QUERY_MAX = 8_000
HITS_MAX = 10_000
"""Hits of one answer: about 15 MB."""


class SearchRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Questions or keywords, up to 1,000, each answered by its best `k` spans."""

    queries: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=QUERY_MAX)]],
        msgspec.Meta(min_length=1, max_length=search.BATCH_MAX),
    ]
    k: Annotated[int, msgspec.Meta(ge=1, le=search.K_MAX)] = 10
    scope: search.Scope = search.Scope()
    tenant: Tenant | None = None
    explain: bool = False


@post("/api/knowledge/search", guards=[viewer], status_code=200)
async def search_route(request: Request[Any, Any, Any], data: JSONBody[SearchRequest]) -> dict[str, Any]:
    """Per query its hits, best first; lines are 1-based and inclusive. `explain` adds how they came about.

    `vectors` says whether they had a say, and why not.
    """
    if len(data.queries) * data.k > HITS_MAX:
        raise errors.Invalid(f"queries times k is more than {HITS_MAX:,} hits: send them in several requests")
    tenants = principal_of(request).narrowed(data.tenant)
    work = partial(search.search, db_of(request), tenants, data.queries, data.k, data.scope)
    found = await unless_over(request, work) or []  # a client that left gets nothing
    return {
        "results": [
            {"query": query, "hits": [_shown(hit, explain=data.explain) for hit in hits]}
            for query, hits in zip(data.queries, found, strict=False)
        ],
        "vectors": await vectors.account(
            db_of(request), used=any(hit.by_vectors for hits in found for hit in hits)
        ),
    }


def _shown(hit: search.Hit, *, explain: bool) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(hit)
    if not explain:
        del shown["coverage"], shown["strength"], shown["by_vectors"], shown["certainty"]
    return shown


@get("/api/knowledge/repos", guards=[viewer])
async def repos_route(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """What is indexed: repositories with their files, spans and modules, counted now."""
    return {"repos": await search.repos(db_of(request), tenants_of(request))}


ROUTES = (search_route, repos_route)
