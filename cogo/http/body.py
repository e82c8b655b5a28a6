"""Reading a JSON body that may be hostile: size, type, UTF-8, depth and NUL before any decoding."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from cogo.core.errors import BadRequest, CogoError, Invalid, UnsupportedMedia

T = TypeVar("T")

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64

# Possessive, and an unterminated string matches to the end of the input: linear on any bytes.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(b for b in range(256) if b not in b"[]{}")
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
# The escape of NUL after an even number of backslashes; anchored at the start of the run: linear.
_NUL_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def depth(body: bytes) -> int:
    """How deep brackets nest outside strings; right for valid JSON, an upper bound for the rest."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return 0  # cannot be too deep: the common case, three scans at memory speed
    brackets = _STRINGS.sub(b"", body).translate(None, delete=_NOT_BRACKETS)
    return max(accumulate(_STEP[b] for b in brackets), default=0)


def holds_nul(body: bytes) -> bool:
    """True when a string of this JSON text holds U+0000, which Postgres can store nowhere."""
    return b"\\u0000" in body and _NUL_ESCAPE.search(body) is not None


def check_media(content_type: str) -> None:
    """Raise UnsupportedMedia unless it is application/json (or +json) in UTF-8."""
    media, _, params = content_type.partition(";")
    media = media.strip().lower()
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]+)", params, re.IGNORECASE)
    plain = media == "application/json" or (media.startswith("application/") and media.endswith("+json"))
    if not plain or (charset and charset[1].lower().replace("_", "-") not in ("utf-8", "utf8", "us-ascii")):
        given = f"Content-Type is {content_type[:80]!r}" if content_type else "there is no Content-Type"
        raise UnsupportedMedia(given)


def decode(body: bytes, kind: type[T]) -> T:
    """Decode a body strictly into `kind`.

    Raises BadRequest (400) for what is not JSON, Invalid (422) for JSON of the wrong shape, with
    the JSON path of the field.
    """
    check(body)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as exc:
        raise _blame(body, exc) from None
    except (msgspec.DecodeError, RecursionError) as exc:
        raise BadRequest(f"the body is not JSON: {exc}") from None


def check(body: bytes) -> None:
    """Refuse what no decoder should see: no body, bad UTF-8, too deep, NUL."""
    if not body.strip():
        raise BadRequest("the body is empty")
    try:
        body.decode()
    except UnicodeDecodeError as exc:
        raise BadRequest(f"the body is not UTF-8 (byte {exc.start})") from None
    if depth(body) > MAX_DEPTH:
        raise BadRequest(f"the body nests deeper than {MAX_DEPTH} levels")
    if holds_nul(body):
        raise Invalid("a string holds U+0000 (NUL), which cannot be stored")


def _blame(body: bytes, exc: msgspec.ValidationError) -> CogoError:
    """A wrong field before a syntax error must still be 400: look at the whole text once more."""
    try:
        msgspec.json.decode(body, type=Any)
    except msgspec.ValidationError:
        pass  # a number out of range: well-formed, but not acceptable
    except (msgspec.DecodeError, RecursionError) as worse:
        return BadRequest(f"the body is not JSON: {worse}")
    return Invalid(str(exc))
