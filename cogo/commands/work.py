"""Work that commands put on the bus and follow to its end: indexing a folder, asking a question.

A database that goes away in the middle is waited for: everything here carries an idempotency key, so
sending it again is harmless.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import msgspec

from cogo.core import errors
from cogo.core.model import TERMINAL

if TYPE_CHECKING:
    from cogo.commands.progress import Update
    from cogo.core.bus import Bus
    from cogo.core.model import Result

T = TypeVar("T")

AWAY_MAX_S = 180.0
"""How long the database or the server may be away before a command gives up."""
AWAY = (errors.BusUnavailable, ConnectionError, TimeoutError)
POLL_S = 0.1

LANES = {"rag": "rag/embed", "kg": "kg/build"}
"""What a folder is sent to when it is indexed."""

OF_TRACES = """
SELECT m.status, m.service, count(*) AS n, min(m.error) AS error FROM public.agent_messages m
WHERE m.trace_id = ANY (%s) AND NOT m.payload @> '{"vectors": true}' GROUP BY 1, 2
"""
"""The messages that one waits for; vectors come behind them, and may take ten times as long."""
LEAF = """
WITH RECURSIVE hops AS (
  SELECT id, status, service, role, 0 AS depth FROM public.agent_messages WHERE id = %s
  UNION ALL
  SELECT m.id, m.status, m.service, m.role, hops.depth + 1
  FROM hops JOIN public.agent_messages m ON m.reply_to = hops.id WHERE hops.depth < 32
)
SELECT id, status, service || '/' || role AS lane FROM hops ORDER BY depth DESC LIMIT 1
"""
REPO_NAMES = "SELECT name, root FROM cogo.kb_repos WHERE tenant = %s AND (root = %s OR name = %s)"
ARTIFACT = "SELECT body FROM cogo.artifacts WHERE digest = %s LIMIT 1"
LIVE_LANES = """
SELECT DISTINCT split_part(lane, '/', 1) || '/' || split_part(lane, '/', 2) AS lane
FROM cogo.bus_holders h, unnest(h.lanes) AS lane WHERE h.lease_until > cogo.now()
"""


class Indexed(msgspec.Struct):
    """What indexing left behind, summed over its messages."""

    files: int = 0
    chunks: int = 0
    nodes: int = 0
    edges: int = 0
    elapsed_ms: float = 0.0
    unparsed: dict[str, int] = {}
    """Files in programming languages without a grammar, by language: they are cut into lines."""


async def patient(act: Callable[[], Awaitable[T]], *, on_wait: Callable[[str], None] | None = None) -> T:
    """Await `act()`, and again with growing pauses while database or server are away.

    Raises the last error after AWAY_MAX_S.
    """
    pause_s, until = 0.2, None
    while True:
        try:
            return await act()
        except AWAY as exc:
            until = until or time.monotonic() + AWAY_MAX_S
            if time.monotonic() + pause_s > until:
                raise
            if on_wait is not None:
                on_wait(f"waiting: {exc}")
        await anyio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 3.0)


async def need_lanes(bus: Bus, lanes: Sequence[str]) -> None:
    """Raise NoServer unless a live process serves each of these lanes (`service/role`)."""
    live = {row["lane"] for row in await bus.db.fetch(LIVE_LANES)}
    if missing := [lane for lane in lanes if lane not in live]:
        raise errors.NoServer(
            f"no live process serves {', '.join(missing)}",
            hint="Start one with `cogo serve` (all roles), or with the roles that are missing.",
        )


def repository_root(path: Path) -> Path:
    """The folder of the repository that a path lies in; the path itself when it lies in none."""
    here = path.resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


async def repo_name(bus: Bus, folder: Path, tenant: str) -> str:
    """The name that a folder is indexed under: its own, with a digest when another folder has that one."""
    rows = await patient(partial(bus.db.fetch, REPO_NAMES, (tenant, str(folder), folder.name)))
    names = {row["name"]: row["root"] for row in rows}
    same = next((name for name, root in names.items() if root == str(folder)), None)
    taken = folder.name in names and Path(names[folder.name] or "/").is_dir()
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:6]
    return same or (f"{folder.name}-{digest}" if taken else folder.name)


async def index_folder(
    bus: Bus, folder: Path, name: str, *, tenant: str, update: Update
) -> tuple[Indexed, list[str]]:
    """Send a folder to rag/embed and kg/build and wait until all messages of both traces have ended.

    Returns the totals and the trace ids. Raises WorkFailed when one of the messages did not end as done.
    """
    began = time.monotonic()
    task = {"root": str(folder), "repo": name}
    ids, trace_ids = await send_all(
        bus, [(lane, task) for lane in LANES.values()], tenant=tenant, update=update
    )
    elapsed_ms = round((time.monotonic() - began) * 1000, 1)
    scan, graph = [await whole_value(bus, await patient(partial(bus.peek, id))) for id in ids]
    indexed = await totals(bus, name, tenant, graph, elapsed_ms)
    indexed.unparsed = scan.get("unparsed", {})
    return indexed, trace_ids


async def send_all(
    bus: Bus, tasks: Sequence[tuple[str, dict[str, Any]]], *, tenant: str, update: Update
) -> tuple[list[int], list[str]]:
    """Send each task to its lane (`service/role`) and wait until all that follows from them has ended.

    Returns their ids and the trace ids. Raises WorkFailed when one of the messages did not end as done.
    """
    from cogo.core.telemetry import new_traceparent, trace_id

    run = secrets.token_hex(8)
    ids: list[int] = []
    trace_ids: list[str] = []
    for n, (lane, task) in enumerate(tasks):
        trace = new_traceparent()
        trace_ids.append(str(trace_id(trace)))
        options = {"idempotency_key": f"index-{run}-{n}", "traceparent": trace}
        send = partial(bus.enqueue, f"{lane}/0@{tenant}", task, **options)
        ids.append(await patient(send, on_wait=lambda text: update(0, 0, text)))
    await until_ended(bus, trace_ids, update)
    return ids, trace_ids


async def totals(bus: Bus, repo: str, tenant: str, graph: dict[str, Any], elapsed_ms: float) -> Indexed:
    """What the index holds of a repository now, counted from its rows, and the sizes of its graph."""
    from cogo.knowledge.search import repos

    rows = await patient(partial(repos, bus.db, [tenant]))
    row = next((row for row in rows if row["repo"] == repo), {"files": 0, "chunks": 0})
    return Indexed(row["files"], row["chunks"], graph["nodes"], graph["edges"], elapsed_ms)


async def until_ended(bus: Bus, trace_ids: Sequence[str], update: Update) -> None:
    """Return when every message of these traces has ended but those for vectors. Raises WorkFailed unless all ended as done."""
    pause_s = 0.02
    while True:
        rows = await patient(
            partial(bus.db.fetch, OF_TRACES, (list(trace_ids),)), on_wait=lambda text: update(0, 0, text)
        )
        total = sum(row["n"] for row in rows)
        ended = sum(row["n"] for row in rows if row["status"] in TERMINAL)
        open_lanes = sorted({row["service"] for row in rows if row["status"] not in TERMINAL})
        update(ended, total, ", ".join(open_lanes))
        if total and ended == total:
            break
        await anyio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, POLL_S)
    if wrong := [row for row in rows if row["status"] != "done"]:
        n = sum(row["n"] for row in wrong)
        raise errors.WorkFailed(f"{n} of {total} messages did not end as done: {wrong[0]['error']}")


def as_dict(indexed: Indexed) -> dict[str, Any]:
    return msgspec.structs.asdict(indexed)


async def last_hop(bus: Bus, message_id: int, lane: str, timeout_s: float) -> int:
    """The message of `lane` that a root was delegated to, once it is there; the root if it ends before."""
    with anyio.move_on_after(timeout_s):
        while True:
            row = await patient(partial(bus.db.fetch_one, LEAF, (message_id,)))
            if row is None or row["lane"] == lane or row["status"] in TERMINAL:
                return message_id if row is None else int(row["id"])
            await anyio.sleep(0.02)
    return message_id


async def whole_value(bus: Bus, result: Result) -> dict[str, Any]:
    """The result as a dict; one that was too long for its row is read from where it lies."""
    value = None
    if result.url:
        body = await bus.db.fetch_value(ARTIFACT, (result.url.rsplit("/", 1)[-1],))
        value = None if body is None else msgspec.json.decode(bytes(body))
    elif result.snippet is not None:
        value = result.value
    return value if isinstance(value, dict) else {}
