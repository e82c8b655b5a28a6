"""How rows become JSON: times in UTC, money as numbers, stored JSON passed through undecoded.

Stored JSON may hold what no decoder takes (a number of 5,000 digits, put there by plain SQL), so
queries select it as text and it goes out as the bytes it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import anyio
import msgspec

from cogo.core.errors import Invalid, MessageUnknown, Overloaded

QUERY_S = 5.0
"""Seconds that a request may keep the database busy."""
ID_MAX = 2**53 - 1
"""Ids are JSON numbers, which many readers hold as doubles."""

_ID = re.compile(r"[1-9][0-9]{0,15}")


def parse_id(text: str) -> int:
    """A message id from an address; what cannot be one is unknown. Raises MessageUnknown."""
    if _ID.fullmatch(text) and int(text) <= ID_MAX:
        return int(text)
    raise MessageUnknown


def utc(value: datetime) -> datetime:
    """The same instant in UTC, which msgspec writes with a `Z`."""
    return value.astimezone(UTC)


def aware(value: datetime | None) -> datetime | None:
    """A time of a query string, which must say its zone. Raises Invalid."""
    if value is not None and value.tzinfo is None:
        raise Invalid("a time needs its zone, for example 2026-11-23T08:00:00Z")
    return value


def shaped(row: dict[str, Any], *raw: str) -> dict[str, Any]:
    """A row as it goes into an answer; the columns `raw` hold JSON text (or None)."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        if name in raw:
            out[name] = as_raw(value)
        elif isinstance(value, datetime):
            out[name] = utc(value)
        elif isinstance(value, Decimal):
            out[name] = float(value)
        else:
            out[name] = value
    return out


def as_raw(text: str | None) -> msgspec.Raw | None:
    """Stored JSON text as a piece of an answer."""
    return None if text is None else msgspec.Raw(text.encode())


def snippet_value(snippet: str | None) -> msgspec.Raw | None:
    """A result as JSON, when it is JSON: foreign workers may have written any text."""
    if snippet is None:
        return None
    try:
        msgspec.json.decode(snippet)
    except (msgspec.DecodeError, RecursionError):
        return None
    return msgspec.Raw(snippet.encode())


@contextmanager
def bounded(seconds: float = QUERY_S) -> Iterator[None]:
    """Cancel queries that run longer than this. Raises Overloaded (503)."""
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError:
        raise Overloaded(f"the database took longer than {seconds:g} s") from None
