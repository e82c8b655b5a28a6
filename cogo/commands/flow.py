"""Flow control by hand: lanes, pause, resume, dead letters, redrive."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from cogo.commands.base import command, emit, note, say, table
from cogo.commands.bus import actor

if TYPE_CHECKING:
    from cogo.core.operate import DeadLetters

ERROR_WIDTH = 60


@command(example="cogo lanes")
async def lanes(*, as_json: bool) -> None:
    """List the lanes with their policy, what waits and what runs.

    A lane is known once a process has served it or somebody has paused it.
    """
    import cogo

    async with cogo.connect() as bus:
        rows = await bus.lanes()
    if as_json:
        emit({"lanes": rows})
    elif rows:
        head = ("lane", "waiting", "running", "paused", "policy")
        table(
            [(lane_name(row), row["waiting"], row["running"], paused(row), policy(row)) for row in rows],
            head=head,
        )
    else:
        say("No process has served a lane yet.")


def lane_name(row: dict[str, Any]) -> str:
    return f"{row['service']}/{row['role']}"


def paused(row: dict[str, Any]) -> str:
    """What is paused of a lane: all of it, or tenants."""
    return "all" if row["paused_at"] else ", ".join(row["paused_tenants"])


def policy(row: dict[str, Any]) -> str:
    """Fairness and limits in words; a lane whose indexes aren't there yet says so."""
    words = ["fair"] if row["fair"] else []
    words += [f"{name} {most}" for name, most in row["limits"].items()]
    return ", ".join(words + ([] if row["indexed"] else ["indexes missing"]))


@command(example='cogo pause rag/embed --reason "the disk is full"\ncogo pause rag/embed --tenant acme')
@click.argument("lane")
@click.option("--tenant", help="Only this tenant's messages.")
@click.option("--reason", default="", help="Why, for the audit.")
async def pause(lane: str, *, tenant: str | None, reason: str, as_json: bool) -> None:
    """Begin nothing more in a lane, or for one tenant.

    LANE is service/role. What runs goes on; what is sent waits. A restart changes nothing of it.
    """
    import cogo

    async with cogo.connect() as bus:
        changed = await bus.pause(lane, tenant=tenant, actor=actor(), reason=reason)
    show_switch(lane, tenant, "paused", changed=changed, as_json=as_json)


@command(example="cogo resume rag/embed")
@click.argument("lane")
@click.option("--tenant", help="Only this tenant's messages.")
@click.option("--reason", default="", help="Why, for the audit.")
async def resume(lane: str, *, tenant: str | None, reason: str, as_json: bool) -> None:
    """End a pause of a lane, or of one tenant.

    LANE is service/role. Tenants that were paused by name stay so when their lane is resumed.
    """
    import cogo

    async with cogo.connect() as bus:
        changed = await bus.resume(lane, tenant=tenant, actor=actor(), reason=reason)
    show_switch(lane, tenant, "running", changed=changed, as_json=as_json)


def show_switch(lane: str, tenant: str | None, state: str, *, changed: bool, as_json: bool) -> None:
    what = lane if tenant is None else f"{lane}@{tenant}"
    if as_json:
        emit({"lane": lane, "tenant": tenant, "state": state, "changed": changed})
    else:
        say(f"{what} is {state}" if changed else f"{what} was {state} before")


@command(example="cogo dead\ncogo dead rag/embed --tenant acme")
@click.argument("lane", required=False)
@click.option("--tenant", "tenants", multiple=True, help="Only this tenant's; repeat for several.")
@click.option(
    "-n", "limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Groups at most."
)
async def dead(lane: str | None, *, tenants: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Group the failed messages by lane and error code.

    LANE is service/role; without it all lanes. `cogo redrive` puts them back.
    """
    import cogo

    async with cogo.connect() as bus:
        groups = await bus.dead(lane, tenants=tenants or None, limit=limit)
    if as_json:
        emit({"groups": groups})
    elif groups:
        table([row_of(group) for group in groups],
              head=("lane", "code", "count", "answers", "tenants", "last seen", "sample", "its error"))  # fmt: skip
        if groups[0].capped:
            note("there are more than these counts say: only 200,000 messages were looked at")
    else:
        say("Nothing has failed.")


def row_of(group: DeadLetters) -> tuple[Any, ...]:
    error = " ".join((group.sample_error or "").split())
    return (
        f"{group.service}/{group.role}", group.code, group.n, group.answers or "", group.tenants,
        group.last_seen.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ") if group.last_seen else "-",
        group.sample_id, error if len(error) <= ERROR_WIDTH else error[: ERROR_WIDTH - 1] + "…",
    )  # fmt: skip


@command(example="cogo redrive rag/embed --code bus_unavailable --dry-run\ncogo redrive --id 41 --id 42")
@click.argument("lane", required=False)
@click.option("--tenant", "tenants", multiple=True, help="Only this tenant's; repeat for several.")
@click.option("--code", help="Only those with this error code.")
@click.option("--before", type=click.DateTime(("%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d")),
              help="Only what failed before this time (UTC without a zone).")  # fmt: skip
@click.option("--id", "ids", type=int, multiple=True, help="Only this message; repeat for several.")
@click.option("--limit", type=click.IntRange(min=1), help="Put back so many at most.")
@click.option("--reason", default="", help="Why, for the audit.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
async def redrive(
    lane: str | None, *, tenants: tuple[str, ...], code: str | None, before: datetime | None,
    ids: tuple[int, ...], limit: int | None, reason: str, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Queue failed messages again, many at once.

    LANE is service/role. Those that match all that is given begin a new life at the ends of their lanes.
    Messages that answered another one are refused and counted: requeue their roots.
    """
    import cogo

    if before is not None and before.tzinfo is None:
        before = before.replace(tzinfo=UTC)
    async with cogo.connect() as bus:
        found = await bus.redrive(
            lane, actor=actor(), tenants=tenants or None, code=code, before=before, ids=ids or None,
            limit=limit, reason=reason, dry_run=dry_run,
        )  # fmt: skip
    if as_json:
        emit({"redriven": found.redriven, "refused": found.refused, "dry_run": dry_run})
        return
    say(f"{found.redriven} messages {'would be' if dry_run else 'are'} queued again")
    if found.refused:
        note(f"{found.refused} answered another message: requeue the roots of those")
