"""Role gateway, lane gateway/chat: answers with citations, from the index and the graph of code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

import msgspec

from cogo import Context, Role, Runtime, hookimpl
from cogo.knowledge import answers, graph_answers, vectors
from cogo.knowledge import chat as models
from cogo.knowledge.chat.citations import plain

Conversation = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")]


class Chat(msgspec.Struct, frozen=True):
    """A question in any language, about one repository or all of the tenant's; `k` spans are read.

    Questions with the same `conversation_id` follow each other; any name that the client chooses will do.
    """

    question: Annotated[str, msgspec.Meta(min_length=1, max_length=8_000)]
    repo: str | None = None
    k: Annotated[int, msgspec.Meta(ge=1, le=50)] = 6
    conversation_id: Conversation | None = None


async def chat(task: Chat, ctx: Context) -> answers.Answer:
    """Answer by the model of the assignment or of the settings; without one by quoting, which spends nothing."""
    settings = ctx.settings or models.ChatSettings()
    model = models.chosen(settings, ctx.assignment)
    tenant, conversation = ctx.key.tenant, task.conversation_id
    turns: list[models.Turn] = []
    if conversation:
        # One turn at least: its words help to find what a follow-up is about, also without a model.
        limit = max(settings.history_turns, 1)
        turns = await models.history(ctx.db, tenant, conversation, ctx.message_id, limit)
    before = turns[-1].asked if turns else ""
    known = await graph_answers.answer(ctx.db, tenant, task.question, repo=task.repo)
    if known is not None:  # exact, and free: no model could say it better
        asked, answer, model = task.question, known, None
    else:
        found = await answers.find(ctx.db, tenant, task.question, repo=task.repo, k=task.k, before=before)
        asked, answer = found.asked, await answers.quoted(ctx.db, tenant, found, repo=task.repo)
    if model is None:
        await ctx.progress({"text": answer.answer}, kind="answer")
    else:
        seen = turns[-settings.history_turns :] if settings.history_turns else []
        answer = await models.write(ctx, settings, model, models.Draft(task.question, found, answer, seen))
    if conversation:
        said = plain(answer.answer) if answer.mode == "model" else answer.answer
        async with ctx.transaction() as tx:
            turn = models.Turn(task.question, asked, said)
            await models.remember(tx, tenant, conversation, ctx.message_id, turn)
            tx.done(answer)
    return answer


@hookimpl
def cogo_role() -> Role:
    """Consumes gateway/chat."""
    return Role("gateway", "chat", handle=chat, concurrency=8, events="gateway", intents=("chat", "ask"))


@hookimpl
def cogo_settings() -> type[models.ChatSettings]:
    """`[plugins.gateway]`."""
    return models.ChatSettings


@hookimpl
def cogo_lifespan(runtime: Runtime, settings: Any) -> AbstractAsyncContextManager[None]:
    """Questions are embedded with the model that the index's vectors come from; one client asks the server."""
    return _lifespan(runtime, settings or models.ChatSettings())


@asynccontextmanager
async def _lifespan(runtime: Runtime, settings: models.ChatSettings) -> AsyncIterator[None]:
    own = runtime.settings
    known = {"COGO_CHAT_API_KEY": own.chat_api_key, "OPENAI_API_KEY": own.openai_api_key}
    secrets = {name: secret.reveal() for name, secret in known.items() if secret}
    async with vectors.attached(runtime.db, own), models.attached(runtime.db, settings, secrets):
        yield


@hookimpl
def cogo_routes() -> Sequence[Any]:
    """/api/knowledge/*"""
    from .routes import ROUTES

    return ROUTES
