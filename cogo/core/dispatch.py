"""The two statements that every message passes, in batches: claim and finish.

What they cost decides how fast the bus is, so arguments go as array literals, columns that nobody uses in
a batch not at all, and rows come back in binary. The policy itself is in sql/functions.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from psycopg.rows import tuple_row

from .model import Lane, Message, Outcome, RoutingKey, Status
from .text import array, encode_jsonb

if TYPE_CHECKING:
    from .db import Connection

CLAIM = "SELECT * FROM cogo.claim(%s, %s, %s, %s, %s, %s, %s, %s::bigint[])"
FINISH = """
SELECT id, status FROM cogo.finish(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[],
  %s::text[], %s::bigint[], %s::text[], %s::jsonb, %s::jsonb)
"""


class Claimed(msgspec.Struct, frozen=True):
    """What a claim brought."""

    messages: list[Message]
    due_s: float | None = None
    """When it brought nothing: seconds until the lane's next retry."""
    marks: list[tuple[int, int]] | None = []
    """(priority, seq) of each message, for the watermark; None when the lane was not read in order."""


async def claim(
    conn: Connection, lane: Lane, limit: int, holder: str, epoch: int, timeout_ms: int, after: Sequence[int]
) -> Claimed:
    """Take up to `limit` messages of a lane, looking behind the seq that `after` has for each priority."""
    sent = time.monotonic()
    args = (lane.service, lane.role, lane.shard, limit, holder, epoch, timeout_ms, array(after))
    cursor = conn.cursor(row_factory=tuple_row, binary=True)
    rows = await (await cursor.execute(CLAIM, args, prepare=True)).fetchall()
    if len(rows) == 1 and rows[0][0] is None:
        return Claimed([], max(0.0, rows[0][7]))
    marks = [(row[11], row[12]) for row in rows]
    if marks and marks[0][1] is not None:  # they come in no order; the first ones are handled first
        rows.sort(key=_place)
    keys: dict[str, RoutingKey] = {}
    messages = [_message(lane, keys, row, sent) for row in rows]
    return Claimed(messages, marks=None if marks and marks[0][1] is None else marks)


def _message(lane: Lane, keys: dict[str, RoutingKey], row: tuple[Any, ...], sent: float) -> Message:
    (
        id,
        fence,
        tenant,
        payload,
        attempts,
        root_id,
        traceparent,
        runtime_s,
        expires_in_s,
        queued_ms,
        most,
        *_,
    ) = row
    key = keys.get(tenant)
    if key is None:
        key = keys[tenant] = RoutingKey(lane.service, lane.role, lane.shard, tenant)
    return Message(
        id, key, payload.encode(), attempts, fence, root_id, traceparent, runtime_s, expires_in_s, queued_ms,
        most, sent,
    )  # fmt: skip


async def finish(conn: Connection, outcomes: Sequence[Outcome]) -> dict[int, Status]:
    """Write outcomes; the new status of each that was accepted."""
    batch = sorted(outcomes, key=_by_id)  # two batches take their row locks in the same order
    args = (
        array([one.id for one in batch]),
        array([one.fence for one in batch]),
        _column([one.kind for one in batch], "done"),
        _column([one.snippet for one in batch]),
        _column([one.url for one in batch]),
        _column([one.error for one in batch]),
        _column([one.retry_ms for one in batch]),
        _column([one.traceparent for one in batch]),
        *_carried(batch),
    )
    cursor = conn.cursor(row_factory=tuple_row, binary=True)
    return dict(await (await cursor.execute(FINISH, args, prepare=True)).fetchall())


_place = operator.itemgetter(11, 12)
"""Of a claimed row: priority, then seq."""


def _by_id(outcome: Outcome) -> int:
    return outcome.id


def _column(values: Sequence[str | int | None], usual: str | None = None) -> str | None:
    """An array, or None when all values are the usual one: the server takes that for granted."""
    return None if values.count(usual) == len(values) else array(values)


def _carried(batch: Sequence[Outcome]) -> tuple[str | None, str | None]:
    """Follow-ups and events of a batch as JSON; None where there are none."""
    follow = [
        {"parent": one.id, "fence": one.fence, **msgspec.structs.asdict(follow_up)}
        for one in batch
        if one.follow_ups
        for follow_up in one.follow_ups
    ]
    events = [
        {"id": one.id, "fence": one.fence, "kind": event.kind, "detail": event.detail}
        for one in batch
        if one.events
        for event in one.events
    ]
    return encode_jsonb(follow) if follow else None, encode_jsonb(events) if events else None
