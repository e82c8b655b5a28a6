"""Every failure of a request as RFC 9457 problem+json: one table, no traceback, no 5xx for input.

A problem is `{type, title, status, detail, code, hint}`; `type` is the address of the page that
explains the code on this very server (`/schema/problems/{code}`).
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.exceptions import HTTPException, MethodNotAllowedException, ValidationException
from litestar.params import FromPath

from cogo.core import errors

log = logging.getLogger("cogo.http")

MEDIA_TYPE = "application/problem+json"
TYPE_BASE = "/schema/problems/"
DETAIL_MAX = 400
"""Characters: a detail may quote the request, and a request can be long."""
RETRY_AFTER_S = 2
"""What a 503 or 429 asks for when the error does not say."""

BY_STATUS: dict[int, type[errors.CogoError]] = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.TooLarge,
    415: errors.UnsupportedMedia,
    429: errors.RateLimited,
    503: errors.BusUnavailable,
}


class Problem(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str


def as_cogo_error(exc: Exception) -> errors.CogoError:
    """The error of our table that stands for any exception; what nobody foresaw is a `bug`."""
    if isinstance(exc, errors.CogoError):
        return exc
    if isinstance(exc, ValidationException):
        return errors.Invalid(_validation_detail(exc))
    if isinstance(exc, HTTPException):
        if "disconnected" in exc.detail:  # Litestar's 500 for a client that left: nobody's fault of ours
            return errors.BadRequest("the client left before the body was complete")
        kind = BY_STATUS.get(exc.status_code)
        if kind is None and 400 <= exc.status_code < 500:
            kind = errors.BadRequest
        if kind is not None:
            # Our sentence, except where Litestar's says more than the status phrase.
            return kind(exc.detail if kind is errors.BadRequest else None)
    return errors.Bug()


def _validation_detail(exc: ValidationException) -> str:
    if isinstance(exc.extra, list) and exc.extra and isinstance(exc.extra[0], dict):
        first = exc.extra[0]
        where = f" `{first['key']}`" if "key" in first else ""
        source = first.get("source", "field")
        return f"{getattr(source, 'value', source)}{where}: {first.get('message', '')}"
    return str(exc.detail).split(" for path ")[0]


def problem_of(error: errors.CogoError) -> Problem:
    """The body for one error."""
    return Problem(
        type=TYPE_BASE + error.code,
        title=type(error).summary(),
        status=error.status,
        # A lone surrogate cannot be written as UTF-8; a quoted request may hold one.
        detail=error.detail[:DETAIL_MAX].encode("utf-8", "replace").decode(),
        code=error.code,
        hint=error.next_step,
    )


def problem_headers(error: errors.CogoError) -> dict[str, str]:
    """Retry-After for 429 and 503, WWW-Authenticate for 401, Allow where the error carries it."""
    headers: dict[str, str] = {}
    if error.status in (429, 503):
        headers["retry-after"] = str(error.extra.get("retry_after_s", RETRY_AFTER_S))
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="cogo"'
    if allow := error.extra.get("allow"):
        headers["allow"] = allow
    return headers


def problem_response(error: errors.CogoError) -> Response[bytes]:
    """The Litestar response for one error."""
    return Response(
        content=msgspec.json.encode(problem_of(error)),
        status_code=error.status,
        media_type=MEDIA_TYPE,
        headers=problem_headers(error),
    )


def on_exception(request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """Litestar's exception handler for every exception: log it once at its own level, then answer."""
    error = as_cogo_error(exc)
    if isinstance(exc, MethodNotAllowedException) and exc.headers:
        error.extra["allow"] = allowed_methods(exc.headers.get("allow", ""))
    where = {"code": error.code, "method": request.method, "path": request.scope["path"][:200]}
    if error.status >= 500 and not isinstance(error, errors.BusUnavailable):
        log.error("%s %s: %s", request.method, where["path"], error.line(), exc_info=exc, extra=where)
    else:
        log.log(min(error.level, logging.INFO), "%s", error.line(), extra=where)
    return problem_response(error)


def allowed_methods(allow: str) -> str:
    """A sorted Allow header; OPTIONS is always answered."""
    return ", ".join(sorted({*(m.strip() for m in allow.split(",") if m.strip()), "OPTIONS"}))


def raw_response(error: errors.CogoError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body for where there is no Litestar yet: the protocol and the edge."""
    body = msgspec.json.encode(problem_of(error))
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    headers += [(k.encode(), v.encode()) for k, v in problem_headers(error).items()]
    return headers, body


@get("/schema/problems/{code:str}", media_type="text/plain", sync_to_thread=False, include_in_schema=False)
def explain(code: FromPath[str]) -> str:
    """What a code means and what to do next: the page that `type` of a problem points to."""
    kind = errors.CODES.get(code)
    if kind is None:
        raise errors.NotFound(f"there is no error code {code[:60]!r}")
    return f"{kind.code} (HTTP {kind.status})\n\n{kind.summary()}\n\n{kind.hint}\n"
