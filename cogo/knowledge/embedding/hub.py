"""Models that a library fetches from a hub and runs in the process: `fastembed:NAME`, `sentence-transformers:NAME`.

The name says which library, the extra of the same name installs it. Its files go to the data home. A text and a
question are embedded alike: models that want a different prefix for each are not for here.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio

from cogo import errors

from .model import Model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Encode = Callable[[list[str]], Any]
"""Texts to rows of numbers."""
BATCH: Final = 32
FEW: Final = 4
"""Texts that don't wait behind others: questions."""


def _fastembed(name: str, cache: Path) -> Encode:
    from fastembed import TextEmbedding

    model = TextEmbedding(model_name=name, cache_dir=str(cache))
    return lambda texts: list(model.embed(texts, batch_size=BATCH))


def _sentence_transformers(name: str, cache: Path) -> Encode:
    from sentence_transformers import SentenceTransformer  # torch: seconds

    model = SentenceTransformer(name, cache_folder=str(cache))
    return lambda texts: model.encode(texts, batch_size=BATCH, show_progress_bar=False)


LIBRARIES: Final = {"fastembed": _fastembed, "sentence-transformers": _sentence_transformers}


class HubEmbedder:
    """One loaded model; it is fetched and loaded at the first text."""

    def __init__(self, data_dir: Path, model: Model) -> None:
        self.model = model
        self._library, _, self._name = model.name.partition(":")
        if importlib.util.find_spec(self._library.replace("-", "_")) is None:
            raise errors.ModelUnavailable(
                f"{self._library} is missing", hint=f"pip install 'cogo-agents[{self._library}]'"
            )
        self._cache = data_dir / "models" / self._library
        self._loading = threading.Lock()
        self._encode: Encode | None = None
        self._texts, self._questions = anyio.CapacityLimiter(1), anyio.CapacityLimiter(2)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row per text, in their order. Raises ModelUnavailable."""
        limiter = self._questions if len(texts) <= FEW else self._texts
        return await anyio.to_thread.run_sync(self._vectors, list(texts), limiter=limiter)

    async def aclose(self) -> None:
        """Forget the loaded model."""
        self._encode = None

    def _vectors(self, texts: list[str]) -> NDArray[np.float32]:
        import numpy as np

        found = np.asarray(self._loaded()(texts), np.float32)
        if found.shape != (len(texts), self.model.dimension):
            raise errors.ModelUnavailable(
                f"{self.model.name} makes vectors of {found.shape[-1]} numbers, {self.model.dimension} are set",
                hint="Correct `dimension` in [plugins.rag-embed].",
            )
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        vectors: NDArray[np.float32] = found / np.maximum(lengths, np.float32(1e-12))
        return vectors

    def _loaded(self) -> Encode:
        with self._loading:
            if self._encode is None:
                try:
                    self._encode = LIBRARIES[self._library](self._name, self._cache)
                except Exception as error:  # the libraries raise what their hubs and parsers raise
                    raise errors.ModelUnavailable(
                        f"{self.model.name} can't be loaded: {type(error).__name__}: {error}"[:500],
                        hint="Check the name in [plugins.rag-embed], and that the hub can be reached the first time.",
                    ) from error
            return self._encode
