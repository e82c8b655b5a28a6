"""Role kg-builder, lane kg/build: the graph of a repository's code, and a report about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cogo import Context, Role, hookimpl
from cogo.knowledge import graph, index, scan


class KgBuilderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[plugins.kg-builder]`."""

    roots: tuple[str, ...] = ()
    """As in `[plugins.rag-embed]`: where requests from outside may lead."""


class Build(msgspec.Struct, frozen=True):
    """A folder that the graph is to show as it is now; with `paths`, only these files of it have changed."""

    root: str
    repo: str | None = None
    paths: list[str] | None = None


async def build(task: Build, ctx: Context) -> dict[str, Any]:
    """Build what changed in one transaction; report on the whole. Raises TaskInvalid, Forbidden."""
    settings = ctx.settings or KgBuilderSettings()
    root = scan.open_root(task.root, within=settings.roots if ctx.assignment else None)
    name = task.repo or root.name
    repo = await index.open_repo(ctx.db, ctx.key.tenant, name, str(root), move=True)
    built = await graph.build(ctx.db, repo, root, task.paths)
    report = await graph.report(ctx.db, repo.id)
    return {
        "repo": name, "files": report.files, "nodes": sum(report.nodes.values()),
        "edges": sum(report.edges.values()), "changed": built.changed, "removed": built.removed,
        "notes": built.notes, "report": summary(report),
    }  # fmt: skip


def summary(found: graph.Report) -> dict[str, Any]:
    """What fits into a result; `/api/kg/report` has all of it."""
    return {
        "nodes": found.nodes, "edges": found.edges, "unresolved": found.unresolved, "cycles": len(found.cycles),
        "layers": len(found.layers), "most_imported": found.most_imported,
    }  # fmt: skip


@hookimpl
def cogo_settings() -> type[KgBuilderSettings]:
    """`[plugins.kg-builder]`."""
    return KgBuilderSettings


@hookimpl
def cogo_role() -> Role:
    """Consumes kg/build."""
    return Role("kg", "build", handle=build, concurrency=2, events="kg", intents=("graph",),
                timeout_s=900)  # fmt: skip


@hookimpl
def cogo_routes() -> Sequence[Any]:
    """/api/kg/*"""
    from .routes import ROUTES

    return ROUTES
