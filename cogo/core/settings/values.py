"""What a setting can hold: secrets, and texts that stand for lists."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cogo.core.model import SHARD_MAX


class Secret:
    """A text that never shows itself: repr, str, format and JSON give `***` or refuse."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and secrets.compare_digest(
            self._value.encode(), other._value.encode()
        )

    def __hash__(self) -> int:
        return hash(self._value)


class Env(msgspec.Struct, frozen=True):
    """The environment name of a field, the older names it also answers to, and how its text is read."""

    name: str
    older: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    """Text -> what msgspec then converts; it raises ValueError. None: msgspec reads the text."""


def words(text: str) -> list[str]:
    """`a, b,c` -> ["a", "b", "c"]."""
    return [word for part in text.split(",") if (word := part.strip())]


def shards(text: str) -> list[int]:
    """`0`, `0-3` or `0,2,8-9` -> the shards, each once, in order. Raises ValueError."""
    found: set[int] = set()
    for word in words(text):
        first, dash, last = word.partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high <= SHARD_MAX:
            raise ValueError(f"{word!r} is not a range of shards between 0 and {SHARD_MAX}")
        found.update(range(low, high + 1))
    if not found:
        raise ValueError("no shard is named")
    return sorted(found)


def keys(text: str) -> list[str]:
    """One key, or several as a JSON list or as a JSON object of name -> key. Raises ValueError."""
    if text.lstrip()[:1] not in {"[", "{"}:
        return [text.strip()]
    try:
        found = msgspec.json.decode(text.encode(), type=dict[str, str] | list[str])
    except msgspec.MsgspecError:  # its message may quote a piece of a key
        raise ValueError(
            "neither a key, nor a JSON list of keys, nor a JSON object of names and keys"
        ) from None
    return list(found.values()) if isinstance(found, dict) else found


def decode(kind: type, value: Any) -> Any:
    """Read Path and Secret, which msgspec does not know. Raises ValueError."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")  # noqa: TRY004 (as msgspec's own)
    text = os.fspath(value)
    if "\0" in text:
        raise ValueError("Text without NUL characters is needed")
    # Absolute now: a later change of folder must not move the data home.
    return Path(text).expanduser().absolute() if kind is Path else kind(text)
