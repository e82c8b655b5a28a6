"""A server that speaks OpenAI's /v1/chat/completions as a stream, and misbehaves when it is told to."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import uvicorn
from helpers import eventually_async
from litestar import Litestar, Request, Response, post
from litestar.params import JSONBody
from litestar.response import Stream

from cogo.knowledge.chat.settings import ChatSettings, Price

MODEL = "tide-1"
PRICE = Price(input=1.0, output=4.0)
"""A dollar for a million input tokens."""


class Script(msgspec.Struct):
    """How one request is answered."""

    text: str | Callable[[str], str] = "A night costs `length_m * RATE` [1]."
    """The answer, or what makes it from the user's message."""
    status: int = 200
    headers: dict[str, str] = {}
    usage: dict[str, Any] | str | None = "right"
    finish: str | None = "stop"
    cut_after: int | None = None
    """Pieces after which the connection is cut."""
    hang_after: int | None = None
    """Pieces after which nothing comes any more; 0: not even the headers."""
    endless: bool = False
    garbage: str | None = None
    """A line that stands where a chunk should."""


class FakeChat:
    """`scripts` answer the next requests, `usual` all others; `requests` are what came."""

    def __init__(self) -> None:
        self.usual = Script()
        self.scripts: list[Script] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.hanging = anyio.Event()
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def settings(self, **changes: Any) -> ChatSettings:
        """As `[plugins.gateway]` would name this server."""
        given = {"model": MODEL, "base_url": self.base_url, "prices": {MODEL: PRICE}}
        return ChatSettings(**(given | changes))

    def prompt(self, number: int = -1) -> str:
        """The user's message of a request."""
        return str(self.requests[number]["messages"][-1]["content"])

    async def answer(self, body: dict[str, Any]) -> Response[Any]:
        self.requests.append(body)
        script = self.scripts.pop(0) if self.scripts else self.usual
        if script.status != 200:
            error = {"message": "not now", "type": "server_error", "param": None, "code": None}
            return Response({"error": error}, status_code=script.status, headers=script.headers)
        if script.hang_after == 0:
            self.hanging.set()
            await anyio.sleep_forever()
        return Stream(self._events(script, body), media_type="text/event-stream", status_code=200)

    async def _events(self, script: Script, body: dict[str, Any]) -> AsyncIterator[bytes]:
        said = script.text if isinstance(script.text, str) else script.text(body["messages"][-1]["content"])
        pieces = re.findall(r"\s*\S+", said) if said.strip() else []
        yield event(body, [choice({"role": "assistant", "content": ""})])
        for number, piece in enumerate(pieces):
            if number == script.cut_after:
                raise ConnectionResetError("as the test wants")
            if number == script.hang_after:
                self.hanging.set()
                await anyio.sleep_forever()
            yield event(body, [choice({"content": piece})])
        while script.endless:
            await anyio.lowlevel.checkpoint()
            yield event(body, [choice({"content": " and so on"})])
        if script.garbage is not None:
            yield f"data: {script.garbage}\n\n".encode()
        if script.finish is not None:
            yield event(body, [choice({}, script.finish)])
        if script.usage is not None and body["stream_options"]["include_usage"]:
            right = {"prompt_tokens": given(body), "completion_tokens": len(pieces) + 1}
            counted = right if script.usage == "right" else script.usage
            yield event(body, [], counted)
        yield b"data: [DONE]\n\n"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeChat]:
        @post("/v1/chat/completions")
        async def completions(
            request: Request[Any, Any, Any], data: JSONBody[dict[str, Any]]
        ) -> Response[Any]:
            self.keys.append(request.headers.get("authorization"))
            return await self.answer(data)

        app = Litestar([completions], logging_config=None, openapi_config=None)
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off",
                                timeout_graceful_shutdown=0)  # fmt: skip
        server = uvicorn.Server(config)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            await eventually_async(lambda: server.started)
            self.port = server.servers[0].sockets[0].getsockname()[1]
            try:
                yield self
            finally:
                server.should_exit = True


def given(body: dict[str, Any]) -> int:
    """Input tokens as this server counts them: a token for four bytes."""
    return sum(len(message["content"].encode()) for message in body["messages"]) // 4


def choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def event(body: dict[str, Any], choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
    """One server-sent event, as OpenAI writes it."""
    chunk = {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_795_000_000, "model": body["model"],
        "service_tier": "default", "system_fingerprint": "fp_1", "choices": choices, "usage": usage,
    }  # fmt: skip
    if usage is not None and isinstance(usage.get("prompt_tokens"), int):
        usage.setdefault("total_tokens", usage["prompt_tokens"] + usage.get("completion_tokens", 0))
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
