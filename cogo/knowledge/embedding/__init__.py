"""Texts into vectors: which model, where its files are, how many texts at a time.

An embedder is opened by the description that the database keeps of the vectors (`Model`), so that questions
are embedded as the texts were. The default one runs in the process (onnxruntime, the extra `embed`); any
server that speaks OpenAI's /v1/embeddings can take its place. Without one, the index works on words alone.
"""

from __future__ import annotations

from .model import Embedder, Model, open_embedder

__all__ = ["Embedder", "Model", "open_embedder"]
