"""The door for routes: what a plugin's route module imports, beside litestar itself.

A role brings routes by the hook `cogo_routes(settings)`, which imports its module `routes.py` and
returns Litestar handlers. Each declares a guard: `guards=[viewer]` (reads its own tenants), `operator`
(also acts on them) or `admin` (all tenants); an app with a route without one is not built. Bodies are
msgspec Structs with `forbid_unknown_fields=True`, taken as `data`; errors of `cogo.errors` become
RFC 9457 problems by themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from cogo.core.model import TENANT_PATTERN
from cogo.core.telemetry import new_traceparent, valid_traceparent
from cogo.http.auth import (
    Connection,
    Guard,
    admin,
    authenticate,
    bearer_of,
    csrf_of,
    guard,
    operator,
    principal_of,
    public,
    ring_of,
    session_cookie,
    viewer,
)
from cogo.http.messages import describe, message_row
from cogo.http.pages import Pages
from cogo.http.paging import Paged, walk
from cogo.http.params import Before, Filter, Since
from cogo.http.problems import Problem, on_exception, problem_of, problem_response
from cogo.http.queries import MESSAGES
from cogo.http.shapes import as_raw, aware, bounded, parse_id, shaped, snippet_value, utc
from cogo.http.tokens import AccessRole, KeyRing, Principal, claimed_tenants, mint_token
from cogo.http.waiting import unless_over

if TYPE_CHECKING:
    from cogo.core.bus import Bus
    from cogo.core.db import Database
    from cogo.core.runtime import Runtime

__all__ = [
    "MESSAGES",
    "AccessRole",
    "Before",
    "Connection",
    "Filter",
    "Guard",
    "KeyRing",
    "Paged",
    "Pages",
    "Principal",
    "Problem",
    "Since",
    "Tenant",
    "admin",
    "as_raw",
    "authenticate",
    "aware",
    "bearer_of",
    "bounded",
    "bus_of",
    "claimed_tenants",
    "csrf_of",
    "db_of",
    "describe",
    "guard",
    "message_row",
    "mint_token",
    "on_exception",
    "operator",
    "parse_id",
    "principal_of",
    "problem_of",
    "problem_response",
    "public",
    "ring_of",
    "runtime_of",
    "session_cookie",
    "shaped",
    "snippet_value",
    "tenants_of",
    "trace_id_of",
    "traceparent_of",
    "unless_over",
    "utc",
    "viewer",
    "walk",
]

# `$` also matches before a last newline, which Postgres' check of the column would then refuse.
Tenant = Annotated[str, msgspec.Meta(pattern=TENANT_PATTERN + r"(?!\n)", description="a tenant's name")]


def runtime_of(request: Connection) -> Runtime:
    """The running process: settings, db, bus, holder, roles, lanes, stop, health()."""
    runtime: Runtime = request.app.state.runtime
    return runtime


def bus_of(request: Connection) -> Bus:
    """The bus of the running process."""
    return runtime_of(request).bus


def db_of(request: Connection) -> Database:
    """The database of the running process. Its methods raise BusUnavailable (503) when it is away."""
    return runtime_of(request).db


def tenants_of(request: Connection) -> list[str] | None:
    """The tenants whose rows may be shown, None for all: in SQL
    `(%(tenants)s::text[] IS NULL OR tenant = ANY (%(tenants)s))`.
    """
    return principal_of(request).tenant_list()


def traceparent_of(request: Connection) -> str:
    """A new span under the caller's `traceparent`, or of a new trace when there is no valid one."""
    given = request.headers.get("traceparent")
    # Version ff is reserved (W3C Trace Context, 3.2.2.1).
    usable = valid_traceparent(given) and not str(given).startswith("ff")
    return new_traceparent(given if usable else None)


def trace_id_of(traceparent: str) -> str:
    """The 32 hex digits by which the hops of a request are found again."""
    return traceparent[3:35]
