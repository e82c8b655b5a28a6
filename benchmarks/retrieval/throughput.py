"""Spans embedded a second by our path and by bare onnxruntime, on the same texts in the same run.

    python benchmarks/retrieval/throughput.py [FOLDER] [--texts N] [--rounds N]

Ours: `LocalEmbedder`, all texts at once, and in the batches of `vectors.fill`. Bare: the same model file, sorted by
length, batches of 2,048 tokens, as many threads within an operation as there are cores. They take turns; the
medians are compared. The bar: ours at least 90% of bare.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio

from cogo.core.settings import load
from cogo.knowledge import chunking, scan, vectors
from cogo.knowledge.embedding import local

BATCH_TOKENS = 2_048
BAR = 0.9


def texts_of(root: Path, count: int) -> list[str]:
    """What is embedded of spans of the folder, at random, always the same ones."""
    found: list[str] = []
    for path in scan.list_files(scan.open_root(str(root))):
        try:
            read = scan.read_file(root, path)
        except scan.Skip:
            continue
        chunks = chunking.chunk_file(path, read.text).chunks
        found += [vectors.embedded_texts(path, c.kind, c.qualname, c.text)[0] for c in chunks]
    return random.Random(1).sample(found, min(count, len(found)))


def bare(folder: Path) -> Callable[[Sequence[str]], None]:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(local.TOKENS_MAX)

    def run(batch: list[list[int]]) -> None:
        ids = np.zeros((len(batch), len(batch[-1])), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        session.run(None, {"input_ids": ids, "attention_mask": mask})

    def embed(texts: Sequence[str]) -> None:
        batch: list[list[int]] = []
        for tokens in sorted((e.ids for e in tokenizer.encode_batch_fast(list(texts))), key=len):
            if batch and (len(batch) + 1) * len(tokens) > BATCH_TOKENS:
                run(batch)
                batch = []
            batch.append(tokens)
        run(batch)

    return embed


async def measure(root: Path, count: int, rounds: int) -> dict[str, float]:
    data_dir = load().settings.data_dir
    model = local.installed(data_dir, "minilm")
    if model is None:
        raise SystemExit("no model here: `cogo models install` fetches it")
    ours, theirs = local.LocalEmbedder(data_dir, model), bare(local.folder(data_dir, "minilm"))
    texts = texts_of(root, count)

    async def batches() -> None:
        for start in range(0, len(texts), vectors.BATCH):
            await ours.embed(texts[start : start + vectors.BATCH])

    async def at_once() -> None:
        await ours.embed(texts)

    async def bare_() -> None:
        await anyio.to_thread.run_sync(theirs, texts)

    systems: dict[str, Any] = {
        "bare onnxruntime": bare_,
        "ours": at_once,
        f"ours, {vectors.BATCH} a time": batches,
    }
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(sorted(systems), len(systems)):
            began = time.perf_counter()
            await systems[name]()
            rates[name].append(len(texts) / (time.perf_counter() - began))
    return {name: statistics.median(found[1:]) for name, found in rates.items()}  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")) / "asyncio"
    )
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rates = anyio.run(measure, args.folder.resolve(), args.texts, args.rounds)
    for name, rate in rates.items():
        ratio = rate / rates["bare onnxruntime"]
        state = "" if name.startswith("bare") else "pass" if ratio >= BAR else "FAIL"
        print(f"{name:>20}  {rate:6.1f} spans/s  {ratio:.2f}  {state}")


if __name__ == "__main__":
    main()
