"""/api/kg/*: the graph of a repository's code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, get
from litestar.params import FromQuery, QueryParameter

from cogo import errors
from cogo.knowledge import graph, search
from cogo.web import db_of, principal_of, viewer

Repo = Annotated[str, QueryParameter(min_length=1, max_length=200, description="as it was indexed")]
Name = Annotated[
    str,
    QueryParameter(
        min_length=1,
        max_length=500,
        description="a module, class or function, the end of its name, or a path",
    ),
]
OneTenant = Annotated[str | None, QueryParameter(max_length=63, description="if the name is used by several")]
Guesses = Annotated[
    bool, QueryParameter(description="also calls of a method of that name on a value of unknown type")
]
Kind = FromQuery[Literal["calls", "references", "inherits", "tests", "documents"] | None]
Format = FromQuery[Literal["json", "markdown", "svg"]]
Depth = Annotated[int, QueryParameter(ge=1, le=10, description="edges from it")]


async def _repo_id(request: Request[Any, Any, Any], repo: str, tenant: str | None) -> int:
    """The repository of that name that this principal may read. Raises NotFound, Invalid."""
    ids = await search.repo_ids(db_of(request), principal_of(request).narrowed(tenant), repo)
    if len(ids) > 1:
        raise errors.Invalid(f"several tenants have a repository {repo!r}: say which - at `$.tenant`")
    return ids[0]


def _listed(repo: str, name: str, verb: str, rows: graph.Rows) -> dict[str, Any]:
    """`truncated`: as many rows as an answer holds; there may be more."""
    return {"repo": repo, "name": name, verb: rows, "truncated": len(rows) >= graph.LIMIT}


@get("/api/kg/importers", guards=[viewer])
async def importers(
    request: Request[Any, Any, Any], repo: Repo, name: Name, tenant: OneTenant = None
) -> dict[str, Any]:
    """Which modules import its module, and where the import stands."""
    id = await _repo_id(request, repo, tenant)
    return _listed(repo, name, "importers", await graph.importers(db_of(request), id, name))


@get("/api/kg/imports", guards=[viewer])
async def imports(
    request: Request[Any, Any, Any], repo: Repo, name: Name, tenant: OneTenant = None
) -> dict[str, Any]:
    """Which modules of the repository its module imports, and where."""
    id = await _repo_id(request, repo, tenant)
    return _listed(repo, name, "imports", await graph.imports(db_of(request), id, name))


@get("/api/kg/callers", guards=[viewer])
async def callers(
    request: Request[Any, Any, Any],
    repo: Repo,
    name: Name,
    tenant: OneTenant = None,
    guesses: Guesses = False,
) -> dict[str, Any]:
    """Who calls it, or a method of it, and where. Each has its confidence."""
    id = await _repo_id(request, repo, tenant)
    rows = await graph.callers(db_of(request), id, name, guesses=guesses)
    return _listed(repo, name, "callers", rows)


@get("/api/kg/callees", guards=[viewer])
async def callees(
    request: Request[Any, Any, Any], repo: Repo, name: Name, tenant: OneTenant = None
) -> dict[str, Any]:
    """What it calls in the repository, and where."""
    id = await _repo_id(request, repo, tenant)
    return _listed(repo, name, "callees", await graph.callees(db_of(request), id, name))


@get("/api/kg/uses", guards=[viewer])
async def uses(
    request: Request[Any, Any, Any], repo: Repo, name: Name,
    kind: Kind = None, tenant: OneTenant = None,
) -> dict[str, Any]:  # fmt: skip
    """Who calls, references or inherits it; or edges of one kind, such as the tests of it, or the documents."""
    id = await _repo_id(request, repo, tenant)
    rows = await graph.uses(db_of(request), id, name, (kind,) if kind else graph.USES)
    return _listed(repo, name, "uses", rows)


@get("/api/kg/impact", guards=[viewer])
async def impact(
    request: Request[Any, Any, Any], repo: Repo, name: Name, tenant: OneTenant = None, depth: Depth = 3
) -> dict[str, Any]:
    """What may break when it changes, nearest first."""
    id = await _repo_id(request, repo, tenant)
    return _listed(repo, name, "impact", await graph.impact(db_of(request), id, name, depth))


@get("/api/kg/path", guards=[viewer])
async def path(
    request: Request[Any, Any, Any], repo: Repo, name: Name, to: Name, tenant: OneTenant = None
) -> dict[str, Any]:
    """A shortest way from `name` to `to`, of imports or of calls; empty when there is none."""
    id = await _repo_id(request, repo, tenant)
    return {"repo": repo, "name": name, "to": to, "path": await graph.path(db_of(request), id, name, to)}


@get("/api/kg/report", guards=[viewer])
async def report(
    request: Request[Any, Any, Any], repo: Repo, tenant: OneTenant = None,
    format: Format = "json",
) -> Response[Any]:  # fmt: skip
    """Sizes, cycles, layers, what is imported most and what nothing names; as a page, or a picture of the packages."""
    id = await _repo_id(request, repo, tenant)
    db = db_of(request)
    if format == "svg":
        return Response(await graph.picture(db, id, repo), media_type="image/svg+xml")
    found = await graph.report(db, id)
    if format == "markdown":
        return Response(graph.markdown(repo, found), media_type="text/markdown; charset=utf-8")
    return Response({"repo": repo, **msgspec.to_builtins(found)})


ROUTES = (importers, imports, callers, callees, uses, impact, path, report)
