"""Fixtures of the acceptance tests: an installation that is thrown away afterwards."""

from __future__ import annotations

import pytest
from binary import Binary, binary_fixture

__all__ = ["binary_fixture", "served"]


@pytest.fixture
def served(binary: Binary) -> Binary:
    """One with a process that serves the gateway and the metrics."""
    binary.serve("--roles", "gateway,metrics", holder="harbour-1")
    return binary
