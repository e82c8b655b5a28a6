"""Proves that processes come, go and die while work goes on: nothing lost, nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psycopg
import pytest
from binary import Binary, indexing
from helpers import eventually
from small_repo import write, write_many

ALL = "orchestrator,executor,gateway,rag-embed,kg-builder,metrics,ingress"


def test_sigterm_drains_and_leaves_nothing(binary: Binary):
    """A server that is told to stop ends with 0, unannounced, and its Postgres with it."""
    process = binary.serve("--roles", "orchestrator,executor,reclaimer")
    assert binary.run("healthcheck").returncode == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert binary.server(process) is None
    assert not binary.postgres_runs()
    assert binary.run("healthcheck").returncode == 1


def test_the_first_lines_of_the_log_say_what_runs(binary: Binary):
    """Roles, holder, database, listener mode and URL stand in the log before any work."""
    binary.serve("--roles", "metrics,orchestrator,executor", holder="harbour-1")
    log = eventually(lambda: (text := binary.logs()) and "process.http" in text and text)
    for fact in (
        "metrics,orchestrator,executor",
        "holder=harbour-1",
        "embedded",
        "listener=notify",
        "http://",
    ):
        assert fact in log


def test_a_taken_port_is_an_error_of_configuration(binary: Binary):
    """A port that another program holds ends the start with 78 and says which."""
    first = binary.serve("--roles", "metrics")
    server = binary.server(first)
    assert server is not None
    ran = binary.run("serve", "--roles", "metrics", "--port", str(server.port))
    assert "error[port_in_use]" in ran.stderr
    assert str(server.port) in ran.stderr
    assert ran.returncode == 78


@pytest.mark.timeout(60)
def test_kill_9_in_the_middle_of_indexing_loses_nothing(binary: Binary, tmp_path: Path):
    """Killed while it indexes and started again, a server finishes; every file is there once."""
    folder = write_many(tmp_path / "repo", 400)
    first = binary.serve("--roles", ALL, holder="first")
    index = binary.start("index", str(folder), "--json")
    with psycopg.connect(binary.dsn(), autocommit=True) as conn:
        indexing(conn)
        binary.kill(first)
    binary.serve("--roles", ALL, holder="second")
    assert index.wait(40) == 0, binary.logs()
    assert "the lease of first ended" in lost_claims(binary)
    again = binary.json("index", str(folder))
    assert again["files"] == len([path for path in folder.rglob("*") if path.is_file()])
    assert spans_are_unique(binary)


def lost_claims(binary: Binary) -> str:
    """What the audit says of claims whose holder died."""
    return binary.run("tail", "--no-follow", "--json", "-n", "200", "--kind", "embed_retry").stdout


def spans_are_unique(binary: Binary) -> bool:
    """No span of a file is in the index twice."""
    ran = binary.json("search", "function value module", "-k", "1000")
    spans = [(hit["path"], hit["start"], hit["end"], hit["qualname"]) for hit in ran["hits"]]
    assert len(spans) > 100
    return len(spans) == len(set(spans))


@pytest.mark.timeout(60)
def test_three_processes_share_the_work_and_survive_their_owner(binary: Binary, tmp_path: Path):
    """With roles spread over three servers questions are answered, also after the owner of Postgres was killed."""
    folder = write(tmp_path / "repo")
    owner = binary.serve("--roles", "orchestrator,ingress", holder="one")
    binary.serve("--roles", "executor,gateway", holder="two")
    binary.serve("--roles", "rag-embed,kg-builder,reclaimer", holder="three")
    binary.json("index", str(folder))
    answer = binary.json("ask", "who may hold the boat until the debt is settled?")
    assert answer["found"]
    holders = {row["claimed_by"] for row in binary.json("status", str(answer["id"]))["family"]}
    assert holders == {"one", "two"}
    binary.kill(owner)
    binary.serve("--roles", "orchestrator,ingress", holder="four")
    after = eventually(lambda: asked(binary, "when is the ledger copied to a second disk?"), 20)
    assert "README.md" in after


@pytest.mark.timeout(60)
def test_an_executor_is_a_process_of_its_own(binary: Binary):
    """Work waits while there is none; one with nothing but `--roles executor` hands it out, beside the rest."""
    binary.serve("--roles", "orchestrator,gateway,reclaimer", holder="rest")
    task = json.dumps({"intent": "chat", "payload": {"question": "where is the boat?"}})
    id = binary.json("send", "orchestrator/decide@acme", task)["id"]
    with psycopg.connect(binary.dsn(), autocommit=True) as conn:
        query = "SELECT id FROM public.agent_messages WHERE role = 'execute' AND status = 'queued'"
        assert eventually(lambda: conn.execute(query).fetchone())
    binary.serve("--roles", "executor", holder="dispatcher")
    status = eventually(
        lambda: (s := binary.json("status", str(id)))["message"]["status"] == "done" and s, 20
    )
    held = [(row["lane"], row["claimed_by"]) for row in status["family"]]
    assert held == [
        ("orchestrator/decide/0", "rest"),
        ("orchestrator/execute/0", "dispatcher"),
        ("gateway/chat/0", "rest"),
    ]


def asked(binary: Binary, question: str) -> str:
    ran: subprocess.CompletedProcess[str] = binary.run("ask", question, "--json", "--wait", "10")
    return ran.stdout if ran.returncode == 0 else ""
