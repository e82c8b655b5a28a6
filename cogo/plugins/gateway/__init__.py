"""Role gateway, lane gateway/chat: answers with citations, from the index and the graph of code."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import msgspec

from cogo import Context, Role, Runtime, hookimpl
from cogo.knowledge import answers, vectors


class Chat(msgspec.Struct, frozen=True):
    """A question in any language, about one repository or all of the tenant's; `k` spans are read."""

    question: Annotated[str, msgspec.Meta(min_length=1, max_length=8_000)]
    repo: str | None = None
    k: Annotated[int, msgspec.Meta(ge=1, le=50)] = 6


async def chat(task: Chat, ctx: Context) -> answers.Answer:
    """Answer by quoting. It needs no model and spends nothing, so any assignment allows it."""
    found = await answers.answer(ctx.db, ctx.key.tenant, task.question, repo=task.repo, k=task.k)
    await ctx.progress({"text": found.answer}, kind="answer")
    return found


@hookimpl
def cogo_role() -> Role:
    """Consumes gateway/chat."""
    return Role("gateway", "chat", handle=chat, concurrency=8, events="gateway", intents=("chat", "ask"))


@hookimpl
def cogo_lifespan(runtime: Runtime) -> AbstractAsyncContextManager[None]:
    """Questions are embedded with the model that the index's vectors come from."""
    return vectors.attached(runtime.db, runtime.settings.data_dir)


@hookimpl
def cogo_routes() -> Sequence[Any]:
    """/api/knowledge/*"""
    from .routes import ROUTES

    return ROUTES
