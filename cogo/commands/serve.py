"""The process itself, and the probe that asks whether it is ready."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogo.commands.base import command, emit, note, say

if TYPE_CHECKING:
    from cogo.core.runtime import Runtime

PROBE_EVERY_S = 0.1


@command(
    example="cogo serve\nDATABASE_URL=postgresql://… cogo serve --roles orchestrator,executor --migrate",
    uvloop=True,
)
@click.option("--roles", help="Comma list; default: plugins.toml, else every installed role.")
@click.option("--host", help="Address to listen on for HTTP (127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port for HTTP (3100; 0 takes a free one).")
@click.option("--shard", help="Shards to consume: 0, 0-3 or 0,2 (0).")
@click.option("--migrate", is_flag=True, help="Migrate DATABASE_URL first; the embedded database always is.")
@click.option("--config", type=click.Path(path_type=Path), help="A plugins.toml other than ./plugins.toml.")
@click.option("--simulation", is_flag=True, help="Decisions and feedback may bring their own time (now_ms).")
async def serve(
    *,
    roles: str | None,
    host: str | None,
    port: int | None,
    shard: str | None,
    migrate: bool,
    config: Path | None,
    simulation: bool,
    as_json: bool,
) -> None:
    """Run the process: roles, bus, HTTP, embedded Postgres.

    Without DATABASE_URL it starts an embedded Postgres in the data home, or shares the one that another
    `cogo serve` of this data home runs. SIGTERM and Ctrl-C end it: claimed messages are finished, the
    others given back. With --json the log has one JSON object a line, and one on
    stdout says when it is ready.
    """
    import cogo
    from cogo.core import telemetry
    from cogo.core.settings import given, load

    flags = given(roles=roles, host=host, port=port, agent_shard=shard)
    loaded = load(flags=flags, file=config)
    if simulation:
        loaded.settings.plugins.setdefault("orchestrator", {})["simulation"] = True
    telemetry.configure(loaded.settings.log_level, as_json=as_json)

    started: list[Runtime] = []

    def announce(runtime: Runtime) -> None:
        started.append(runtime)
        facts = self_portrait(runtime)
        for line in portrait_lines(facts):
            telemetry.log.info(line)
        if as_json:
            emit(facts)

    await cogo.serve(loaded=loaded, migrate=migrate, signals=True, ready=announce)
    if started and (stuck := started[0].abandoned_threads):
        # The interpreter would wait for them, perhaps for ever; their messages were given back.
        telemetry.log.warning(telemetry.line("process.abandons", threads=stuck))
        logging.shutdown()
        os._exit(0)


def self_portrait(runtime: Runtime) -> dict[str, Any]:
    """What an operator wants to know of a process that has just started."""
    from cogo.commands.doctor import database_name
    from cogo.commands.local import read

    own = read(runtime.settings.data_dir / "servers" / f"{os.getpid()}.json")
    return {
        "pid": os.getpid(),
        "roles": runtime.roles,
        "holder": runtime.holder,
        "epoch": runtime.epoch,
        "lanes": [str(lane) for lane in runtime.lanes],
        "database": database_name(runtime.settings),
        "data_dir": str(runtime.settings.data_dir),
        "listener": runtime.health().listener_mode,
        "url": own.url if own else None,
    }


def portrait_lines(facts: dict[str, Any]) -> Iterator[str]:
    """The first lines of the log: roles, holder, database, listener, URL."""
    from cogo.core.telemetry import line

    yield line(
        "process.started", roles=",".join(facts["roles"]), holder=facts["holder"], epoch=facts["epoch"]
    )
    yield line(
        "process.database", name=facts["database"], data_dir=facts["data_dir"], listener=facts["listener"]
    )
    if facts["url"]:
        login = "cogo token --tenant demo --login" if "metrics" in facts["roles"] else None
        yield line("process.http", url=facts["url"], dashboard=login)


@command(example="cogo healthcheck\ncogo healthcheck --wait 30")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), default=0.0, help="Go on asking for so many seconds."
)
async def healthcheck(*, wait_s: float, as_json: bool) -> int:
    """Exit 0 if the local server is ready.

    Asks every `cogo serve` of this data home over its unix socket, so it also works for processes
    without HTTP. Ready: the database and the listener are fresh, and it is not stopping.
    """
    import anyio

    deadline = time.monotonic() + wait_s
    while True:
        found = probe_all()
        ready = bool(found) and all(row["status"] == "ready" for row in found)
        left_s = deadline - time.monotonic()
        if ready or left_s <= 0:
            break
        await anyio.sleep(min(PROBE_EVERY_S, left_s))
    if as_json:
        emit({"ready": ready, "servers": found})
    else:
        for row in found:
            say(f"server {row['pid']}: {row['status']}")
        if not found:
            note("no `cogo serve` of this data home runs here")
    return 0 if ready else 1


def probe_all() -> list[dict[str, Any]]:
    """What each live server of the data home says of itself."""
    from cogo.commands.local import servers
    from cogo.commands.operate import loaded
    from cogo.http.probe import probe
    from cogo.http.unix import socket_path

    settings = loaded().settings
    found: list[dict[str, Any]] = []
    for server in servers(settings):
        row: dict[str, Any] = {"pid": server.pid, "holder": server.holder, "roles": server.roles}
        try:
            _, body = probe(socket_path(settings.data_dir, server.pid))
        except OSError as exc:
            found.append(row | {"status": f"no answer ({exc})"})
        else:
            found.append(row | body)
    return found
