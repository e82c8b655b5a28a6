"""The model that runs in the process: MiniLM on onnxruntime, without torch.

Its files are in the data home, put there by `cogo models install` (install.py).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from cogo import errors

from .model import Model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INSTALL: Final = "`cogo models install` puts it into the data home."
TOKENS_MAX: Final = 256
"""Of a text; what comes after is not read. The model was trained on no longer ones."""
BATCH_TOKENS: Final = 1_024
"""Of a batch, padding included; larger ones are no faster."""


class Manifest(msgspec.Struct, frozen=True):
    """`model.json` beside the model's files."""

    model: Model
    weights_sha256: str


def folder(data_dir: Path, name: str) -> Path:
    """Where the files of a model are, or belong."""
    return data_dir / "models" / name


def installed(data_dir: Path, name: str) -> Model | None:
    """What is installed under that name."""
    try:
        text = (folder(data_dir, name) / "model.json").read_bytes()
        return msgspec.json.decode(text, type=Manifest).model
    except (OSError, msgspec.MsgspecError):
        return None


class LocalEmbedder:
    """One session of onnxruntime, loaded at the first text."""

    def __init__(self, data_dir: Path, model: Model) -> None:
        found = installed(data_dir, model.name)
        if found != model:
            state = "is not installed here" if found is None else f"is installed here as {found.revision}"
            raise errors.ModelUnavailable(f"the model {model.name} {model.revision} {state}")
        self.model = model
        self._folder = folder(data_dir, model.name)
        # A batch runs on one core, so that many texts fill all of them: measured, that is a fifth faster than
        # one batch on two. A question doesn't queue behind them.
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        self._texts, self._questions = anyio.CapacityLimiter(cores), anyio.CapacityLimiter(cores)
        self._loading = threading.Lock()
        self._tokenizer: Any = None
        self._session: Any = None

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row per text, in their order."""
        import numpy as np

        found = np.zeros((len(texts), self.model.dimension), np.float32)
        encoded = await anyio.to_thread.run_sync(self._tokens, list(texts), limiter=self._questions)
        batches = list(_batches([len(tokens) for tokens in encoded]))
        limiter = self._questions if len(batches) == 1 else self._texts

        async def one(places: list[int]) -> None:
            some = [encoded[place] for place in places]
            found[places] = await anyio.to_thread.run_sync(self._vectors, some, limiter=limiter)

        async with anyio.create_task_group() as tasks:
            for places in batches:
                tasks.start_soon(one, places)
        return found

    async def aclose(self) -> None:
        """Forget the loaded model."""
        self._tokenizer = self._session = None

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        with self._loading:
            if self._session is None:
                self._load()
        return [encoded.ids for encoded in self._tokenizer.encode_batch_fast(texts)]

    def _vectors(self, encoded: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Of one batch, its longest text last."""
        import numpy as np

        ids = np.zeros((len(encoded), len(encoded[-1])), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        vectors: NDArray[np.float32]
        (vectors,) = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
        return vectors

    def _load(self) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise errors.ModelUnavailable(
                f"{error.name} is missing: pip install 'cogo-agents[embed]'"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._session = onnxruntime.InferenceSession(
            self._folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of the texts, those of like length together, so that little is padded; the longest comes last."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
