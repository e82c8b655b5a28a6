"""A model behind a server that speaks OpenAI's /v1/embeddings, by the `openai` package (extra `llm`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import anyio

from cogo import Retry, errors

from .model import Model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEYS: Final = ("COGO_EMBED_API_KEY", "OPENAI_API_KEY")
"""Names of the key among the settings, the first that is set counts; the second is sent to OpenAI alone. Servers without keys take any."""
BATCH: Final = 128
TIMEOUT_S: Final = 60.0
RETRIES: Final = 2
"""Of the client, at once and after what the server asks for. Then the message is put off."""
PUT_OFF_S: Final = 20.0


class RemoteEmbedder:
    """One client; the requests of one call go one after the other, calls side by side."""

    def __init__(self, model: Model, keys: Mapping[str, str] | None = None) -> None:
        try:
            from openai import AsyncOpenAI  # 0.7 s, which only processes that embed this way should spend
        except ImportError:
            raise errors.ModelUnavailable(
                "openai is missing", hint="pip install 'cogo-agents[llm]'"
            ) from None
        self.model = model
        # The address comes from the database: OpenAI's key goes to OpenAI alone.
        names = KEYS if str(model.base_url).startswith("https://api.openai.com/") else KEYS[:1]
        given = os.environ if keys is None else keys
        key = next((given[name] for name in names if given.get(name)), "none")
        self._client = AsyncOpenAI(
            base_url=model.base_url, api_key=key, timeout=TIMEOUT_S, max_retries=RETRIES
        )

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row per text, in their order. Raises Retry when the server is busy or away."""
        import numpy as np

        found = np.zeros((len(texts), self.model.dimension), np.float32)
        for start in range(0, len(texts), BATCH):
            for place, vector in enumerate(await self._request(texts[start : start + BATCH]), start):
                found[place] = vector
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        found /= np.maximum(lengths, np.float32(1e-12))
        return found

    async def _request(self, texts: Sequence[str]) -> list[list[float]]:
        import openai

        # A space stands for an empty text: servers refuse those, and a refusal would lose the whole batch.
        given = [text if text.strip() else " " for text in texts]
        try:
            answer = await self._client.embeddings.create(
                model=self.model.name, input=given, encoding_format="float"
            )
        except openai.APIStatusError as error:
            if (
                error.status_code == HTTPStatus.TOO_MANY_REQUESTS
                or error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
            ):
                why = f"the server of {self.model.name} answers {error.status_code}"
                raise Retry(why, after=_retry_after(error.response), counted=False) from None
            raise errors.ModelUnavailable(
                f"{self.model.base_url} refuses {self.model.name}: {error.message}"[:500],
                hint=f"Check base_url and name in [plugins.rag-embed], and the key in {KEYS[0]}.",
            ) from None
        except openai.APIConnectionError:
            raise Retry(f"{self.model.base_url} does not answer", after=PUT_OFF_S, counted=False) from None
        return self._checked(
            [item.embedding for item in sorted(answer.data, key=lambda item: item.index)], given
        )

    def _checked(self, vectors: list[list[float]], texts: Sequence[str]) -> list[list[float]]:
        if len(vectors) != len(texts):
            raise errors.ModelUnavailable(
                f"{self.model.name} answered {len(vectors)} vectors for {len(texts)} texts"
            )
        for vector in vectors:
            if len(vector) != self.model.dimension:
                raise errors.ModelUnavailable(
                    f"{self.model.name} makes vectors of {len(vector)} numbers, {self.model.dimension} are set",
                    hint="Correct `dimension` in [plugins.rag-embed].",
                )
        return vectors

    async def aclose(self) -> None:
        """Close the connections for good."""
        with anyio.CancelScope(shield=True):
            await self._client.close()


def _retry_after(response: Any) -> float:
    """What the server asks for, in seconds; a date is taken as not given."""
    try:
        return min(max(float(response.headers["retry-after"]), 1.0), 3_600.0)
    except (KeyError, ValueError):
        return PUT_OFF_S
