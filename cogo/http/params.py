"""Query parameters that several routes take."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from litestar.params import FromQuery, QueryParameter

from .shapes import ID_MAX

Filter = Annotated[str | None, QueryParameter(max_length=100)]
"""A name that rows must have."""
Since = FromQuery[datetime | None]
"""An RFC 3339 time; pass it through `aware`."""
Before = Annotated[int | None, QueryParameter(ge=1, le=ID_MAX)]
"""The `next` of an earlier page."""
