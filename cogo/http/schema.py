"""OpenAPI at /schema, as this server really answers: problems for errors, no security where it is open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Request, Router
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from cogo._version import __version__

from . import problems
from .guarded import PROBES

if TYPE_CHECKING:
    from litestar.routes.base import BaseRoute

PROBLEM = {
    "description": "RFC 9457 problem; `code` is stable and `type` is the page that explains it",
    "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


class _SchemaRouter(Router):
    """Litestar's own router of /schema, without its HTML page for unknown paths below it."""

    def register(self, value: Any) -> list[BaseRoute]:
        if "/{path:str}" in getattr(value, "paths", ()):
            return []
        return super().register(value)


class _Rendered(JsonRenderPlugin):
    """The document, made once."""

    _text: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        if self._text is None:
            self._text = super().render(request, truthful(openapi_schema))
        return self._text


def truthful(schema: dict[str, Any]) -> dict[str, Any]:
    """The document with our problems in place of Litestar's own error body."""
    _, components = msgspec.json.schema_components(
        [problems.Problem], ref_template="#/components/schemas/{name}"
    )
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas |= components
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("400", None)
            operation["responses"]["default"] = PROBLEM
            if path in PROBES:
                operation["security"] = []
    return schema


def openapi_config() -> OpenAPIConfig:
    """Litestar's configuration for /schema and /schema/openapi.json."""
    schemes = {
        "token": SecurityScheme(
            type="http", scheme="bearer", bearer_format="JWT", description="`cogo token`"
        ),
        "apikey": SecurityScheme(type="apiKey", name="apikey", security_scheme_in="header"),
    }
    return OpenAPIConfig(
        title="COGO",
        version=__version__,
        description="Errors are RFC 9457 problem+json with `code` and `hint`.",
        components=Components(security_schemes=schemes),  # type: ignore[arg-type]
        security=[{"token": []}, {"apikey": []}],
        use_handler_docstrings=True,
        render_plugins=[_Rendered(path=["/", "/openapi.json"])],
        openapi_router=_SchemaRouter("/schema", route_handlers=[], include_in_schema=False),
    )
