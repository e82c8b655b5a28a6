"""The whole plugin surface. Every hook is synchronous and called once, at boot, in this order.

A plugin is a module that an entry point of group `cogo` names; the entry point's name is the
role's name. Only modules of enabled roles are imported. Take fewer arguments than a hook offers
if you don't need them. Commands are not a hook: use the entry-point group `cogo.commands`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import msgspec

    from .core.model import Role
    from .core.runtime import Runtime

hookspec = pluggy.HookspecMarker("cogo")
hookimpl = pluggy.HookimplMarker("cogo")


@hookspec
def cogo_role() -> Role | None:
    """The role of this plugin: its lane and handler, or its loop. None: it brings only routes."""


@hookspec
def cogo_settings() -> type[msgspec.Struct] | None:
    """The Struct that `[plugins.<name>]` of plugins.toml fills; every field needs a default."""


@hookspec
def cogo_migrations() -> Traversable | None:
    """A folder of `NNNN_slug.sql` files: a migration line of its own, named after the plugin."""


@hookspec
def cogo_lifespan(runtime: Runtime, settings: Any) -> AbstractAsyncContextManager[None]:
    """The one async door: entered before the first claim, left after the last finish."""


@hookspec
def cogo_routes(settings: Any) -> Sequence[Any]:
    """Litestar route handlers. Every route needs a guard of `cogo.web`, or the build fails."""


@hookspec
def cogo_metrics(meter: Any) -> None:
    """Create instruments on the OpenTelemetry meter of this plugin."""
