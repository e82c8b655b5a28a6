"""A model behind a server that speaks OpenAI's /v1/chat/completions, by the `openai` package (extra `llm`)."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import anyio
import msgspec

from cogo import errors

from .prompt import Messages
from .settings import ChatSettings, cost_of

if TYPE_CHECKING:
    import openai

    from cogo import Database

KEYS: Final = ("COGO_CHAT_API_KEY", "OPENAI_API_KEY")
"""Environment names of the key, the first that is set counts; the second is sent to OpenAI alone. Servers without keys take any."""
CONNECT_S: Final = 5.0
AGAIN_S: Final = 0.5
"""The pause before the second try when the server names none."""
STRAY_PIECES: Final = 16
"""Pieces of a stream that hold no token: the role, the end, the usage."""
BYTES_PER_TOKEN: Final = 64
"""A text of more bytes for each token that was allowed is not what was asked for."""

_log = logging.getLogger("cogo.knowledge")
_REASONS: Final = {401: "model_unauthorized", 403: "model_unauthorized", 404: "model_unknown"}
_AGAIN: Final = {HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
"""Refusals before anything was done."""


class Reply(msgspec.Struct):
    """What a model wrote. `counted` is the server's (input, output, cached input) tokens, if it says."""

    text: str = ""
    finish: str | None = None
    counted: tuple[int, int, int] | None = None


class Failed(Exception):  # noqa: N818 (it never leaves this package: the answer says it by its code)
    """The model gave no answer. `again_s`: the same may work after so many seconds; `free`: nothing was used."""

    def __init__(self, code: str, why: str, *, again_s: float | None = None, free: bool = False) -> None:
        super().__init__(f"{code}: {why}"[:500])
        self.code = code
        self.again_s = again_s
        self.free = free


class Endpoint:
    """One client for all requests to a server."""

    def __init__(self, settings: ChatSettings, secrets: Mapping[str, str] = os.environ) -> None:
        try:
            import httpx2
            from openai import AsyncOpenAI  # 0.7 s, which only processes with a model should spend
        except ImportError:
            raise errors.ModelUnavailable(
                "[plugins.gateway] names a model, and openai is missing",
                hint="pip install 'cogo-agents[llm]'",
            ) from None
        at = urlsplit(settings.base_url)
        to_openai = (at.scheme, at.hostname) == ("https", "api.openai.com")
        keys = KEYS if to_openai else KEYS[:1]
        key = next((secrets[name] for name in keys if secrets.get(name)), "none")
        # OpenAI's newer models refuse the old name, most other servers don't know the new one.
        self._limit = "max_completion_tokens" if to_openai else "max_tokens"
        self._client = AsyncOpenAI(
            base_url=settings.base_url, api_key=key, max_retries=0,
            timeout=httpx2.Timeout(settings.idle_s, connect=min(CONNECT_S, settings.idle_s)),
        )  # fmt: skip

    async def write(
        self, model: str, messages: Messages, tokens: int, said: Callable[[str], Awaitable[None]]
    ) -> Reply:
        """The model's answer of at most so many tokens; `said` gets each piece as it comes. Raises Failed."""
        import httpx2
        import openai

        options: dict[str, Any] = {self._limit: tokens}
        began = False
        try:
            stream = await self._client.chat.completions.create(
                model=model, messages=messages, stream=True, stream_options={"include_usage": True}, **options
            )  # type: ignore[call-overload]  # plain dicts are what its TypedDicts are
            began = True
            async with stream:
                reply = await _read(stream, tokens, said)
        except openai.APIStatusError as error:
            raise _refused(error) from None
        except (openai.APIError, httpx2.HTTPError, httpx2.StreamError, ValueError) as error:
            cause = error.__cause__ or error
            why = f"{type(cause).__name__}: {cause}"
            if began:
                raise Failed("stream_broken", why) from None
            # A server that nobody could connect to has done nothing; one that hung up may have.
            away = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
            raise Failed("model_unavailable", why, again_s=AGAIN_S if away else None, free=away) from None
        if reply.finish is None:
            raise Failed("stream_broken", "the stream ended before the answer did")
        return reply

    async def aclose(self) -> None:
        """Close the connections for good."""
        with anyio.CancelScope(shield=True):
            await self._client.close()


async def _read(stream: Any, tokens: int, said: Callable[[str], Awaitable[None]]) -> Reply:
    """Gather a stream; one that is longer than was asked for is cut."""
    reply = Reply()
    size, pieces = 0, 0
    async for chunk in stream:
        usage = getattr(chunk, "usage", None)
        if usage is not None:
            reply.counted = _counted(usage)
        choices = getattr(chunk, "choices", None)
        if not isinstance(choices, list) or not choices:
            continue
        reply.finish = getattr(choices[0], "finish_reason", None) or reply.finish
        text = getattr(getattr(choices[0], "delta", None), "content", None)
        pieces += 1
        if isinstance(text, str) and text:
            text = text.replace("\x00", "").encode("utf-8", "replace").decode()  # what Postgres can store
            reply.text += text
            size += len(text.encode())
            await said(text)
        # A piece has a token at least; servers that don't know the limit would go on and on.
        if pieces > tokens + STRAY_PIECES or size > tokens * BYTES_PER_TOKEN:
            reply.finish = "length"
            return reply
    return reply


def _counted(usage: Any) -> tuple[int, int, int] | None:
    details = getattr(usage, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", None) or 0
    found = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None), cached)
    return found if all(type(n) is int for n in found) else None  # type: ignore[return-value]


def _refused(error: openai.APIStatusError) -> Failed:
    status = error.status_code
    why = f"the server answers {status}: {error.message}"
    if status in _AGAIN:
        return Failed("model_unavailable", why, again_s=_retry_after(error.response), free=True)
    if status == HTTPStatus.REQUEST_TIMEOUT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Failed("model_unavailable", why)  # it may have begun, and may be billed: once is enough
    return Failed(_REASONS.get(status, "model_refused"), why, free=True)


def _retry_after(response: Any) -> float:
    """What the server asks for, in seconds; a date is taken as not given."""
    try:
        asked = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return AGAIN_S
    return asked if asked >= 0 else AGAIN_S


# -- one for a process --------------------------------------------------------------------------

_ATTACHED: weakref.WeakKeyDictionary[Database, Endpoint] = weakref.WeakKeyDictionary()


@asynccontextmanager
async def attached(db: Database, settings: ChatSettings, secrets: Mapping[str, str]) -> AsyncIterator[None]:
    """Keep a client for the life of a process, where a model is set up; `secrets` are keys by their names in KEYS.

    Raises ModelUnavailable without openai.
    """
    if settings.model is None and not settings.models:
        yield
        return
    for model in dict.fromkeys(filter(None, (settings.model, *settings.models))):
        if cost_of(settings, model) is None:
            _log.warning("nobody knows what %s costs at %s, so it won't be asked: set `prices` in [plugins.gateway]",
                         model, settings.base_url)  # fmt: skip
    endpoint = _ATTACHED[db] = Endpoint(settings, secrets)
    try:
        yield
    finally:
        _ATTACHED.pop(db, None)
        await endpoint.aclose()


@asynccontextmanager
async def opened(db: Database, settings: ChatSettings) -> AsyncIterator[Endpoint]:
    """The process's client, or where none is kept (in tests) one for this call."""
    if (kept := _ATTACHED.get(db)) is not None:
        yield kept
        return
    endpoint = Endpoint(settings)
    try:
        yield endpoint
    finally:
        await endpoint.aclose()
