"""/api/kg/*: the graph of a repository's code."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, get
from litestar.params import QueryParameter

from cogo import errors
from cogo.knowledge import graph, search
from cogo.web import db_of, principal_of, viewer

Repo = Annotated[str, QueryParameter(min_length=1, max_length=200, description="as it was indexed")]
Name = Annotated[
    str, QueryParameter(min_length=1, max_length=500, description="a module, a path or a symbol")
]
OneTenant = Annotated[str | None, QueryParameter(max_length=63, description="if the name is used by several")]


async def _repo_id(request: Request[Any, Any, Any], repo: str, tenant: str | None) -> int:
    """The repository of that name that this principal may read. Raises NotFound, Invalid."""
    ids = await search.repo_ids(db_of(request), principal_of(request).narrowed(tenant), repo)
    if len(ids) > 1:
        raise errors.Invalid(f"several tenants have a repository {repo!r}: say which - at `$.tenant`")
    return ids[0]


@get("/api/kg/importers", guards=[viewer])
async def importers(
    request: Request[Any, Any, Any], repo: Repo, name: Name, tenant: OneTenant = None
) -> dict[str, Any]:
    """Which modules import it, and where the import stands."""
    id = await _repo_id(request, repo, tenant)
    return {"repo": repo, "name": name, "importers": await graph.importers(db_of(request), id, name)}


@get("/api/kg/imports", guards=[viewer])
async def imports(
    request: Request[Any, Any, Any], repo: Repo, name: Name, tenant: OneTenant = None
) -> dict[str, Any]:
    """Which modules of the repository it imports, and where."""
    id = await _repo_id(request, repo, tenant)
    return {"repo": repo, "name": name, "imports": await graph.imports(db_of(request), id, name)}


@get("/api/kg/path", guards=[viewer])
async def path(
    request: Request[Any, Any, Any], repo: Repo, name: Name, to: Name, tenant: OneTenant = None
) -> dict[str, Any]:
    """A shortest chain of imports from `name` to `to`; empty when there is none."""
    id = await _repo_id(request, repo, tenant)
    return {"repo": repo, "name": name, "to": to, "path": await graph.path(db_of(request), id, name, to)}


@get("/api/kg/report", guards=[viewer])
async def report(request: Request[Any, Any, Any], repo: Repo, tenant: OneTenant = None) -> dict[str, Any]:
    """Sizes, cycles and the most imported modules."""
    id = await _repo_id(request, repo, tenant)
    return {"repo": repo, **msgspec.to_builtins(await graph.report(db_of(request), id))}


ROUTES = (importers, imports, path, report)
