"""Our Litestar request: bodies decoded strictly into the Struct that the handler declares."""

from __future__ import annotations

from typing import Any

from litestar import Request
from litestar.types import Empty

from cogo.core.errors import Invalid

from . import body as bodies


class CogoRequest(Request[Any, Any, Any]):
    """Checks type, size, UTF-8, depth and NUL before decoding, and decodes without coercion.

    Litestar's own way turns "1" into 1, answers 500 for bytes that are not UTF-8, and looks at no
    Content-Type. A handler declares `data: SomeStruct` and gets just that.
    """

    async def body(self) -> bytes:
        """The raw body, at most 256 KB. Raises UnsupportedMedia, TooLarge."""
        if self.route_handler.parsed_data_field is not None:
            bodies.check_media(self.headers.get("content-type", ""))
            raw = await super().body()
            bodies.check(raw)  # here, since Litestar takes an empty body for an absent one
            return raw
        return await super().body()

    async def json(self) -> Any:
        """The body as the handler's `data` type. Raises BadRequest, Invalid."""
        field = self.route_handler.parsed_data_field
        kind = field.annotation if field is not None else Any
        if self._json is Empty:
            self._json = bodies.decode(await super().body(), kind)
        return self._json


async def refuse_unknown_query(request: Request[Any, Any, Any]) -> None:
    """Before the handler: a query parameter that it does not take is an error, not a silent no-filter.

    A handler that reads `request.query_params` itself declares `opt={"any_query": True}`.
    """
    handler = request.route_handler
    if not request.scope["query_string"] or handler.opt.get("any_query"):
        return
    known = known_query(handler)
    for name in request.query_params:
        if name not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise Invalid(f"unknown query parameter {name[:60]!r}; this route takes: {takes}")


def known_query(handler: Any) -> set[str]:
    """The names that the query may hold: the handler's parameters, by alias where it has one."""
    names: set[str] = set()
    for name, field in handler.parsed_fn_signature.parameters.items():
        given = field.kwarg_definition
        names.add(getattr(given, "name", None) or name)
    return names - {"request", "data", "state", "headers", "cookies", "scope", "body"}
