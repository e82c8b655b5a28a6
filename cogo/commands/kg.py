"""The code graph from the command line. It reads the database directly; no role has to run."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from cogo.commands.base import Body, command, emit, note, say, table, tenant_option

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cogo import Database
    from cogo.knowledge import graph

CYCLE_SHOWN = 12
UNUSED_SHOWN = 5


@click.group()
def kg() -> None:
    """Look at the code graph: who imports, who calls, what breaks, reports and exports."""


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


@command(group=kg, example="cogo kg callers Bus.enqueue\ncogo kg callers enqueue_many --guesses")
@click.argument("name")
@click.option(
    "--guesses", is_flag=True, help="Also calls of a method of that name on a value of unknown type."
)
@graph_options
async def callers(name: str, *, guesses: bool, repo: str | None, tenant: str, as_json: bool) -> int:
    """Who calls a function, a class, or a method of it.

    NAME may be the end of a name, if one thing alone is called so. Each call has its confidence: `bound` is what
    names say, `guess` (only with --guesses) is a method that nothing else in the repository has.
    """
    from cogo.knowledge import graph

    async with opened(repo, tenant) as (db, repo_id):
        rows = await graph.callers(db, repo_id, name, guesses=guesses)
    return show_edges(rows, f"nothing is known to call {name}", as_json=as_json)


@command(group=kg, example="cogo kg callees Consumer.run")
@click.argument("name")
@graph_options
async def callees(name: str, *, repo: str | None, tenant: str, as_json: bool) -> int:
    """What a function, class or module calls in its own repository."""
    from cogo.knowledge import graph

    async with opened(repo, tenant) as (db, repo_id):
        rows = await graph.callees(db, repo_id, name)
    return show_edges(rows, f"{name} calls nothing of this repository by a name", as_json=as_json)


@command(group=kg, example="cogo kg uses Retry\ncogo kg uses Retry --kind tests")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["calls", "references", "inherits", "tests", "documents"]),
    help="Only these edges.",
)
@graph_options
async def uses(name: str, *, kind: str | None, repo: str | None, tenant: str, as_json: bool) -> int:
    """Who calls, references or inherits something; with --kind, its tests, or the documents that name it."""
    from cogo.knowledge import graph

    async with opened(repo, tenant) as (db, repo_id):
        rows = await graph.uses(db, repo_id, name, (kind,) if kind else graph.USES)
    return show_edges(rows, f"nothing is known to use {name}", as_json=as_json)


@command(group=kg, example="cogo kg impact Bus.finish --depth 2")
@click.argument("name")
@click.option("--depth", type=click.IntRange(1, 10), default=3, show_default=True, help="Edges from it.")
@graph_options
async def impact(name: str, *, depth: int, repo: str | None, tenant: str, as_json: bool) -> int:
    """What may break when something changes: all that reaches it, nearest first."""
    from cogo.knowledge import graph

    async with opened(repo, tenant) as (db, repo_id):
        rows = await graph.impact(db, repo_id, name, depth)
    note_cut(rows)
    if as_json:
        emit(rows)
    elif rows:
        shown = [(str(row["depth"]), row["name"], f"{row['path']}:{row['line']}") for row in rows]
        table(shown, head=("steps", "name", "place"))
    else:
        note(f"nothing is known to need {name}")
    return 0


def note_cut(rows: list[dict[str, Any]]) -> None:
    from cogo.knowledge import graph

    if len(rows) >= graph.LIMIT:
        note(f"These are the first {graph.LIMIT:,}; there may be more.")


def show_edges(rows: list[dict[str, Any]], nothing: str, *, as_json: bool) -> int:
    note_cut(rows)
    if as_json:
        emit(rows)
    elif rows:
        shown = [(row["name"], f"{row['path']}:{row['line']}", row["confidence"]) for row in rows]
        table(shown, head=("name", "place", "confidence"))
    else:
        note(nothing)
    return 0


@command(group=kg, example="cogo kg path cogo.cli cogo.core.errors\ncogo kg path Consumer.run Bus.finish")
@click.argument("start")
@click.argument("end")
@graph_options
async def path(start: str, end: str, *, repo: str | None, tenant: str, as_json: bool) -> int:
    """A shortest way from START to END; exit code 1 when there is none.

    Between modules it is made of imports, between functions of calls.
    """
    from cogo.knowledge import graph

    async with opened(repo, tenant) as (db, repo_id):
        chain = await graph.path(db, repo_id, start, end)
    if as_json:
        emit(chain)
    elif chain:
        say(" -> ".join(row["name"] for row in chain))
    else:
        note(f"no way leads from {start} to {end}")
    return 0 if chain else 1


@command(group=kg, example="cogo kg report\ncogo kg report --format svg > packages.svg")
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown", "svg"]), default="text", show_default=True,
    help="`svg` is a picture of the packages.",
)  # fmt: skip
@graph_options
async def report(*, form: str, repo: str | None, tenant: str, as_json: bool) -> None:
    """Sizes, cycles, layers, what is imported most and what nothing names."""
    from cogo.knowledge import graph

    async with opened(repo, tenant) as (db, repo_id):
        called = repo or await name_of(db, repo_id)
        if form == "svg":
            click.echo(await graph.picture(db, repo_id, called), nl=False)
            return
        found = await graph.report(db, repo_id)
    if as_json:
        emit(found)
    elif form == "markdown":
        click.echo(graph.markdown(called, found), nl=False)
    else:
        show_report(found)


async def name_of(db: Database, repo_id: int) -> str:
    return str(await db.fetch_value("SELECT name FROM cogo.kb_repos WHERE id = %s", (repo_id,)))


def show_report(found: graph.Report) -> None:
    """The report's head; `--format markdown` and `--json` have all of it."""
    sizes = [f"{n} {kind}" for kind, n in (found.nodes | found.edges).items()]
    say(f"{found.files} files: {', '.join(sizes)}")
    if found.most_imported:
        say()
        table([(name, str(n)) for name, n in found.most_imported], head=("most imported", "by"))
    say()
    for group in found.cycles:
        more = f" and {len(group) - CYCLE_SHOWN} more" if len(group) > CYCLE_SHOWN else ""
        say("cycle: " + ", ".join(group[:CYCLE_SHOWN]) + more)
    if not found.cycles:
        say("no import cycles")
    say(f"{len(found.layers)} layers, {len(found.dead_ends)} modules that none imports")
    for row in found.unused[:UNUSED_SHOWN]:
        say(f"named by nothing: {row['name']} {row['path']}:{row['line']}")


