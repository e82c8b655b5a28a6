"""Proves the main job: a repository in, cited answers out, through the bus, by the binary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pluggy
import pytest
from binary import Binary
from small_repo import HOPS, check, write


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write(tmp_path / "harbour")


@pytest.mark.timeout(60)
def test_the_demo_answers_with_true_citations(binary: Binary, repository: Path):
    """From nothing: it starts a server, indexes, asks; every quote stands at its lines; the server is gone."""
    shown = binary.json("demo", str(repository), timeout_s=50)
    assert check(repository, shown) >= 3
    assert shown["change"] is None
    assert shown["indexed"]["nodes"] >= 4
    assert shown["indexed"]["edges"] >= 4
    assert binary.run("healthcheck").returncode == 1
    assert not binary.postgres_runs()


@pytest.mark.timeout(60)
def test_the_demo_uses_the_server_that_runs(binary: Binary, repository: Path):
    """With a server there it starts none, leaves it running, and each question is one trace of three hops."""
    binary.serve()
    before = sorted((binary.home / "servers").glob("*.json"))
    shown = binary.json("demo", str(repository), timeout_s=40)
    assert sorted((binary.home / "servers").glob("*.json")) == before
    check(repository, shown)
    for asked in shown["questions"]:
        one_trace_of_three_hops(binary, asked)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("what", ["this repository", "pluggy"])
def test_the_demo_on_real_sources(binary: Binary, what: str):
    """Three questions from the source's own prose are answered with true citations, a fourth is not found."""
    own = Path(__file__).resolve().parents[2]
    folder = own if what == "this repository" else Path(pluggy.__file__).parent
    shown = binary.json("demo", str(folder), timeout_s=80)
    assert check(folder, shown) >= 3


def one_trace_of_three_hops(binary: Binary, asked: dict[str, Any]) -> None:
    found = binary.json("status", str(asked["id"]))
    family = found["family"]
    assert [row["lane"] for row in family] == [f"{hop}/0" for hop in HOPS]
    assert {row["trace_id"] for row in family} == {asked["trace_id"]}
    assert [row["status"] for row in family] == ["done"] * 3
    assert family[0]["id"] == asked["id"], "the id that the client was given is the id that is answered"
    kinds = [event["kind"] for event in found["events"]]
    wanted = [
        "orchestrate_enqueued",
        "orchestrate_decision",
        "execute_enqueued",
        "gateway_done",
        "execute_done",
    ]
    assert [kind for kind in kinds if kind in wanted[:3]] == wanted[:3]
    assert set(wanted) <= set(kinds)


@pytest.mark.timeout(60)
def test_the_demo_reads_as_text_too(binary: Binary, repository: Path):
    """Without --json a person reads questions, answers with file:line, hops, counts and the dashboard."""
    binary.serve()
    ran = binary.run("demo", str(repository), timeout_s=40)
    assert ran.returncode == 0, ran.stderr
    for text in (
        "Indexed ",
        "1. ",
        "4. ",
        "Not found",
        ".md:",
        "orchestrator/decide",
        "gateway/chat",
        "done ",
        "/dashboard/",
    ):
        assert text in ran.stdout
    assert "Traceback" not in ran.stderr


def test_commands_that_start_nothing_say_what_to_run(binary: Binary, repository: Path):
    """Index and ask without a server end with no_server and name the command that starts one."""
    for arguments in (["index", str(repository)], ["ask", "anything?"]):
        ran = binary.run(*arguments)
        assert "error[no_server]" in ran.stderr
        assert "cogo serve" in ran.stderr
        assert ran.returncode == 78
