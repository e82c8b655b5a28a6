"""Tables whose rows are documents: which ones are followed. The triggers are in sql/functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from cogo import errors

from . import queries

if TYPE_CHECKING:
    from cogo import Database

CODE = "public.code_vectors"
# The specification's tables. They are followed wherever they exist with an id and a text.
SPECIFIED = ("public.vector_documents", CODE)
TEXT_COLUMNS = ("content", "body", "text", "code", "chunk")
TENANT_COLUMNS = ("tenant", "tenant_id")
# Rows of code are cut as code of the language that one of these names, or that the path's ending tells.
PATH_COLUMNS = ("path", "file_path", "filename")
LANG_COLUMNS = ("lang", "language")


class Source(msgspec.Struct, frozen=True):
    """A table and the columns that its documents are made of."""

    table: str
    id: str
    text: str
    tenant: str | None = None
    path: str | None = None
    lang: str | None = None


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
        if gone := await missing(db, source):
            raise errors.InvalidSetting(f"plugins.rag-dispatcher.tables: {source.table}: there is no {gone}")
        told += await db.fetch_value(queries.FOLLOW, msgspec.structs.astuple(source))
    return told


async def missing(db: Database, source: Source) -> str | None:
    """What isn't there of a table (any more): `such table`, `column body`; None when all is."""
    found: str | None = await db.fetch_value(queries.MISSING, msgspec.structs.asdict(source))
    return found


async def followed(db: Database) -> dict[str, str | None]:
    """The followed tables, and what each is missing."""
    rows = await db.fetch(queries.SOURCES, (None, None))
    return {row["table"]: await missing(db, Source(**row)) for row in rows}


async def readable(db: Database, table: str) -> Source:
    """How to read a table. Raises TaskInvalid when nobody declared that it may be read, or it has changed."""
    row = await db.fetch_one(queries.SOURCES, (table, table))
    if row is None:
        raise errors.TaskInvalid(f"no rag-dispatcher follows the table {table!r} - at `$.table`")
    source = Source(**row)
    if gone := await missing(db, source):
        raise errors.TaskInvalid(
            f"{table} is followed by its columns, but there is no {gone} (any more) - at `$.table`",
            hint="Correct `tables` of [plugins.rag-dispatcher] and restart that role.",
        )
    return source


async def _specified(db: Database) -> list[Source]:
    """The specification's tables, as far as they exist and can be read as documents."""
    rows = await db.fetch(queries.COLUMNS, (list(SPECIFIED),))
    found = []
    for row in rows:

        def first(names: Sequence[str], columns: Sequence[str] = row["columns"]) -> str | None:
            return next((name for name in names if name in columns), None)

        text, code = first(TEXT_COLUMNS), row["source"] == CODE
        if text and "id" in row["columns"]:
            found.append(Source(
                row["source"], "id", text, first(TENANT_COLUMNS),
                first(PATH_COLUMNS) if code else None, first(LANG_COLUMNS) if code else None,
            ))  # fmt: skip
    return found
