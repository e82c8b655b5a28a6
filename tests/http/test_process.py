"""Proves how HTTP lives and ends with its process: ports, the probe socket, a stop, a database that is away."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from hands import fast_settings
from helpers import eventually_async
from http_hands import Served

import cogo
from cogo.core.errors import PortInUse
from cogo.core.model import Role
from cogo.core.runtime import Runtime
from cogo.http.probe import probe
from cogo.http.server import bind_tcp
from cogo.http.unix import socket_path


async def asked(home: Path, address: str) -> tuple[int, Any]:
    """The answer on this process's own probe socket."""
    return await to_thread.run_sync(probe, socket_path(home, os.getpid()), address)


async def noop(_task: dict[str, Any], _ctx: cogo.Context) -> None:
    return None


async def test_a_process_without_routes_opens_no_port(dsn: str, tmp_path: Path):
    """Only the unix socket, for its owner alone; it is gone with the process."""
    home = tmp_path / "home"
    stop, ready = anyio.Event(), anyio.Event()
    found: list[Runtime] = []

    def note(runtime: Runtime) -> None:
        found.append(runtime)
        ready.set()

    async def serve() -> None:
        loaded = fast_settings(data_dir=home)
        await cogo.serve(
            roles=[Role("work", "do", handle=noop)], dsn=dsn, loaded=loaded, stop=stop, ready=note
        )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await ready.wait()
        path = socket_path(home, os.getpid())
        assert path.stat().st_mode & 0o777 == 0o600
        assert await eventually_async(lambda: _ready(home))
        assert (await asked(home, "/health"))[1]["roles"] == found[0].roles
        assert (await asked(home, "/api/messages"))[0] == 404
        text = (home / "servers" / f"{os.getpid()}.json").read_text()
        assert '"port":null' in text
        stop.set()
    assert not path.exists()


async def _ready(home: Path) -> bool:
    return (await asked(home, "/readyz"))[0] == 200


async def test_the_probe_socket_answers_what_the_port_answers(serve: Any, tmp_path: Path):
    """Liveness, readiness and health over both."""
    served: Served = await serve(["ingress"])
    home = tmp_path / "home"
    assert await eventually_async(lambda: _ready(home))
    async with served.client() as client:
        for address in ("/livez", "/readyz"):
            status, body = await asked(home, address)
            answer = await client.get(address)
            assert (answer.status_code, answer.json().keys()) == (status, body.keys())
        assert (await client.get("/health")).json()["version"] == cogo.__version__


async def test_a_taken_port_is_an_error_of_configuration(dsn: str, tmp_path: Path):
    """`port_in_use`, exit 78, and the port is named."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            bind_tcp("127.0.0.1", port)
        assert (caught.value.code, caught.value.exit_code) == ("port_in_use", 78)
        command = [sys.executable, "-m", "cogo", "serve", "--roles", "ingress", "--port", str(port)]
        env = os.environ | {"DATABASE_URL": dsn, "COGO_DATA_DIR": str(tmp_path / "home")}
        ended = await anyio.run_process(command, check=False, env=env, cwd=tmp_path)
    assert ended.returncode == 78, ended.stderr.decode()
    assert f"127.0.0.1:{port}" in ended.stderr.decode()
    assert "port_in_use" in ended.stderr.decode()


async def test_a_stop_ends_streams_and_long_polls_at_once(serve: Any):
    """Waiting requests get their answer as it stands; nobody waits for the grace."""
    served: Served = await serve(["ingress"], grace_s=15.0)
    bus = served.runtime.bus
    id = await bus.enqueue("work/do/0@acme", {})
    ended: dict[str, Any] = {}
    async with served.as_("viewer", "acme") as client:

        async def ask(name: str, path: str) -> None:
            ended[name] = await client.get(path)

        with anyio.fail_after(8):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, "poll", f"/api/messages/{id}/result?wait_ms=60000")
                tasks.start_soon(ask, "stream", f"/api/messages/{id}/stream")

                async def both_wait() -> bool:
                    return await bus.db.fetch_value("SELECT count(*) FROM cogo.bus_waiters") == 2

                assert await eventually_async(both_wait)
                served.runtime.stop.set()
    assert (ended["poll"].status_code, ended["poll"].json()["status"]) == (202, "queued")
    assert ended["stream"].status_code == 200
    assert "event: outcome" not in ended["stream"].text


async def test_a_database_that_is_away_is_503(serve: Any):
    """Every route that needs it says so with Retry-After; liveness doesn't care; then all is well again."""
    served: Served = await serve(["ingress", "metrics", "orchestrator"], ingress_public_tenants="demo")
    database = served.runtime.db
    async with served.as_("admin") as client:
        body = {"tenant": "demo", "intent": "chat", "payload": {}}
        key = {"apikey": cogo_key(served)}
        await database.close()
        for method, path in (("POST", "/functions/v1/orchestrator-chat"), ("GET", "/api/messages"),
                             ("GET", "/api/messages/1"), ("GET", "/api/metrics/summary"),
                             ("GET", "/api/metrics/bus/events"), ("GET", "/api/orchestrator/state"),
                             ("GET", "/dashboard/local")):  # fmt: skip
            answer = await client.request(method, path, json=body if method == "POST" else None, headers=key)
            assert (answer.status_code, answer.json()["code"]) == (503, "bus_unavailable"), path
            assert int(answer.headers["retry-after"]) > 0
        assert (await client.get("/livez")).status_code == 200


async def test_the_schema_says_what_the_server_does(serve: Any):
    """Every error is the problem, probes need no token, and each operation has a description."""
    served: Served = await serve(["ingress", "metrics", "orchestrator"])
    async with served.client() as client:
        schema = (await client.get("/schema")).json()
        assert (await client.get("/schema/openapi.json")).json() == schema
    assert {"type", "title", "status", "detail", "code", "hint"} == set(
        schema["components"]["schemas"]["Problem"]["properties"]
    )
    operations = {path: op for path, ops in schema["paths"].items() for op in ops.values()}
    assert len(operations) >= 20
    for path, operation in operations.items():
        assert list(operation["responses"]["default"]["content"]) == ["application/problem+json"]
        assert "400" not in operation["responses"]
        assert operation["description"], path
    assert operations["/livez"]["security"] == []
    assert set(operations["/api/messages/{message_id}/result"]["responses"]) == {"200", "202", "default"}


def cogo_key(served: Served) -> str:
    from cogo.core.settings import local_keys

    return local_keys(served.tokens).secret_key.reveal()


async def test_an_error_of_ours_is_500_without_its_text(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    """A bug answers `bug` and nothing of the exception; the log has the traceback."""
    served: Served = await serve(["ingress", "metrics"])

    async def broken(*_args: Any) -> Any:
        raise RuntimeError("the secret is s3cr3t")

    monkeypatch.setattr("cogo.plugins.metrics.stats.trace", broken)
    async with served.as_("admin") as client:
        answer = await client.get(f"/api/metrics/trace/{'a' * 32}")
    assert (answer.status_code, answer.json()["code"]) == (500, "bug")
    assert "s3cr3t" not in answer.text
    assert any(record.exc_info and "s3cr3t" in str(record.exc_info[1]) for record in caplog.records)
