"""Role rag-embed, lane rag/embed: repositories and rows of tables into the index.

One message scans a folder and sends itself messages for what changed, in batches; those leave with the
scan's own finish. A batch that is run twice, or by two workers at once, ends the same. Words come first: a
batch that is indexed can be found, and sends a message of lower priority for its vectors.

Which model's vectors are made stands in the database: what the process that started last is set to. When that
changes, a message for each tenant looks for what lacks a vector, and follows itself until nothing does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from cogo import Context, Database, Retry, Role, Runtime, errors, hookimpl
from cogo.knowledge import index, scan, search, vectors
from cogo.knowledge.embedding import Embedder, Model, local

LANE = "rag/embed/0"
BATCH = 40
"""Files per message: about a second of work."""
TURN_S = 2.0
"""Of vectors per message: then what is to be indexed comes first, and the rest of them in a message that follows."""
NO_EMBEDDER = "this process is set to make no vectors (embedder in [plugins.rag-embed])"
_log = logging.getLogger("cogo.rag-embed")


class RagEmbedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[plugins.rag-embed]`."""

    roots: tuple[str, ...] = ()
    """Folders below which requests from outside (those with an assignment) may have folders indexed.

    Messages that are put on this lane directly, which takes the database's service role, may name any."""
    embedder: Literal["auto", "minilm", "none"] | Model = "auto"
    """What makes the vectors. `auto`: minilm if `cogo models install` has put it here, else none."""


class Embed(msgspec.Struct, frozen=True):
    """A folder to scan (`root`), some files of it (`paths`), or rows of a table that is followed.

    With `vectors`, paths of an indexed repository (`repo`) whose spans want their vectors; without paths
    whatever of the tenant lacks any.
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
        return await fill(ctx, task)
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
    if (table := await wanted(ctx)) is not None:
        lacking = await vectors.lacking(ctx.db, table, repo.id)
        await want_vectors(ctx, name, sorted({*lacking} - {*plan.changed, *plan.gone}))
    return {
        "repo": name, "files": plan.files, "messages": len(batches), "changed": len(plan.changed),
        "removed": len(plan.gone), "skipped": plan.skipped, "unparsed": plan.unparsed,
    }  # fmt: skip


# -- vectors ----------------------------------------------------------------------------------


def model_of(settings: RagEmbedSettings, known: vectors.Vectors | None) -> Model | None:
    """What this process is set to make vectors with."""
    if settings.embedder == "none" or known is None:
        return None
    return settings.embedder if isinstance(settings.embedder, Model) else known.installed("minilm")


async def wanted(ctx: Context) -> vectors.Table | None:
    """The vectors that are to be made: what the database says; before any were, what this process is set to.

    So a model that is installed while the process runs is taken up, and `none` of another process stands.
    """
    if (table := await vectors.wanted(ctx.db)) is not None:
        return table
    model = model_of(settings_of(ctx), vectors.of(ctx.db))
    return await vectors.table_of(ctx.db, model) if model and not await vectors.any_known(ctx.db) else None


async def want_vectors(ctx: Context, repo: str, paths: Sequence[str]) -> None:
    """Behind what is still to be indexed: a span can be found by its words before it has a vector."""
    if await wanted(ctx) is not None:
        for batch in _batches(paths):
            await ctx.bus.enqueue(LANE, {"vectors": True, "repo": repo, "paths": batch}, priority=3)


async def fill(ctx: Context, task: Embed) -> dict[str, Any]:
    """Give the spans of these files their vectors, or those of some files that lack them.

    Raises Retry, uncounted, where this process can't make them, and ModelUnavailable when the model refuses:
    after the lane's attempts the message fails, and the next start of a process looks for what is lacking.
    """
    known, table = vectors.of(ctx.db), await wanted(ctx)
    if table is None:
        return {
            "repo": task.repo,
            "vectors": 0,
        }  # none are wanted (any more); whoever wants some looks what lacks them
    if known is None or settings_of(ctx).embedder == "none":
        raise Retry(NO_EMBEDDER, after=30, counted=False)
    try:
        embedder = known.embedder(table.model)
    except errors.ModelUnavailable as reason:  # another process may have it
        raise Retry(reason.line(), after=30, counted=False) from None
    if task.paths is None:
        return await fill_share(ctx, table, embedder)
    (repo_id,) = await search.repo_ids(ctx.db, ctx.key.tenant, task.repo or "")
    made, done = await vectors.fill(ctx.db, table, embedder, repo_id, task.paths, TURN_S)
    if not done:
        await want_vectors(ctx, task.repo or "", task.paths)
    elif not await vectors.serve(ctx.db, table):
        await vectors.ask_for(ctx.db, ctx.key.tenant)
    return {"repo": task.repo, "vectors": made}


async def fill_share(ctx: Context, table: vectors.Table, embedder: Embedder) -> dict[str, Any]:
    """Some files of the tenant that lack vectors; a message that follows takes the next, until there are none."""
    files = await vectors.share(ctx.db, table, ctx.key.tenant, BATCH)
    if sum(map(len, files.values())) >= BATCH:
        await vectors.ask_for(ctx.db, ctx.key.tenant)  # at once: others may help
    made, ends = 0, time.monotonic() + TURN_S
    for repo_id, paths in files.items():
        if (left_s := ends - time.monotonic()) > 0 or not made:
            made += (await vectors.fill(ctx.db, table, embedder, repo_id, paths, left_s))[0]
    serving = not files and await vectors.serve(ctx.db, table)
    if files:
        await vectors.ask_for(ctx.db, ctx.key.tenant)
    return {"vectors": made, "lacking": bool(files), "serving": serving}


def settings_of(ctx: Context) -> RagEmbedSettings:
    return ctx.settings or RagEmbedSettings()


def _batches(paths: Sequence[str]) -> list[Sequence[str]]:
    return [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]


@hookimpl
def cogo_lifespan(runtime: Runtime, settings: RagEmbedSettings) -> AbstractAsyncContextManager[None]:
    """Questions and texts are embedded by the same models, from the same data home."""
    return _lifespan(runtime, settings)


@asynccontextmanager
async def _lifespan(runtime: Runtime, settings: RagEmbedSettings) -> AsyncIterator[None]:
    async with vectors.attached(runtime.db, runtime.settings):
        await decide(runtime.db, settings)
        yield


async def decide(db: Database, settings: RagEmbedSettings) -> None:
    """Say which model's vectors are wanted from now on, and have those made that are lacking."""
    before, model = await vectors.wanted(db), model_of(settings, vectors.of(db))
    if settings.embedder == "none":
        await vectors.want_none(db)
    elif model is not None:
        await vectors.table_of(db, model, change=True)
        await vectors.ask_for(db, None)
    elif before is not None:
        _log.warning(
            "vectors of %s are wanted, which is not installed here. %s", before.model.name, local.INSTALL
        )
        return
    if before is not None and before.model != model:
        _log.warning("vectors of %s are wanted no longer, now those of %s",
                     before.model.name, model.name if model else "no model")  # fmt: skip


@hookimpl
def cogo_settings() -> type[RagEmbedSettings]:
    """`[plugins.rag-embed]`."""
    return RagEmbedSettings


@hookimpl
def cogo_role() -> Role:
    """Consumes rag/embed; two at a time, since cutting and weighing take CPU."""
    return Role("rag", "embed", handle=embed, concurrency=2, events="embed",
                intents=("index", "embed"), timeout_s=900)  # fmt: skip
