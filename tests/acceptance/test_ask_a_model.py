"""Proves that `cogo ask` shows what a model writes as it comes, what its citations name, what it cost, and follow-ups."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import anyio.to_thread
from binary import Binary
from chat_hands import MODEL, FakeChat
from knowledge_hands import write

QUESTION = "What does one night at the pontoon cost?"
SETTINGS = """
[plugins.gateway]
model = "{model}"
base_url = "{url}"
prices = {{ "{model}" = {{ input = 1.0, output = 4.0 }} }}
"""


async def ask(binary: Binary, question: str, *options: str) -> CompletedProcess[str]:
    return await anyio.to_thread.run_sync(partial(binary.run, "ask", question, "--repo", "harbour", *options))


async def test_an_answer_by_a_model_is_shown_as_it_comes(binary: Binary, tmp_path: Path) -> None:
    root = write(tmp_path / "harbour")
    async with FakeChat().running() as server:
        (binary.cwd / "plugins.toml").write_text(SETTINGS.format(model=MODEL, url=server.base_url))
        await anyio.to_thread.run_sync(partial(binary.serve, holder="harbour-1"))
        await anyio.to_thread.run_sync(partial(binary.json, "index", str(root)))
        ran = await ask(binary, QUESTION, "--stream", "--conversation", "talk")
        assert ran.returncode == 0, ran.stderr
        first, *places = ran.stdout.splitlines()
        assert first == server.usual.text
        assert places[0] == "  [1] harbour/fees.py:13-14"
        assert f"({MODEL}, " in ran.stdout + ran.stderr
        assert " USD)" in ran.stdout + ran.stderr

        server.usual.text = "The moon is cheese [42]."
        ran = await ask(binary, "and who calls it?", "--stream", "--conversation", "talk")
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith("The moon is cheese [42].\n")
        assert "harbour/fees.py:12-14" in ran.stdout, "what was streamed is replaced"
        assert f"(extractive, {MODEL}: uncited, " in ran.stdout + ran.stderr

        ran = await ask(binary, "and who calls it?", "--conversation", "no name")
        assert ran.returncode == 1
        assert "task_invalid" in ran.stderr
