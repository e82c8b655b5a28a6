"""Proves that indexing goes on where kill -9 cut it off: the rows are those of a run that nothing disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from anyio.from_thread import start_blocking_portal
from binary import Binary
from embedding_hands import FakeServer
from helpers import eventually

FILES, FUNCTIONS = 300, 36
SPANS = FILES * (FUNCTIONS + 1)
ROLES = "rag-embed,kg-builder,reclaimer"
CHUNKS = """
SELECT f.path, f.lang, f.n_chunks, c.ord, c.kind, c.qualname, c.start_line, c.end_line, c.text, c.digest
FROM cogo.kb_repos r JOIN cogo.kb_files f ON f.repo_id = r.id JOIN cogo.kb_chunks c ON c.file_id = f.id
WHERE r.name = %s ORDER BY f.path, c.ord
"""
POSTINGS = """
SELECT f.path, p.term, p.ords, p.weights FROM cogo.kb_repos r JOIN cogo.kb_files f ON f.repo_id = r.id
JOIN cogo.kb_postings p ON p.file_id = f.id WHERE r.name = %s ORDER BY 1, 2
"""
VECTORS = """
SELECT f.path, v.digest, v.vector FROM cogo.kb_repos r JOIN cogo.kb_files f ON f.repo_id = r.id
JOIN cogo.kb_vectors_1 v ON v.file_id = f.id AND v.repo_id = r.id WHERE r.name = %s ORDER BY 1, 2
"""
INDEXED = "SELECT count(*) FROM cogo.kb_files"
EMBEDDED = "SELECT count(*) FROM cogo.kb_vectors_1"
OPEN = "SELECT count(*) FROM public.agent_messages WHERE status NOT IN ('done')"


@pytest.fixture
def embeddings(binary: Binary) -> Iterator[FakeServer]:
    """A server of vectors that only equal texts share, in the settings of every process."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(FakeServer().running()) as server,
    ):
        model = server.model()
        (binary.cwd / "plugins.toml").write_text(
            f'[plugins.rag-embed]\nembedder = {{ name = "{model.name}", dimension = {model.dimension}, '
            f'base_url = "{model.base_url}" }}\n'
        )
        yield server


def write_functions(root: Path) -> Path:
    root.mkdir()
    for n in range(FILES):
        functions = [
            f'def berth_{n}_{i}(boat):\n    """Moor boat {i} of pontoon {n}."""\n    return boat * {n + i}\n'
            for i in range(FUNCTIONS)
        ]
        (root / f"pontoon_{n:03}.py").write_text(f'"""Pontoon {n}."""\n\n\n' + "\n\n".join(functions))
    return root


@pytest.mark.timeout(60)
def test_vectors_come_behind_and_searches_say_when_they_are_not_used(
    binary: Binary, embeddings: FakeServer, tmp_path: Path
) -> None:
    folder = tmp_path / "marina"
    folder.mkdir()
    (folder / "berth.py").write_text('def berth(boat):\n    """Moor the boat."""\n    return boat\n')
    binary.serve("--roles", ROLES)
    binary.json("index", str(folder))
    eventually(lambda: counted(binary, "SELECT count(*) FROM cogo.kb_models WHERE serving"), 15)
    (hit,) = binary.json("search", "moor a boat")["hits"]
    assert hit["by_vectors"]
    doctor = {check["name"]: check for check in binary.json("doctor")["checks"]}
    assert (doctor["vectors"]["state"], doctor["vectors"]["detail"]) == ("ok", "hashes answers")
    embeddings.answers = [(401, {})]
    ran = binary.run("search", "moor a boat")
    assert ran.returncode == 0
    assert "words alone decided: ModelUnavailable" in ran.stderr
    assert "berth.py:1-3" in ran.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_9_leaves_the_rows_of_an_undisturbed_run(
    binary: Binary, embeddings: FakeServer, tmp_path: Path
) -> None:
    """Twice among the files and once among the vectors; nothing is lost, nothing is there twice."""
    folder = write_functions(tmp_path / "marina")
    process = binary.serve("--roles", ROLES)
    index = binary.start("index", str(folder), "--name", "cut", "--json")
    for what, enough in ((INDEXED, 40), (INDEXED, 150), (EMBEDDED, 2_000)):
        eventually(lambda what=what, enough=enough: counted(binary, what) >= enough, 90)
        binary.kill(process)
        process = binary.serve("--roles", ROLES)
        assert counted(binary, what) < {INDEXED: FILES, EMBEDDED: SPANS}[what], "it was cut off in the middle"
    assert index.wait(120) == 0, binary.logs()
    binary.json("index", str(folder), "--name", "whole", timeout_s=120)
    eventually(
        lambda: counted(binary, EMBEDDED) == 2 * SPANS and counted(binary, OPEN) == 0, 240, every_s=0.5
    )
    with psycopg.connect(binary.dsn(), autocommit=True) as conn:
        rows: dict[str, list[list[Any]]] = {
            name: [conn.execute(sql, (name,)).fetchall() for sql in (CHUNKS, POSTINGS, VECTORS)]
            for name in ("cut", "whole")
        }
        serving = conn.execute("SELECT name FROM cogo.kb_models WHERE serving").fetchall()
    assert len(rows["whole"][0]) == SPANS > 10_000
    assert len(rows["whole"][2]) == SPANS
    for cut, whole in zip(rows["cut"], rows["whole"], strict=True):
        assert cut == whole
    assert serving == [("hashes",)]


def counted(binary: Binary, sql: str) -> int:
    """0 while the database starts, or the table isn't there yet."""
    try:
        with psycopg.connect(binary.dsn(), autocommit=True, connect_timeout=5) as conn:
            row = conn.execute(sql).fetchone()
    except (psycopg.Error, OSError):
        return 0
    return int(row[0]) if row else 0