@command(group=kg, example="cogo kg export > graph.graphml\ncogo kg export --format cypher | cypher-shell")
@click.option(
    "--format",
    "form",
    type=click.Choice(["graphml", "cypher"]),
    default="graphml",
    show_default=True,
    help="What to write.",
)
@click.option("--neo4j", "uri", metavar="URI", help="Put it into this Neo4j instead (bolt://…).")
@click.option(
    "--user", default="neo4j", show_default=True, help="Of the Neo4j; its password is in NEO4J_PASSWORD."
)
@graph_options
async def export(
    *, form: str, uri: str | None, user: str, repo: str | None, tenant: str, as_json: bool
) -> None:
    """The graph for other tools, on stdout or into a Neo4j."""
    import os

    from cogo.knowledge.graph import export as exports

    async with opened(repo, tenant) as (db, repo_id):
        called = repo or await name_of(db, repo_id)
        if uri is not None:
            password = os.environ.get("NEO4J_PASSWORD", "")
            counts = await exports.to_neo4j(db, repo_id, called, uri, user, password)
            if as_json:
                emit(counts)
            else:
                say(f"{counts['nodes']} nodes and {counts['edges']} edges of {called} are in {uri}")
            return
        pieces = exports.graphml(db, repo_id) if form == "graphml" else exports.cypher(db, repo_id, called)
        async for piece in pieces:
            click.echo(piece, nl=False)
