"""metrics: `/api/metrics/*` and `/dashboard/*`, from counters that are kept as messages end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cogo import hookimpl


@hookimpl
def cogo_routes() -> Sequence[Any]:
    """The API and the pages."""
    from .pages import PAGES
    from .routes import ROUTES

    return [*ROUTES, *PAGES]
