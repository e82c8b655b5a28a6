"""For tests of plugins: run a handler in memory, or roles on a real bus.

result = await run_role(cogo_role(), {"text": "one two three"})

async with running(cogo_role(), dsn=dsn) as bus:
    ended = await bus.result(await bus.enqueue("text/summarise", {"text": "one two"}))
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from cogo.core.bus import Bus
    from cogo.core.model import Message, Outcome, Role
    from cogo.core.runtime import Runtime

__all__ = ["Recorder", "run_role", "running"]


class Recorder:
    """What a handler did beside returning: pass one as `into` and look at it afterwards."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []
        """(routing key, payload) of every message that it enqueued."""
        self.events: list[tuple[str, dict[str, Any]]] = []
        """(kind, detail) of every audit event."""
        self.chunks: list[tuple[str, Any]] = []
        """(kind, data) of its progress."""
        self.spent_usd = 0.0
        self.spent_tokens = 0


class MemoryBus:
    """The few methods of the bus that a Context uses, without a database. `db` is what the test gives."""

    def __init__(self, recorder: Recorder, db: Any) -> None:
        self.db = db
        self._recorder = recorder
        self._limits: tuple[float | None, int | None] | None = None

    async def enqueue(self, key: Any, payload: Any, **_options: Any) -> int:
        self._recorder.sent.append((str(key), payload))
        return len(self._recorder.sent)

    async def hold(self, _root_id: int, _tenant: str, cost_usd: float | None, tokens: int | None) -> None:
        self._limits = self._limits or (cost_usd, tokens)

    async def draw(self, _root_id: int, cost_usd: float, tokens: int) -> dict[str, Any] | None:
        """As cogo.draw: nothing is drawn when a limit would be passed; None without a hold."""
        if self._limits is None:
            return None
        spent = (self._recorder.spent_usd + cost_usd, self._recorder.spent_tokens + tokens)
        left = [
            None if limit is None else limit - used for limit, used in zip(self._limits, spent, strict=True)
        ]
        ok = all(rest is None or rest >= 0 for rest in left)
        if ok:
            self._recorder.spent_usd, self._recorder.spent_tokens = spent
        return {"ok": ok, "left_cost_usd": left[0], "left_tokens": left[1]}

    async def refund(self, _root_id: int, _id: int, _fence: int, cost_usd: float, tokens: int) -> bool:
        self._recorder.spent_usd -= cost_usd
        self._recorder.spent_tokens -= tokens
        return True

    async def extend(self, _message_id: int, _fence: int, _seconds: float) -> bool:
        return True

    async def add_chunks(self, _message_id: int, _fence: int, chunks: Sequence[tuple[str, Any]]) -> bool:
        self._recorder.chunks += chunks
        return True

    async def finish(self, outcomes: Sequence[Outcome], _conn: Any = None) -> dict[int, str]:
        return {outcome.id: outcome.kind for outcome in outcomes}


async def run_role(
    role: Role,
    payload: Mapping[str, Any],
    *,
    tenant: str = "default",
    settings: Any = None,
    db: Any = None,
    attempt: int = 1,
    into: Recorder | None = None,
) -> Any:
    """Decode the payload as the consumer would and run the role's handler once, in memory.

    Returns what the handler returns (a Delegate too). Raises what it raises, and TaskInvalid,
    AssignmentInvalid, BudgetExceeded, ModelDenied as in production. `db` is what `ctx.db` will be.
    """
    import msgspec

    from cogo.core.attempt import decode, task_type
    from cogo.core.context import Context
    from cogo.core.errors import Bug
    from cogo.core.text import encode_jsonb

    if role.handle is None:
        raise Bug("this role has no handler")
    recorder = into or Recorder()
    message = _message(role, encode_jsonb(payload).encode(), tenant, attempt)
    ctx = Context(message, None, cast("Bus", MemoryBus(recorder, db)), settings)
    task, ctx.assignment = decode(message.payload, msgspec.json.Decoder(task_type(role.handle)))
    try:
        result = role.handle(task) if role.process else role.handle(task, ctx)
        if inspect.isawaitable(result):
            result = await result
        await ctx.flush()
        if not hasattr(result, "to"):
            encode_jsonb(result)  # a result that can't be stored fails here as it would on the bus
    finally:
        for follow_up in ctx.follow_ups or ():
            key = f"{follow_up.service}/{follow_up.role}/{follow_up.shard}@{follow_up.tenant}"
            recorder.sent.append((key, msgspec.json.decode(follow_up.payload)))
        recorder.events += [(event.kind, event.detail) for event in ctx.events or ()]
    return result


def _message(role: Role, payload: bytes, tenant: str, attempt: int) -> Message:
    from cogo.core.model import Message, RoutingKey

    return Message(
        id=1,
        key=RoutingKey(role.service or "test", role.role or "test", 0, tenant),
        payload=payload,
        attempts=attempt,
        fence=1,
        root_id=1,
        traceparent=None,
        runtime_s=role.timeout_s,
        expires_in_s=None,
        max_attempts=role.max_attempts,
    )


@asynccontextmanager
async def running(*roles: Role, dsn: str) -> AsyncIterator[Bus]:
    """Serve these roles on a real database while the block runs, and give the bus to it.

    The database is migrated first. Leaving the block drains: handlers at work end within the grace.
    """
    import anyio

    import cogo

    stop, ready = anyio.Event(), anyio.Event()
    found: list[Runtime] = []

    def note(runtime: Runtime) -> None:
        found.append(runtime)
        ready.set()

    async def serve() -> None:
        await cogo.serve(roles=roles, dsn=dsn, migrate=True, stop=stop, ready=note)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await ready.wait()
        try:
            yield found[0].bus
        finally:
            stop.set()
