"""Handlers that run in a worker process: those are imported there by name."""

from __future__ import annotations

import os
from typing import Any


def whereabouts(task: dict[str, Any]) -> dict[str, Any]:
    """The process that it runs in, and what it was given."""
    return {"pid": os.getpid(), "task": task}


def die(task: dict[str, Any]) -> None:
    """End the worker process as an out-of-memory kill would."""
    os._exit(9)


def spin(task: dict[str, Any]) -> None:
    """Compute for ever; only a kill ends it."""
    while True:
        pass
