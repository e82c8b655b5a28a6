"""What an embedder is, and how one is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Model(msgspec.Struct, frozen=True):
    """Which model vectors come from; two of different models can't be compared."""

    name: str
    """`minilm`, `fastembed:NAME`, `sentence-transformers:NAME`, or a model of an OpenAI-compatible server."""
    dimension: Annotated[int, msgspec.Meta(ge=1, le=4_000)]
    revision: str = "1"
    """Changes whenever the same text would get another vector."""
    base_url: str | None = None
    """Of the server; None when the model runs in the process."""


class Embedder(Protocol):
    """Turns texts into vectors of length 1."""

    model: Model

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row of `model.dimension` numbers per text, in their order. Raises ModelUnavailable, Retry."""
        ...

    async def aclose(self) -> None:
        """Let go of the loaded model, or of the connections."""
        ...


def open_embedder(model: Model, data_dir: Path, keys: Mapping[str, str] | None = None) -> Embedder:
    """The embedder of this model; `keys` by their environment names (None: the environment's own).

    Raises ModelUnavailable.
    """
    from . import hub

    if model.base_url is not None:
        from . import remote

        return remote.RemoteEmbedder(model, keys)
    if model.name.partition(":")[0] in hub.LIBRARIES:
        return hub.HubEmbedder(data_dir, model)
    from . import local  # onnxruntime takes 0.1 s and 40 MB

    return local.LocalEmbedder(data_dir, model)
