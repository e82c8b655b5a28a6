"""The nouns of the bus as frozen Structs: routing key, assignment, message, outcome."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from .errors import RoutingInvalid

Status = Literal["queued", "claimed", "waiting", "done", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = ("queued", "claimed", "waiting", "done", "failed", "cancelled")
TERMINAL: frozenset[str] = frozenset({"done", "failed", "cancelled"})

# cogo.unsound() in sql/functions/10_enqueue.sql knows the same two; a test compares them.
NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,62}$"
TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
DEFAULT_TENANT = "default"
SHARD_MAX = 32_767

_KEY = re.compile(
    r"(?P<service>[a-z][a-z0-9_-]{0,62})/(?P<role>[a-z][a-z0-9_-]{0,62})"
    r"(?:/(?P<shard>[0-9]{1,5}))?(?:@(?P<tenant>[A-Za-z0-9][A-Za-z0-9._-]{0,62}))?"
)


class Lane(msgspec.Struct, frozen=True, order=True):
    """What is claimed from: (service, role, shard). Text form `rag/embed/0`."""

    service: str
    role: str
    shard: int = 0

    def __str__(self) -> str:
        return f"{self.service}/{self.role}/{self.shard}"


class RoutingKey(msgspec.Struct, frozen=True, order=True):
    """Where a message goes: (service, role, shard, tenant). Text form `rag/embed/0@acme`."""

    service: str
    role: str
    shard: int = 0
    tenant: str = DEFAULT_TENANT

    @classmethod
    def parse(cls, text: str, *, tenant: str | None = None) -> RoutingKey:
        """Read `service/role[/shard][@tenant]`; `tenant` is what counts when the text has none.

        Raises RoutingInvalid.
        """
        return _parse(text, tenant)

    @property
    def lane(self) -> Lane:
        return Lane(self.service, self.role, self.shard)

    def __str__(self) -> str:
        return f"{self.service}/{self.role}/{self.shard}@{self.tenant}"


@functools.lru_cache(maxsize=1024)
def _parse(text: str, tenant: str | None) -> RoutingKey:
    found = _KEY.fullmatch(text)
    if found is None or int(found["shard"] or 0) > SHARD_MAX:
        raise RoutingInvalid(f"{text!r} is not a routing key")
    given = found["tenant"] or tenant or DEFAULT_TENANT
    if not re.fullmatch(TENANT_PATTERN, given):
        raise RoutingInvalid(f"{given!r} is not a tenant")
    return RoutingKey(found["service"], found["role"], int(found["shard"] or 0), given)


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds of what one request may use, over all its hops and attempts."""

    maxCostUsd: float | None = None  # noqa: N815 (the specification's spelling)
    maxTokens: int | None = None  # noqa: N815


class Assignment(msgspec.Struct, frozen=True):
    """The `__assignment` object of a payload: who does the work and within what limits.

    Written by the executor alone. `ttl_ms` counts from the message's creation.
    """

    agent_id: str | None = None
    version: str | None = None
    model: str | None = None
    budget: Budget = Budget()
    ttl_ms: int | None = None


class Message(msgspec.Struct, frozen=True):
    """A claimed row of `public.agent_messages`, as the consumer gets it."""

    id: int
    key: RoutingKey
    payload: bytes
    """The row's JSON, undecoded."""
    attempts: int
    fence: int
    root_id: int
    """The message that the client enqueued; the message itself when it is that one."""
    traceparent: str | None
    runtime_s: float | None
    """Seconds until deadline_at, by the database's clock, when the claim was made."""
    expires_in_s: float | None
    """Seconds until expires_at; None without a ttl."""
    queued_ms: float = 0.0
    max_attempts: int = 5
    claimed_at: float | None = None
    """Monotonic seconds when the claim was sent; None for one that was made by hand."""


