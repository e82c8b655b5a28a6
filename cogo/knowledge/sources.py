"""Tables whose rows are documents: which ones are followed. The triggers are in sql/functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from cogo import errors

from . import queries

if TYPE_CHECKING:
    from cogo import Database

# The specification's tables. They are followed wherever they exist with an id and a text.
SPECIFIED = ("public.vector_documents", "public.code_vectors")
TEXT_COLUMNS = ("content", "body", "text", "code", "chunk")
TENANT_COLUMNS = ("tenant", "tenant_id")


class Source(msgspec.Struct, frozen=True):
    """A table and the columns that its documents are made of."""

    table: str
    id: str
    text: str
    tenant: str | None = None


def parse(text: str) -> Source:
    """Read `schema.table:id:text[:tenant]`. Raises InvalidSetting."""
    parts = text.split(":")
    if len(parts) not in (3, 4) or not all(parts):
        raise errors.InvalidSetting(
            f"plugins.rag-dispatcher.tables: {text!r} is not schema.table:id:text[:tenant]"
        )
    return Source(*parts)


async def follow(db: Database, wanted: Sequence[Source]) -> int:
    """Follow these tables and the specified ones that exist, and no others.

    Returns the number of messages for rows that were there before. Raises InvalidSetting when a named
    table or column does not exist.
    """
    sources = {source.table: source for source in [*await _specified(db), *wanted]}
    await db.execute(queries.FOLLOW_ONLY, (list(sources),))
    told = 0
    for source in sources.values():
        missing = await db.fetch_value(queries.MISSING, msgspec.structs.asdict(source))
        if missing:
            raise errors.InvalidSetting(
                f"plugins.rag-dispatcher.tables: {source.table}: there is no {missing}"
            )
        told += await db.fetch_value(queries.FOLLOW, msgspec.structs.astuple(source))
    return told


async def _specified(db: Database) -> list[Source]:
    """The specification's tables, as far as they exist and can be read as documents."""
    rows = await db.fetch(queries.COLUMNS, (list(SPECIFIED),))
    found = []
    for row in rows:
        text = next((name for name in TEXT_COLUMNS if name in row["columns"]), None)
        tenant = next((name for name in TENANT_COLUMNS if name in row["columns"]), None)
        if text and "id" in row["columns"]:
            found.append(Source(row["source"], "id", text, tenant))
    return found
