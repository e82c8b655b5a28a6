"""COGO: a distributed agent platform that is one Python process and one Postgres table.

This module is the whole public door. Names are loaded when they are first used, so that
`import cogo` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .client import connect, connect_sync, enqueue, serve
    from .core import errors, upkeep
    from .core.bus import Bus, Chunk
    from .core.context import Context, Reservation, Transaction
    from .core.db import Database
    from .core.db import json as Json  # noqa: N812 (the name of a value, not of a function)
    from .core.model import (
        Assignment,
        Budget,
        Delegate,
        Lane,
        Message,
        Reject,
        Result,
        Retry,
        Role,
        RoutingKey,
    )
    from .core.runtime import Runtime
    from .core.settings import Settings
    from .hookspecs import hookimpl

__all__ = [
    "Assignment",
    "Budget",
    "Bus",
    "Chunk",
    "Context",
    "Database",
    "Delegate",
    "Json",
    "Lane",
    "Message",
    "Reject",
    "Reservation",
    "Result",
    "Retry",
    "Role",
    "RoutingKey",
    "Runtime",
    "Settings",
    "Transaction",
    "__version__",
    "connect",
    "connect_sync",
    "enqueue",
    "errors",
    "hookimpl",
    "serve",
    "upkeep",
]

_HOME = {
    "connect": ".client",
    "connect_sync": ".client",
    "enqueue": ".client",
    "serve": ".client",
    "Bus": ".core.bus",
    "Chunk": ".core.bus",
    "Context": ".core.context",
    "Reservation": ".core.context",
    "Transaction": ".core.context",
    "Database": ".core.db",
    "Json": ".core.db:json",
    "Assignment": ".core.model",
    "Budget": ".core.model",
    "Delegate": ".core.model",
    "Lane": ".core.model",
    "Message": ".core.model",
    "Reject": ".core.model",
    "Result": ".core.model",
    "Retry": ".core.model",
    "Role": ".core.model",
    "RoutingKey": ".core.model",
    "Runtime": ".core.runtime",
    "Settings": ".core.settings",
    "errors": ".core:errors",
    "upkeep": ".core:upkeep",
    "hookimpl": ".hookspecs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cogo' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    if module == ".core":
        value: Any = import_module(f".core.{attribute}", __name__)
    else:
        value = getattr(import_module(module, __name__), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
