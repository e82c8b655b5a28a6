"""Symbols by tree-sitter: what defines one in Go, Rust, Java and SQL (JavaScript's are in ecmascript.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import syntax
from . import ecmascript
from .spans import MODULE, Chunk, runs
from .walk import Found, Look, field, own_tree, present, text_of

if TYPE_CHECKING:
    from tree_sitter import Node

_QUOTED_SQL = re.compile(r"(\$(?:[^\W\d]\w*)?\$)(.*?)(\1)", re.DOTALL)


def symbols(lang: str, lines: list[str]) -> tuple[Iterator[Chunk], str | None]:
    """The chunks, and a note when parts of the text were not parsable. Raises syntax.TooDeepError."""
    text = "\n".join(lines) + "\n"
    if lang == "sql":
        text = _QUOTED_SQL.sub(_without_body, text)
    root = syntax.parse(lang, text.encode("utf-8", "replace")).root_node
    owners = [MODULE] * len(lines)
    own_tree(root, _LOOKS[lang], owners)
    note = f"parts are not parsable as {lang}: symbols only of the rest" if root.has_error else None
    return runs(lines, owners), note


def _go(node: Node) -> Found | None:
    match node.type:
        case "function_declaration":
            return Found("function", text_of(field(node, "name")))
        case "method_declaration":
            receiver = text_of(field(node, "receiver")).strip("() ").split("[")[0].split()
            return Found(
                "method", f"{receiver[-1].lstrip('*') if receiver else ''}.{text_of(field(node, 'name'))}"
            )
        case "type_declaration":
            specs = [each for each in node.named_children if each.type in ("type_spec", "type_alias")]
            return _go(specs[0]) if len(specs) == 1 else Found("", inside=(node,))
        case "type_spec" | "type_alias":
            return Found("class", text_of(field(node, "name")))
        case "ERROR":
            return Found("", inside=(node,))
    return None


def _rust(node: Node) -> Found | None:
    match node.type:
        case "function_item" | "function_signature_item" | "macro_definition":
            return Found("function", text_of(field(node, "name")))
        case "struct_item" | "enum_item" | "union_item" | "type_item" | "trait_item":
            inside = present(field(node, "body")) if node.type == "trait_item" else ()
            return Found("class", text_of(field(node, "name")), inside)
        case "impl_item":
            return Found("class", _rust_type(field(node, "type")), present(field(node, "body")))
        case "mod_item":
            body = field(node, "body")
            return Found("module", text_of(field(node, "name")), (body,)) if body is not None else None
        case "foreign_mod_item":
            return Found("", inside=present(field(node, "body")))
        case "ERROR":
            return Found("", inside=(node,))
    return None


def _rust_type(node: Node | None) -> str:
    """What an impl is for: `Type` of `&'a mut path::Type<T>`."""
    while node is not None and (inner := field(node, "type") or field(node, "name")) is not None:
        node = inner
    return text_of(node)


_JAVA_CLASSES = frozenset({
    "class_declaration", "interface_declaration", "enum_declaration", "record_declaration",
    "annotation_type_declaration",
})  # fmt: skip
_JAVA_METHODS = frozenset({
    "method_declaration", "constructor_declaration", "compact_constructor_declaration",
    "annotation_type_element_declaration",
})  # fmt: skip


def _java(node: Node) -> Found | None:
    if node.type in _JAVA_CLASSES:
        return Found("class", text_of(field(node, "name")), present(field(node, "body")))
    if node.type in _JAVA_METHODS:
        return Found("function", text_of(field(node, "name")))
    return Found("", inside=(node,)) if node.type in ("enum_body_declarations", "ERROR") else None


_SQL = {
    "create_table": "class", "create_view": "class", "create_materialized_view": "class", "create_type": "class",
    "create_function": "function", "create_procedure": "function", "create_trigger": "function",
}  # fmt: skip


def _sql(node: Node) -> Found | None:
    if node.type == "statement":
        return next(filter(None, map(_sql, node.named_children)), None)
    if kind := _SQL.get(node.type):
        name = next((each for each in node.named_children if each.type == "object_reference"), None)
        return Found(kind, text_of(name).replace('"', ""))
    return Found("", inside=(node,)) if node.type in ("transaction", "block", "ERROR") else None


def _without_body(quoted: re.Match[str]) -> str:
    """A body in another language, or one that the grammar doesn't know, must not spoil what surrounds it."""
    return "'" + "\n" * quoted[2].count("\n") + "'"


_LOOKS: dict[str, Look] = {
    "javascript": ecmascript.look, "typescript": ecmascript.look, "tsx": ecmascript.look, "go": _go, "rust": _rust,
    "java": _java, "sql": _sql,
}  # fmt: skip
