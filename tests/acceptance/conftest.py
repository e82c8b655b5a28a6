"""Fixtures of the acceptance tests: an installation that is thrown away afterwards."""

from __future__ import annotations

from binary import binary_fixture

__all__ = ["binary_fixture"]
