"""The bus by hand: send, tail, status, cancel, requeue."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogo.commands import queries
from cogo.commands.base import command, duration, emit, note, say, table

if TYPE_CHECKING:
    from cogo.core.bus import Bus
    from cogo.core.model import Result

POLL_S = 0.3
SEEN_MAX = 2_000


def actor() -> str:
    """Who acts, as the audit names them."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a numeric user of a container has no name
        return "cli"


def read_payload(text: str) -> Any:
    """The JSON of an argument, of stdin (`-`) or of a file (`@path`). Raises UsageError."""
    import msgspec

    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        path = Path(text[1:])
        if not path.is_file():
            raise click.BadParameter(f"there is no file {path}", param_hint="PAYLOAD")
        text = path.read_text(encoding="utf-8")
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as exc:
        raise click.BadParameter(f"not JSON: {exc}", param_hint="PAYLOAD") from None


@command(example='cogo send text/summarise@acme \'{"text": "one two three"}\' --wait 10')
@click.argument("key")
@click.argument("payload", default="{}")
@click.option("--key", "idempotency_key", help="Idempotency key: the same key and payload give the same id.")
@click.option("--priority", type=click.IntRange(0, 3), default=2, show_default=True, help="0 comes first.")
@click.option("--ttl-ms", type=click.IntRange(min=1), help="Fail it when it has not ended by then.")
@click.option("--ordering-key", help="Messages of one key are handled one after the other.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), help="Wait so many seconds for its end.")
async def send(
    key: str,
    payload: str,
    *,
    idempotency_key: str | None,
    priority: int,
    ttl_ms: int | None,
    ordering_key: str | None,
    wait_s: float | None,
    as_json: bool,
) -> int:
    """Put a message on the bus.

    KEY is service/role[/shard][@tenant]. PAYLOAD is JSON, `-` for stdin or @FILE. With --wait the exit
    code is 1 unless the message ends as done.
    """
    import cogo
    from cogo.core.model import RoutingKey

    routing, task = RoutingKey.parse(key), read_payload(payload)
    async with cogo.connect() as bus:
        sent = await bus.enqueue(
            routing, task, idempotency_key=idempotency_key, priority=priority, ttl_ms=ttl_ms,
            ordering_key=ordering_key,
        )  # fmt: skip
        result = None if wait_s is None else await bus.wait(sent, timeout_s=wait_s)
    if as_json:
        emit({"id": sent, "key": str(routing)} | ({} if result is None else outcome(result)))
    elif result is None:
        say(f"message {sent} is queued for {routing}")
        note(f"`cogo status {sent}` shows what becomes of it")
    else:
        show_result(result)
    return 0 if result is None or result.status == "done" else 1


def outcome(result: Result) -> dict[str, Any]:
    """A result as JSON: the value decoded unless it is an excerpt of something longer."""
    return {
        "status": result.status,
        "result": result.snippet if result.url else result.value,
        "result_url": result.url,
        "error": result.error,
        "attempts": result.attempts,
        "trace_id": result.trace_id,
    }


def show_result(result: Result) -> None:
    say(f"message {result.id}: {result.status}", bold=True)
    if result.error:
        say(f"  error: {result.error}")
    if result.snippet is not None:
        say(f"  result: {result.snippet}")
    if result.url:
        say(f"  the whole result: {result.url}")
    if not result.terminal:
        note(f"  it goes on: `cogo status {result.id}`")


@command(example="cogo tail --service gateway\ncogo tail --no-follow --json | jq .kind")
@click.option("--service", help="Only events of this service.")
@click.option("--tenant", help="Only events of this tenant.")
@click.option("--kind", help="Only events of this kind, e.g. gateway_failed.")
@click.option(
    "-n", "last", type=click.IntRange(0, 1000), default=20, show_default=True, help="Start so far back."
)
@click.option("--follow/--no-follow", default=True, help="Go on as events are written, or stop.")
async def tail(
    *, service: str | None, tenant: str | None, kind: str | None, last: int, follow: bool, as_json: bool
) -> None:
    """Follow the bus events as they are written.

    With --json it prints one object a line.
    """
    import anyio

    import cogo

    wanted = (service, service, tenant, tenant, kind, kind)
    async with cogo.connect() as bus:
        rows = await bus.db.fetch(queries.LAST_EVENTS, (*wanted, last))
        newest = await bus.db.fetch_value(queries.NEWEST_EVENT)
        seen: dict[int, None] = {}
        while True:
            for row in rows:
                if row["id"] not in seen:
                    seen[row["id"]] = None
                    newest = max(newest, row["id"])
                    emit(row) if as_json else say(event_line(row))
            if not follow:
                return
            while len(seen) > SEEN_MAX:
                del seen[next(iter(seen))]
            await anyio.sleep(POLL_S)
            # Ids are drawn before they are committed, so a little of what lies behind is read again.
            rows = await bus.db.fetch(queries.EVENTS_AFTER, (newest - 200 if seen else newest, *wanted))


def event_line(row: dict[str, Any]) -> str:
    """One event as one line."""
    lane = (
        f"{row['service']}/{row['role']}/{row['shard']}@{row['tenant']}" if row["service"] else row["tenant"]
    )
    detail = " ".join(f"{key}={value}" for key, value in (row["detail"] or {}).items() if value != "")
    when = row["created_at"].strftime("%H:%M:%S.%f")[:-3]
    return f"{when}  {row['kind']:<22} {row['message_id'] or '-':>6}  {lane}  {detail}".rstrip()


@command(example="cogo status\ncogo status 42 --json")
@click.argument("message_id", type=int, required=False, metavar="[ID]")
async def status(message_id: int | None, *, as_json: bool) -> None:
    """Show the lanes, or one message with its hops.

    Without ID: what is queued, claimed and waiting in each lane, and the live holders.
    """
    import cogo

    async with cogo.connect() as bus:
        if message_id is None:
            lanes = await bus.db.fetch(queries.LANES)
            holders = await bus.db.fetch(queries.HOLDERS)
            if as_json:
                emit({"lanes": lanes, "holders": holders})
            else:
                show_lanes(lanes, holders)
            return
        found = await one_message(bus, message_id)
    if as_json:
        emit(found)
    else:
        show_message(found)


async def one_message(bus: Bus, message_id: int) -> dict[str, Any]:
    """A message with its family (the messages of its root, by id) and their events, by time."""
    message = await bus.message(message_id)
    root = message["root_id"] or message["id"]
    return {
        "message": message,
        "family": await bus.db.fetch(queries.FAMILY, (root, root)),
        "events": await bus.db.fetch(queries.EVENTS_OF_FAMILY, (root, root)),
    }


def show_lanes(lanes: list[dict[str, Any]], holders: list[dict[str, Any]]) -> None:
    if lanes:
        rows = [
            (row["lane"], row["queued"], row["claimed"], row["waiting"], duration(row["oldest_ms"]))
            for row in lanes
        ]
        table(rows, head=("lane", "queued", "claimed", "waiting", "oldest"))
    else:
        say("Nothing is queued, claimed or waiting.")
    say()
    live = [row for row in holders if row["live"]]
    table(
        [(row["holder"], row["epoch"], ",".join(row["roles"]), duration(row["up_ms"])) for row in live],
        head=("live holder", "epoch", "roles", "up"),
    )


def show_message(found: dict[str, Any]) -> None:
    message = found["message"]
    key = f"{message['service']}/{message['role']}/{message['shard']}@{message['tenant']}"
    say(f"message {message['id']}  {key}  {message['status']}", bold=True)
    for name in ("error", "result_snippet", "result_url", "trace_id", "claimed_by", "attempts", "retry_at"):
        if message.get(name):
            say(f"  {name}: {message[name]}")
    if len(found["family"]) > 1:
        say("\nhops", bold=True)
        rows = [
            (row["id"], row["lane"], row["status"], duration(row["pickup_ms"]), duration(row["total_ms"]))
            for row in found["family"]
        ]
        table(rows, head=("id", "lane", "status", "pickup", "total"))
    if found["events"]:
        say("\nevents", bold=True)
        for row in found["events"]:
            say("  " + event_line(row))


@command(example='cogo cancel 42 --reason "asked twice"')
@click.argument("message_id", type=int, metavar="ID")
@click.option("--reason", default="", help="Why, for the audit.")
async def cancel(message_id: int, *, reason: str, as_json: bool) -> int:
    """Cancel a message.

    A running handler is told to stop; what a waiting message waits for is cancelled with it.
    """
    import cogo

    async with cogo.connect() as bus:
        now = await bus.cancel(message_id, actor=actor(), reason=reason)
    if as_json:
        emit({"id": message_id, "status": now})
    elif now == "cancelled":
        say(f"message {message_id} is cancelled")
    else:
        say(f"message {message_id} had ended before: {now}")
    return 0 if now == "cancelled" else 1


@command(example='cogo requeue 42 --reason "the disk has room again"')
@click.argument("message_id", type=int, metavar="ID")
@click.option("--reason", default="", help="Why, for the audit.")
async def requeue(message_id: int, *, reason: str, as_json: bool) -> None:
    """Queue a failed or cancelled message again.

    Its attempts start at 0. A message that answered another one is refused: requeue the root.
    """
    import cogo

    async with cogo.connect() as bus:
        await bus.requeue(message_id, actor=actor(), reason=reason)
    if as_json:
        emit({"id": message_id, "status": "queued"})
    else:
        say(f"message {message_id} is queued again")
