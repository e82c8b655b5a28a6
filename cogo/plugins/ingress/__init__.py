"""ingress: `POST /functions/v1/orchestrator-chat`, the same contract as the Edge Function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cogo import hookimpl


@hookimpl
def cogo_routes() -> Sequence[Any]:
    """One POST and its preflight."""
    from .routes import ingress_routes

    return ingress_routes()
