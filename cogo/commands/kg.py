"""The code graph from the command line. It reads the database directly; no role has to run."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from cogo.commands.base import Body, command, emit, note, say, table, tenant_option

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cogo import Database


@click.group()
def kg() -> None:
    """Look at the code graph: importers, imports, path, report."""


def graph_options(body: Body) -> Body:
    """`--repo` and `--tenant`: which graph."""
    repo = click.option(
        "--repo", help="The repository, as `cogo index` named it; needed when there are several."
    )
    return repo(tenant_option(body))


@asynccontextmanager
async def opened(repo: str | None, tenant: str) -> AsyncIterator[tuple[Database, int]]:
    """The database and the id of the repository that is meant. Raises UsageError when several could be."""
    import cogo
    from cogo.core.errors import NotFound
    from cogo.knowledge.search import repo_ids, repos

    async with cogo.connect() as bus:
        ids = await repo_ids(bus.db, tenant, repo)
        if not ids:
            raise NotFound(
                f"nothing is indexed for the tenant {tenant!r}", hint="`cogo index PATH` indexes it."
            )
        if len(ids) > 1:
            names = ", ".join(sorted(str(row["repo"]) for row in await repos(bus.db, [tenant])))
            raise click.UsageError(f"There are several repositories, name one with --repo: {names}")
        yield bus.db, ids[0]


@command(group=kg, example="cogo kg importers cogo.core.bus")
@click.argument("name")
@graph_options
async def importers(name: str, *, repo: str | None, tenant: str, as_json: bool) -> int:
    """Who imports a module.

    NAME is a module (`cogo.core.bus`), its path, or something that it defines. Shows the lines on which
    the imports stand.
    """
    from cogo.knowledge import graph

    async with opened(repo, tenant) as (db, repo_id):
        rows = await graph.importers(db, repo_id, name)
    return show_edges(rows, f"nothing imports {name}", as_json=as_json)


@command(group=kg, example="cogo kg imports cogo.cli --json")
@click.argument("name")
@graph_options
async def imports(name: str, *, repo: str | None, tenant: str, as_json: bool) -> int:
    """What a module imports of its own repository."""
    from cogo.knowledge import graph

    async with opened(repo, tenant) as (db, repo_id):
        rows = await graph.imports(db, repo_id, name)
    return show_edges(rows, f"{name} imports nothing of this repository", as_json=as_json)


def show_edges(rows: list[dict[str, Any]], nothing: str, *, as_json: bool) -> int:
    if as_json:
        emit(rows)
    elif rows:
        table([(row["name"], f"{row['path']}:{row['line']}") for row in rows], head=("module", "import"))
    else:
        note(nothing)
    return 0


@command(group=kg, example="cogo kg path cogo.cli cogo.core.errors")
@click.argument("start")
@click.argument("end")
@graph_options
async def path(start: str, end: str, *, repo: str | None, tenant: str, as_json: bool) -> int:
    """A shortest chain of imports from START to END; exit code 1 when there is none."""
    from cogo.knowledge import graph

    async with opened(repo, tenant) as (db, repo_id):
        chain = await graph.path(db, repo_id, start, end)
    if as_json:
        emit(chain)
    elif chain:
        say(" -> ".join(chain))
    else:
        note(f"{start} does not depend on {end}")
    return 0 if chain else 1


@command(group=kg, example="cogo kg report --repo project")
@graph_options
async def report(*, repo: str | None, tenant: str, as_json: bool) -> None:
    """Sizes, cycles and the most imported modules."""
    from cogo.knowledge import graph

    async with opened(repo, tenant) as (db, repo_id):
        found = await graph.report(db, repo_id)
    if as_json:
        emit(found)
        return
    sizes = [f"{n} {kind}" for kind, n in (found.nodes | found.edges).items()]
    say(f"{found.files} files: {', '.join(sizes)}")
    if found.most_imported:
        say()
        table(found.most_imported, head=("most imported", "by"))
    say()
    for group in found.cycles:
        say("cycle: " + ", ".join(group))
    if not found.cycles:
        say("no import cycles")
