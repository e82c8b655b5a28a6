"""Server-rendered pages: Jinja templates of a plugin's own package under one strict policy.

No inline script or style, nothing from other hosts: what a handler wrote into a result is shown as
text, and if an escape were forgotten the policy would still keep it from running.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from litestar import Request, Response

from cogo._version import __version__

from .auth import csrf_of, known_principal
from .shapes import utc

if TYPE_CHECKING:
    from jinja2 import Environment

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Pages:
    """The templates of one package: `Pages("cogo_example")` renders cogo_example/templates/.

    Every template also sees `values`.
    """

    def __init__(self, package: str, **values: Any) -> None:
        self.package = package
        self.values = values

    @cached_property
    def environment(self) -> Environment:
        """Made at the first page: importing jinja2 costs 0.1 s that a process without visitors saves."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader(self.package),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "when": when,
            "ms": milliseconds,
            "ago": ago,
            "count": count,
            "span": span,
            "text": raw_text,
        }
        environment.globals |= {"version": __version__, **self.values}
        return environment

    def render(
        self, request: Request[Any, Any, Any], template: str, *, status: int = 200, **context: Any
    ) -> Response[str]:
        """The page; templates also see `path`, `principal`, `csrf`, `now` and `version`."""
        text = self.environment.get_template(template).render(
            path=request.scope["path"],
            principal=known_principal(request),
            csrf=csrf_of(request),
            now=datetime.now(UTC),
            **context,
        )
        headers = {"content-security-policy": POLICY}
        return Response(text, status_code=status, media_type="text/html; charset=utf-8", headers=headers)


# -- filters ----------------------------------------------------------------------------------


def when(value: datetime | None) -> str:
    """`2026-11-23 08:15:02.123` in UTC; an empty text for None."""
    return "" if value is None else utc(value).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def milliseconds(value: float | None) -> str:
    """A duration in milliseconds for people: `0.8 ms`, `120 ms`, `3.2 s`, `4 min`; a dash for None."""
    if value is None:
        return "–"
    for limit, text in (
        (10, f"{value:.1f} ms"),
        (1_000, f"{value:.0f} ms"),
        (60_000, f"{value / 1000:.1f} s"),
    ):
        if value < limit:
            return text
    return f"{value / 60_000:.0f} min" if value < 7_200_000 else f"{value / 3_600_000:.0f} h"


def ago(value: datetime | None) -> str:
    """How long ago: `4.0 s ago`; a dash for None."""
    return "–" if value is None else f"{span(value, datetime.now(UTC))} ago"


def span(start: datetime | None, end: datetime | None) -> str:
    """The time between two instants, for people."""
    if start is None or end is None:
        return "–"
    return milliseconds(max(0.0, (end - start).total_seconds() * 1000))


def raw_text(value: Any) -> str:
    """Stored JSON as the text that it is."""
    return "" if value is None else bytes(value).decode("utf-8", "replace")


def count(value: float) -> str:
    """A number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
