"""Role rag-embed, lane rag/embed: repositories and rows of tables into the index.

One message scans a folder and sends itself messages for what changed, in batches; those leave with the
scan's own finish. A batch that is run twice, or by two workers at once, ends the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from cogo import Context, Role, errors, hookimpl
from cogo.knowledge import index, scan

LANE = "rag/embed/0"
BATCH = 40
"""Files per message: about a second of work."""


class RagEmbedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[plugins.rag-embed]`."""

    roots: tuple[str, ...] = ()
    """Folders below which requests from outside (those with an assignment) may have folders indexed.

    Messages that are put on this lane directly, which takes the database's service role, may name any."""


class Embed(msgspec.Struct, frozen=True):
    """A folder to scan (`root`), some files of it (`paths`), or rows of a table that is followed."""

    root: str | None = None
    repo: str | None = None
    """The name to index under; the folder's own by default."""
    paths: list[str] | None = None
    table: str | None = None
    ids: list[str] = []


async def embed(task: Embed, ctx: Context) -> dict[str, Any] | index.Report:
    """Scan, or index what the message names. Raises TaskInvalid, Forbidden."""
    if (task.root is None) == (task.table is None):
        raise errors.TaskInvalid("give either a root or a table - at `$.root`")
    if task.table is not None:
        return await index.index_rows(ctx.db, ctx.key.tenant, task.table, task.ids)
    settings = ctx.settings or RagEmbedSettings()
    root = scan.open_root(task.root or "", within=settings.roots if ctx.assignment else None)
    name = task.repo or root.name
    if task.paths is None:
        return await scan_folder(ctx, root, name)
    repo = await index.open_repo(ctx.db, ctx.key.tenant, name, str(root))
    return await index.index_paths(ctx.db, repo, root, task.paths)


async def scan_folder(ctx: Context, root: Path, name: str) -> dict[str, Any]:
    """Compare the folder with the index and send a message for each batch of what changed."""
    repo = await index.open_repo(ctx.db, ctx.key.tenant, name, str(root), move=True)
    plan = await index.plan(ctx.db, repo, root)
    paths = [*plan.changed, *plan.gone]
    batches = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
    for batch in batches:
        await ctx.bus.enqueue(LANE, {"root": str(root), "repo": name, "paths": batch})
    return {
        "repo": name, "files": plan.files, "messages": len(batches), "changed": len(plan.changed),
        "removed": len(plan.gone), "skipped": plan.skipped,
    }  # fmt: skip


@hookimpl
def cogo_settings() -> type[RagEmbedSettings]:
    """`[plugins.rag-embed]`."""
    return RagEmbedSettings


@hookimpl
def cogo_role() -> Role:
    """Consumes rag/embed; two at a time, since cutting and weighing take CPU."""
    return Role("rag", "embed", handle=embed, concurrency=2, events="embed",
                intents=("index", "embed"), timeout_s=900)  # fmt: skip
