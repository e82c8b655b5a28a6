"""Role rag-dispatcher: changes in tables become messages for rag/embed, by triggers.

It has no lane: the triggers that it keeps up to date do the work, also while it isn't running.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from cogo import Role, hookimpl
from cogo.knowledge import sources

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from cogo import Runtime


class RagDispatcherSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[plugins.rag-dispatcher]`."""

    tables: tuple[str, ...] = ()
    """`schema.table:id:text` or `schema.table:id:text:tenant`, the names of columns. Without a tenant
    column the rows are the default tenant's."""


@hookimpl
def cogo_settings() -> type[RagDispatcherSettings]:
    """`[plugins.rag-dispatcher]`."""
    return RagDispatcherSettings


@hookimpl
def cogo_role() -> Role:
    """Neither lane nor loop."""
    return Role()


@hookimpl
def cogo_lifespan(runtime: Runtime, settings: RagDispatcherSettings) -> AbstractAsyncContextManager[None]:
    """Follows the tables of the settings, and the specification's where they exist."""
    return _following(runtime, settings)


@asynccontextmanager
async def _following(runtime: Runtime, settings: RagDispatcherSettings) -> AsyncIterator[None]:
    wanted = [sources.parse(text) for text in settings.tables]
    await sources.follow(runtime.db, wanted)
    yield
