"""Text as Postgres stores it: JSON for jsonb, array literals, and strings without NUL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from .errors import ResultInvalid

_ENCODER = msgspec.json.Encoder()
_ABSURD_NUL = "\\u0000"


def encode_jsonb(value: Any) -> str:
    """JSON text that jsonb takes. Raises ResultInvalid for NUL, lone surrogates and the unencodable."""
    if value is None:
        return "null"
    try:
        text = _ENCODER.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ResultInvalid(f"not JSON: {error}") from error
    if _ABSURD_NUL in text and _has_nul(msgspec.json.decode(text)):
        raise ResultInvalid("a string contains the NUL character, which Postgres cannot store in jsonb")
    return text


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any(_has_nul(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(map(_has_nul, value))


def printable(text: str) -> str:
    """Text that a text column takes: no NUL, no lone surrogates."""
    return text.replace("\x00", "\\0").encode("utf-8", "backslashreplace").decode()


def array(values: Iterable[str | int | None]) -> str:
    """A Postgres array literal. The driver's own takes a microsecond per element, this a tenth."""
    return "{" + ",".join([_element(value) for value in values]) + "}"


def _element(value: str | int | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'
