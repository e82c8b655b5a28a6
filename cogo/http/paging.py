"""Pages of a table with growing ids, newest first, of which a request looks at a bounded piece.

A filter that matches little would walk a large table to its end. So a page is put together from
windows of ids that double while it is not full, and goes out short when its time is over; `next`
says where to go on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from .shapes import bounded

if TYPE_CHECKING:
    from cogo.core.db import Database

WINDOW = 2_000
WINDOW_MAX = 64_000
PAGE_S = 1.5
"""Seconds after which a page goes out as it is."""


class Paged(msgspec.Struct, frozen=True):
    """The SQL of a table: `page` takes before, low, limit and its filters; rows have an `id`."""

    newest: str
    """Its largest id, 0 when it is empty."""
    oldest: str
    """created_at of the first row at or above %(low)s."""
    page: str


async def walk(
    db: Database, table: Paged, filters: Mapping[str, Any], *, before: int | None, limit: int
) -> tuple[list[dict[str, Any]], int | None]:
    """Up to `limit` rows with ids below `before`, and where to go on (None: there is no more).

    `filters["since"]`, if given, ends the walk at the first window that is older.
    """
    started, window = time.monotonic(), WINDOW
    rows: list[dict[str, Any]] = []
    with bounded():
        if before is None:
            before = 1 + int(await db.fetch_value(table.newest))
        while True:
            low = max(1, before - window)
            args = {**filters, "before": before, "low": low, "limit": limit - len(rows)}
            rows += await db.fetch(table.page, args)
            if len(rows) >= limit:
                return rows, rows[-1]["id"]
            if low == 1 or await _older(db, table, low, filters.get("since")):
                return rows, None
            before, window = low, min(window * 2, WINDOW_MAX)
            if time.monotonic() - started > PAGE_S:
                return rows, before


async def _older(db: Database, table: Paged, low: int, since: datetime | None) -> bool:
    if since is None:
        return False
    oldest = await db.fetch_value(table.oldest, {"low": low})
    return bool(oldest is not None and oldest < since)