class FollowUp(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is inserted together with the finish of another one."""

    service: str
    role: str
    shard: int
    tenant: str
    payload: msgspec.Raw
    key: str | None = None
    priority: int = 2
    traceparent: str | None = None
    delegate: bool = False
    """True for the one follow-up whose end settles the finished message."""
    ttl_ms: int | None = None
    ordering_key: str | None = None


class BusEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A row for `public.bus_events`, written with a finish."""

    kind: str
    detail: dict[str, Any] = {}


OutcomeKind = Literal["done", "retry", "failed", "delegated", "released"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What `finish` writes for one claimed message."""

    id: int
    fence: int
    kind: OutcomeKind
    snippet: str | None = None
    url: str | None = None
    error: str | None = None
    """`code: detail`."""
    retry_ms: int | None = None
    """None: the lane's backoff."""
    traceparent: str | None = None
    follow_ups: Sequence[FollowUp] = ()
    events: Sequence[BusEvent] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How a message ended, as `bus.result(id)` returns it."""

    id: int
    status: Status
    snippet: str | None = None
    """The handler's result as JSON text, cut to 2,000 characters when `url` is set."""
    url: str | None = None
    error: str | None = None
    attempts: int = 0
    trace_id: str | None = None
    created_at: datetime | None = None
    done_at: datetime | None = None

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def value(self) -> Any:
        """The snippet decoded from JSON; None when there is none."""
        return None if self.snippet is None else msgspec.json.decode(self.snippet)


# -- what a handler may raise or return --------------------------------------------------------


class Retry(Exception):  # noqa: N818 (control flow, not an error)
    """Raise it to have the message tried again after `after` seconds (None: the lane's backoff).

    With `counted=False` the attempt doesn't count, for what is nobody's fault: a server that says when to come
    again. Such a message is tried until its time to live is over, without one for ever; `after` None then means one second.
    """

    def __init__(
        self,
        why: str = "the handler asked for a retry",
        *,
        after: float | None = None,
        counted: bool = True,
    ) -> None:
        super().__init__(why)
        self.why = why
        self.after = after
        self.counted = counted


class Reject(Exception):  # noqa: N818
    """Raise it to end the message as failed, never tried again, with your own reason."""

    def __init__(self, why: str, *, code: str = "rejected") -> None:
        super().__init__(why)
        self.why = why
        self.code = code


class Delegate(msgspec.Struct, frozen=True, kw_only=True):
    """Return it to let exactly one follow-up answer for this message.

    The message becomes `waiting`; whatever ends the follow-up settles it (bus.md, Waiting).
    """

    to: str
    """`service/role[/shard]`; the tenant is the message's own."""
    payload: Any
    priority: int = 2
    ttl_ms: int | None = None


# -- what a plugin declares --------------------------------------------------------------------

Handler = Callable[..., Any]
Loop = Callable[[Any], Awaitable[None]]
Lifespan = Callable[..., AsyncIterator[None]]


class Role(msgspec.Struct, frozen=True, kw_only=False):
    """What a plugin enables under its name.

    With `handle`, the role consumes messages of (service, role). With `loop`, it runs
    `await loop(runtime)` until it is cancelled. With neither it only brings routes.

    `concurrency` is the number of messages handled at the same time; `timeout_s` the run time
    of one attempt (None: RECLAIM_AFTER_MS); `events` the prefix of its audit events
    (`<events>_done`, `_retry`, `_failed`; without it only `<service>_failed` is written);
    `intents` the words by which the orchestrator finds this lane; `process` runs a plain
    `def` handler in a worker process instead of a thread. `fair` shares the lane between its
    tenants; `max_running` bounds what is claimed of it at a time over all processes and shards,
    `max_running_per_tenant` what is claimed for one tenant.
    """

    service: str | None = None
    role: str | None = None
    handle: Handler | None = None
    loop: Loop | None = None
    concurrency: int = 8
    max_attempts: int = 5
    timeout_s: float | None = None
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 300.0
    shards: Sequence[int] | None = None
    events: str | None = None
    intents: Sequence[str] = ()
    process: bool = False
    fair: bool = False
    max_running: int | None = None
    max_running_per_tenant: int | None = None
