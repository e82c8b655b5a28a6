"""`cogo doctor`: one line for each thing that has to be right, with what to do when it is not."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import anyio
import click
import msgspec

from cogo.commands import local, queries
from cogo.commands.base import command, duration, emit, say
from cogo.commands.operate import loaded
from cogo.core.errors import CogoError, SchemaAhead, SchemaBehind

if TYPE_CHECKING:
    from cogo.core.bus import Bus
    from cogo.core.settings import Settings

SKEW_MAX_S = 2.0
UNREADY_S = 3.0
POSTGRES_MIN = 15
PRIVATE = ("pg", "run", "servers", "secret.json")
MARKS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "wrong": ("WRONG", "red")}


class Check(msgspec.Struct, frozen=True):
    """What was looked at and how it stands; `wrong` makes the exit code 1."""

    name: str
    state: Literal["ok", "warning", "wrong"]
    detail: str
    hint: str = ""


@command(example="cogo doctor\ncogo doctor --json | jq '.checks[] | select(.state != \"ok\")'")
async def doctor(*, as_json: bool) -> int:
    """Check the installation; exit 1 if something is wrong.

    Looks at the settings, the data home, the database and its schema, the listener, clocks, lanes that
    nobody serves, stuck claims and dead letters. It changes nothing.
    """
    checks = [check async for check in examine()]
    if as_json:
        emit({"ok": all(check.state != "wrong" for check in checks), "checks": checks})
    else:
        for check in checks:
            text, colour = MARKS[check.state]
            say(f"{click.style(text.ljust(5), fg=colour)} {check.name}: {check.detail}")
            if check.hint and check.state != "ok":
                say(f"        hint: {check.hint}")
    return int(any(check.state == "wrong" for check in checks))


async def examine() -> AsyncIterator[Check]:
    """Every check; what depends on a part that is wrong is left out."""
    import cogo

    try:
        settings = loaded().settings
    except CogoError as exc:
        yield failed("settings", exc)
        return
    yield Check("settings", "ok", f"data home {settings.data_dir}, database {database_name(settings)}")
    for check in data_home(settings):
        yield check
    async for check in live_servers(settings):
        yield check
    try:
        async with cogo.connect() as bus:
            async for check in of_database(bus, settings):
                yield check
    except CogoError as exc:
        yield failed("database", exc)


def failed(name: str, error: CogoError) -> Check:
    return Check(name, "wrong", error.line(), error.next_step)


def database_name(settings: Settings) -> str:
    """Which database it is, without its password."""
    if settings.database_url is None:
        return "embedded"
    from urllib.parse import urlsplit

    parts = urlsplit(settings.database_url.reveal())
    return f"{parts.hostname or 'local'}{parts.path} (DATABASE_URL)"


def data_home(settings: Settings) -> Iterator[Check]:
    """Owner and modes: keys and tables must not be open to other accounts."""
    home = settings.data_dir
    if not home.exists():
        yield Check("data home", "ok" if not settings.embedded else "warning", f"{home} does not exist yet",
                    "`cogo serve` makes it.")  # fmt: skip
        return
    found = home.stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        yield Check("data home", "wrong", f"{home} belongs to uid {found.st_uid}, not to {os.geteuid()}",
                    "Run as that user, or choose another COGO_DATA_DIR.")  # fmt: skip
    elif mode & 0o022:
        yield Check("data home", "wrong", f"others may write to {home} (mode {mode:o})", f"chmod go-w {home}")
    else:
        yield Check("data home", "ok", f"{home}, mode {mode:o}")
    for part in (home / name for name in PRIVATE):
        if part.exists() and (open_to := stat.S_IMODE(part.stat().st_mode)) & 0o077:
            yield Check(part.name, "wrong", f"{part} has mode {open_to:o}", f"chmod go-rwx {part}")


async def live_servers(settings: Settings) -> AsyncIterator[Check]:
    """The processes of this data home, and whether they say that they are ready."""
    found = local.servers(settings)
    if not found:
        yield Check(
            "servers", "warning", "no `cogo serve` of this data home runs here", "Start one: cogo serve"
        )
    for server in found:
        name, about = f"server {server.pid}", f"roles {','.join(server.roles)}, {server.url or 'no HTTP'}"
        status, body = await ask_ready(settings, server.pid)
        if status == HTTPStatus.OK:
            yield Check(name, "ok", f"{about}, ready, listener {body['listener_mode']}")
        else:
            yield Check(name, "wrong", f"{about}: {body}", "Its log names what is missing.")


async def ask_ready(settings: Settings, pid: int) -> tuple[int, Any]:
    """What a process answers to /readyz; asked again for a moment, since one late beat is nothing wrong."""
    from cogo.http.probe import probe
    from cogo.http.unix import socket_path

    until = time.monotonic() + UNREADY_S
    while True:
        try:
            status, body = probe(socket_path(settings.data_dir, pid))
        except OSError as exc:
            status, body = 0, f"does not answer: {exc}"
        if status == HTTPStatus.OK or time.monotonic() > until:
            return status, body
        await anyio.sleep(0.2)


async def of_database(bus: Bus, settings: Settings) -> AsyncIterator[Check]:
    """Version, clock, schema, listener, what lies on the bus, and what is indexed."""
    dsn = local.database_dsn(settings)
    began = time.time()
    row = await bus.db.fetch_one(queries.SERVER)
    assert row is not None
    took_ms = (time.time() - began) * 1000
    old = int(str(row["version"]).split(".", maxsplit=1)[0].split()[0]) < POSTGRES_MIN
    yield Check("database", "wrong" if old or row["standby"] else "ok",
                f"Postgres {row['version']}, answers in {duration(took_ms)}" + (", a standby" if row["standby"] else ""),
                f"COGO needs a primary of Postgres {POSTGRES_MIN} or newer.")  # fmt: skip
    skew_s = abs(row["now_s"] - (began + took_ms / 2000))
    yield Check("clock", "ok" if skew_s < SKEW_MAX_S else "warning", f"{duration(skew_s * 1000)} off the database",
                "Times in logs will not match; run NTP. Leases use the database's clock alone.")  # fmt: skip
    try:
        await check_schema(dsn)
    except (SchemaBehind, SchemaAhead) as exc:
        yield failed("schema", exc)
        return
    yield Check("schema", "ok", "up to date")
    yield await listener(dsn)
    for check in await on_the_bus(bus):
        yield check
    yield await of_vectors(bus, settings)
    yield await of_tables(bus)


async def check_schema(dsn: str) -> None:
    """Raises SchemaBehind, SchemaAhead."""
    from cogo.core.db import connect
    from cogo.core.migrate import check

    async with await connect(dsn, "cogo:doctor") as conn:
        await check(conn)


async def listener(dsn: str) -> Check:
    """Whether a NOTIFY arrives, which poolers in transaction mode swallow."""
    from cogo.core.listener import pushes_arrive

    began = time.monotonic()
    if await pushes_arrive(dsn, "cogo:doctor"):
        return Check(
            "listener", "ok", f"a NOTIFY arrived within {duration((time.monotonic() - began) * 1000)}"
        )
    return Check("listener", "warning", "no NOTIFY arrives: processes will poll",
                 "Use a session connection (a pooler in transaction mode swallows LISTEN).")  # fmt: skip


async def on_the_bus(bus: Bus) -> list[Check]:
    """Lanes that nobody serves, claims that nobody holds, and recent dead letters."""
    orphans = await bus.db.fetch(queries.ORPHAN_LANES)
    stuck = await bus.db.fetch(queries.STUCK_CLAIMS)
    dead = await bus.db.fetch_value(queries.DEAD_LETTERS)
    return [
        Check("lanes", "wrong" if orphans else "ok",
              "; ".join(f"{r['lane']} has {r['queued']} queued and no live holder" for r in orphans)
              or "every lane with work has a live holder",
              "Start a process with the role of that lane (`cogo plugins`)."),
        Check("claims", "wrong" if stuck else "ok",
              "; ".join(f"{r['id']} ({r['lane']}) held by {r['claimed_by']} for {duration(r['held_ms'])}" for r in stuck)
              or "none is stuck",
              "Start a process that consumes: its reclaimer puts them back."),
        Check("dead letters", "warning" if dead else "ok", f"{dead} failed in the last day",
              "`cogo tail --no-follow -n 100`, then `cogo requeue ID`."),
    ]  # fmt: skip


async def of_vectors(bus: Bus, settings: Settings) -> Check:
    """Which model's vectors answer, how many are lacking, and whether questions can be embedded from here."""
    from cogo.knowledge import vectors
    from cogo.plugins.rag_embed import RagEmbedSettings, model_of

    known = vectors.attach(bus.db, settings)
    try:
        await known.of_questions(["can this be embedded?"])
    finally:
        await known.aclose()
    said, serving, wanted = [], await known.serving(), await vectors.wanted(bus.db)
    if wanted is not None and (lacking := await vectors.count_lacking(bus.db, wanted)):
        said.append(f"{lacking} spans lack the vectors of {wanted.model.name}")
    try:
        own = model_of(msgspec.convert(settings.plugins.get("rag-embed", {}), RagEmbedSettings), known)
    except msgspec.ValidationError as error:
        return Check("vectors", "wrong", f"[plugins.rag-embed]: {error}", "No rag-embed starts with that.")
    if (wanted and wanted.model) != own:
        said.append(f"the settings here ask for {own.name if own else 'no model'}, the database for "
                    f"{wanted.model.name if wanted else 'none'}")  # fmt: skip
    if known.unavailable:
        said.append(f"questions asked here are answered by words alone: {known.unavailable}")
    said += [f"messages for vectors {row['status']}: {row['n']} ({row['error']})"
             for row in await bus.db.fetch(queries.VECTORS_IN_TROUBLE)]  # fmt: skip
    answers = f"{serving.model.name} answers" if serving else "words alone answer"
    return Check("vectors", "warning" if said else "ok", "; ".join([answers, *said]),
                 "Lacking ones come by themselves while a rag-embed runs. After a change of [plugins.rag-embed] or of a "
                 "key restart it: it looks for what is lacking.")  # fmt: skip


async def of_tables(bus: Bus) -> Check:
    """Tables whose rows are documents: each must still have its columns."""
    from cogo.knowledge import sources

    followed = await sources.followed(bus.db)
    broken = [f"{table} has no {what}" for table, what in followed.items() if what]
    return Check("tables", "wrong" if broken else "ok", "; ".join(broken) or f"{len(followed)} are followed",
                 "Correct `tables` of [plugins.rag-dispatcher] and restart it; until then changes there are lost.")  # fmt: skip
