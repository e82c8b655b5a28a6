"""Proves that a hostile body is refused by its bytes, with the right code, before a decoder sees it."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogo.core.errors import BadRequest, CogoError, Invalid, UnsupportedMedia
from cogo.http import body


class Task(msgspec.Struct, forbid_unknown_fields=True):
    n: int
    payload: dict[str, Any] = {}


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text('ab[]{}"\\\0', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('k[{"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=60,
)


def true_depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(true_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(true_depth, value), default=0)
    return 0


def has_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any("\0" in key or has_nul(inner) for key, inner in value.items())
    if isinstance(value, list):
        return any(map(has_nul, value))
    return isinstance(value, str) and "\0" in value


@given(NESTED, st.booleans())
def test_depth_is_the_depth_of_the_decoded_value(value: Any, ascii_only: bool):
    """Brackets in strings, escapes and keys don't count; brackets of containers do."""
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    padded = b"[" + b",".join([text, *[b"[]"] * 70]) + b"]"  # past the shortcut for few brackets
    assert body.depth(padded) == max(2, 1 + true_depth(value))


@given(NESTED)
def test_nul_is_found_exactly_where_a_string_holds_it(value: Any):
    """An escaped backslash before u0000 is no NUL; the escape of NUL in a key or value is."""
    assert body.holds_nul(json.dumps(value).encode()) == has_nul(value)


REFUSED: list[tuple[str, bytes, type[CogoError], str]] = [
    ("empty", b"", BadRequest, "empty"),
    ("blank", b" \n\t", BadRequest, "empty"),
    ("truncated", b'{"n": 1', BadRequest, "not JSON"),
    ("wrong field, then truncated", b'{"n": "1"', BadRequest, "not JSON"),
    ("two values", b'{"n": 1} {}', BadRequest, "not JSON"),
    ("a byte order mark", b'\xef\xbb\xbf{"n": 1}', BadRequest, "not JSON"),
    ("bytes that are not UTF-8", b'{"n": 1, "payload": {"a": "\xff"}}', BadRequest, "byte 27"),
    ("NaN", b'{"n": NaN}', BadRequest, "not JSON"),
    ("a raw NUL", b'{"n": 1, "payload": {"a": "\x00"}}', BadRequest, "not JSON"),
    ("a lone surrogate", b'{"n": 1, "payload": {"a": "\\ud800"}}', BadRequest, "not JSON"),
    ("200,000 arrays", b"[" * 200_000, BadRequest, "64 levels"),
    ("65 levels", b'{"n": 1, "payload": {"a": ' + b"[" * 63 + b"]" * 63 + b"}}", BadRequest, "64 levels"),
    ("an escaped NUL", b'{"n": 1, "payload": {"a": "\\u0000"}}', Invalid, "NUL"),
    ("an escaped NUL in a key", b'{"n": 1, "payload": {"\\u0000": 1}}', Invalid, "NUL"),
    ("a string for a number", b'{"n": "1"}', Invalid, "$.n"),
    ("an unknown field", b'{"n": 1, "status": "done"}', Invalid, "status"),
    ("a missing field", b"{}", Invalid, "`n`"),
    ("an array", b"[]", Invalid, "object"),
    ("a 5,000-digit number", b'{"n": 1, "payload": {"a": ' + b"9" * 5000 + b"}}", Invalid, "range"),
    ("1e999", b'{"n": 1, "payload": {"a": 1e999}}', Invalid, "range"),
]


@pytest.mark.parametrize(
    ("raw", "error", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_bad_bodies_are_refused_with_the_right_error(raw: bytes, error: type[CogoError], says: str):
    """What is not JSON is 400, JSON of the wrong shape is 422, and the detail says where."""
    with pytest.raises(error) as caught:
        body.decode(raw, Task)
    assert says in caught.value.detail


def test_good_bodies_decode():
    """64 levels, duplicate keys (the last wins), UTF-8 and an escaped backslash pass."""
    deep = b'{"n": 1, "payload": {"a": ' + b"[" * 62 + b"]" * 62 + b"}}"
    assert body.decode(deep, Task).n == 1
    assert body.decode(b'{"n": 1, "n": 2}', Task).n == 2
    assert body.decode('{"n": 1, "payload": {"é": "\\\\u0000"}}'.encode(), Task).payload == {"é": "\\u0000"}


@pytest.mark.parametrize(
    "attack", [b'"\\"' * 87_000, b"\\" * 262_000, b'["\\u0000' * 32_000, b"[]" * 131_000]
)
def test_the_checks_are_linear(attack: bytes):
    """256 KB made to make a regular expression backtrack is judged in well under a second of CPU."""
    started = time.process_time()
    body.depth(b"[" * 65 + attack)
    body.holds_nul(attack + b"\\u000")
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    "media",
    ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8",
     "application/merge-patch+json"],
)  # fmt: skip
def test_json_media_types_pass(media: str):
    """Case, parameters and +json suffixes don't matter."""
    body.check_media(media)


@pytest.mark.parametrize(
    "media",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "json"],
)
def test_other_media_types_are_refused(media: str):
    """A form or text is not taken for JSON, nor JSON in another encoding."""
    with pytest.raises(UnsupportedMedia):
        body.check_media(media)
