"""The real model for tests, put beside the environment once, and a server that speaks OpenAI's embeddings."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from helpers import eventually_async
from litestar import Litestar, Request, Response, post
from litestar.params import JSONBody

from cogo.knowledge.embedding import Model, install, local

MODELS = Path(sys.prefix) / ".cogo-test"
"""A data home that holds models alone."""
MINILM = install.MINILM.model
DIMENSION = 8


def models_home() -> Path:
    """A data home in which minilm is installed. Raises ModelUnavailable without a network the first time."""
    if local.installed(MODELS, "minilm") != MINILM:
        MODELS.mkdir(exist_ok=True)
        install.install("minilm", MODELS)
    return MODELS


def hashed(text: str) -> list[float]:
    """A vector that only the same text has."""
    return [
        float(n)
        for n in struct.unpack(f"{DIMENSION}b", hashlib.blake2b(text.encode(), digest_size=8).digest())
    ]


class FakeServer:
    """Answers like /v1/embeddings; `answers` are what the next requests get instead: (status, headers)."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        """The Authorization of each request."""
        self.dimension = DIMENSION
        self.lose = 0
        """Vectors that are left out of an answer."""
        self.port = 0

    def model(self, revision: str = "1") -> Model:
        return Model("hashes", DIMENSION, revision, f"http://127.0.0.1:{self.port}/v1")

    def answer(self, body: dict[str, Any]) -> Response[Any]:
        self.requests.append(body)
        if self.answers:
            status, headers = self.answers.pop(0)
            return Response({"error": {"message": "not now"}}, status_code=status, headers=headers)
        data = [
            {"object": "embedding", "index": i, "embedding": hashed(text)[: self.dimension]}
            for i, text in enumerate(body["input"])
        ]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        kept = data[::-1][: len(data) - self.lose]  # the order of an answer means nothing
        return Response(
            {"object": "list", "data": kept, "model": body["model"], "usage": usage}, status_code=200
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeServer]:
        @post("/v1/embeddings")
        async def embeddings(
            request: Request[Any, Any, Any], data: JSONBody[dict[str, Any]]
        ) -> Response[Any]:
            self.keys.append(request.headers.get("authorization"))
            return self.answer(data)

        config = uvicorn.Config(
            Litestar([embeddings]), host="127.0.0.1", port=0, log_level="error", lifespan="off"
        )
        server = uvicorn.Server(config)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            await eventually_async(lambda: server.started)
            self.port = server.servers[0].sockets[0].getsockname()[1]
            try:
                yield self
            finally:
                server.should_exit = True
