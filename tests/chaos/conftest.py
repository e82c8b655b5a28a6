"""Fixtures of the chaos tests: an installation that is thrown away afterwards."""

from __future__ import annotations

from binary import binary_fixture

__all__ = ["binary_fixture"]
