"""Role rag-embed, lane rag/embed: repositories and rows of tables into the index.

One message scans a folder and sends itself messages for what changed, in batches; those leave with the
scan's own finish. A batch that is run twice, or by two workers at once, ends the same. Words come first: a
batch that is indexed can be found, and sends a message of lower priority for its vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import msgspec

from cogo import Context, Retry, Role, Runtime, errors, hookimpl
from cogo.knowledge import index, scan, search, vectors
from cogo.knowledge.embedding import Model, local

LANE = "rag/embed/0"
BATCH = 40
"""Files per message: about a second of work."""
TURN_S = 2.0
"""Of vectors per message: then what is to be indexed comes first, and the rest of them in a message that follows."""


class RagEmbedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[plugins.rag-embed]`."""

    roots: tuple[str, ...] = ()
    """Folders below which requests from outside (those with an assignment) may have folders indexed.

    Messages that are put on this lane directly, which takes the database's service role, may name any."""
    embedder: Literal["auto", "minilm", "none"] | Model = "auto"
    """What makes the vectors. `auto`: minilm if `cogo models install` has put it here, else none."""


class Embed(msgspec.Struct, frozen=True):
    """A folder to scan (`root`), some files of it (`paths`), or rows of a table that is followed.

    With `vectors`, paths of an indexed repository (`repo`) whose spans want their vectors.
    """

    root: str | None = None
    repo: str | None = None
    """The name to index under; the folder's own by default."""
    paths: list[str] | None = None
    vectors: bool = False
    table: str | None = None
    ids: list[str] = []


async def embed(task: Embed, ctx: Context) -> dict[str, Any] | index.Report:
    """Scan, or index what the message names. Raises TaskInvalid, Forbidden."""
    if task.vectors:
        return await fill(ctx, task.repo or "", task.paths or [])
    if (task.root is None) == (task.table is None):
        raise errors.TaskInvalid("give either a root or a table - at `$.root`")
    if task.table is not None:
        report = await index.index_rows(ctx.db, ctx.key.tenant, task.table, task.ids)
        await want_vectors(ctx, task.table, [index.row_path(task.table, id) for id in task.ids])
        return report
    root = scan.open_root(task.root or "", within=settings_of(ctx).roots if ctx.assignment else None)
    name = task.repo or root.name
    if task.paths is None:
        return await scan_folder(ctx, root, name)
    repo = await index.open_repo(ctx.db, ctx.key.tenant, name, str(root))
    report = await index.index_paths(ctx.db, repo, root, task.paths)
    await want_vectors(ctx, name, task.paths)
    return report


async def scan_folder(ctx: Context, root: Path, name: str) -> dict[str, Any]:
    """Compare the folder with the index and send a message for each batch of what changed."""
    repo = await index.open_repo(ctx.db, ctx.key.tenant, name, str(root), move=True)
    plan = await index.plan(ctx.db, repo, root)
    batches = _batches([*plan.changed, *plan.gone])
    for batch in batches:
        await ctx.bus.enqueue(LANE, {"root": str(root), "repo": name, "paths": batch})
    if (model := model_of(ctx)) is not None:
        lacking = await vectors.lacking(ctx.db, await vectors.table_of(ctx.db, model), repo.id)
        await want_vectors(ctx, name, sorted({*lacking} - {*plan.changed, *plan.gone}))
    return {
        "repo": name, "files": plan.files, "messages": len(batches), "changed": len(plan.changed),
        "removed": len(plan.gone), "skipped": plan.skipped, "unparsed": plan.unparsed,
    }  # fmt: skip


# -- vectors ----------------------------------------------------------------------------------


def model_of(ctx: Context) -> Model | None:
    """What this process makes vectors with."""
    wanted = settings_of(ctx).embedder
    if isinstance(wanted, Model) or wanted == "none":
        return None if wanted == "none" else wanted
    attached = vectors.of(ctx.db)
    return attached.installed("minilm") if attached else None


async def want_vectors(ctx: Context, repo: str, paths: Sequence[str]) -> None:
    """Behind what is still to be indexed: a span can be found by its words before it has a vector."""
    if model_of(ctx) is not None:
        for batch in _batches(paths):
            await ctx.bus.enqueue(LANE, {"vectors": True, "repo": repo, "paths": batch}, priority=3)


async def fill(ctx: Context, repo: str, paths: Sequence[str]) -> dict[str, Any]:
    """Give the spans of these files their vectors. Raises Retry where there is no model to make them."""
    model, attached = model_of(ctx), vectors.of(ctx.db)
    if model is None or attached is None:
        raise Retry(f"no embedder is set up in this process. {local.INSTALL}", after=30, counted=False)
    (repo_id,) = await search.repo_ids(ctx.db, ctx.key.tenant, repo)
    try:
        embedder = attached.embedder(model)
        table = await vectors.table_of(ctx.db, model)
        made, done = await vectors.fill(ctx.db, table, embedder, repo_id, paths, TURN_S)
    except errors.ModelUnavailable as reason:
        raise Retry(str(reason), after=30, counted=False) from None
    if not done:
        await want_vectors(ctx, repo, paths)
    return {"repo": repo, "vectors": made}


def settings_of(ctx: Context) -> RagEmbedSettings:
    return ctx.settings or RagEmbedSettings()


def _batches(paths: Sequence[str]) -> list[Sequence[str]]:
    return [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]


@hookimpl
def cogo_lifespan(runtime: Runtime) -> AbstractAsyncContextManager[None]:
    """Questions and texts are embedded by the same models, from the same data home."""
    return vectors.attached(runtime.db, runtime.settings.data_dir)


@hookimpl
def cogo_settings() -> type[RagEmbedSettings]:
    """`[plugins.rag-embed]`."""
    return RagEmbedSettings


@hookimpl
def cogo_role() -> Role:
    """Consumes rag/embed; two at a time, since cutting and weighing take CPU."""
    return Role("rag", "embed", handle=embed, concurrency=2, events="embed",
                intents=("index", "embed"), timeout_s=900)  # fmt: skip
