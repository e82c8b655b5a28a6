"""What defines a symbol in JavaScript and TypeScript: declarations, and functions that are given a name."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from .walk import Found, field, present, text_of

if TYPE_CHECKING:
    from tree_sitter import Node

_FUNCTIONS = frozenset({
    "function_declaration", "generator_function_declaration", "function_signature", "method_definition",
    "method_signature", "abstract_method_signature",
})  # fmt: skip
_FUNCTION_VALUES = frozenset({"arrow_function", "function_expression", "generator_function"})
_CLASSES = frozenset({"class_declaration", "abstract_class_declaration", "class"})
_TYPES = frozenset({"interface_declaration", "enum_declaration", "type_alias_declaration"})
_VARIABLES = frozenset({"lexical_declaration", "variable_declaration"})
_FIELDS = frozenset({"public_field_definition", "field_definition", "pair"})
# Statements that may hold declarations.
_THROUGH = frozenset({
    "ERROR", "statement_block", "if_statement", "else_clause", "try_statement", "catch_clause", "finally_clause",
    "labeled_statement",
})  # fmt: skip
_WRAPPERS = frozenset({
    "parenthesized_expression", "as_expression", "satisfies_expression", "non_null_expression", "type_assertion",
})  # fmt: skip
_EXPORTS = re.compile(r"^(module\.)?exports(\.|$)")
_TYPE_NAME = re.compile(r"[A-Z][A-Z0-9]*[a-z]")
_PATH = re.compile(r"[\w$]+(\.[\w$]+)*")


def look(node: Node) -> Found | None:
    """See `walk.Look`."""
    kind = node.type
    if kind in _FUNCTIONS:
        is_signature = kind in ("function_signature", "method_signature")
        return Found("function", _name(field(node, "name")), is_signature=is_signature)
    if kind in _CLASSES:
        return Found("class", _name(field(node, "name")), present(field(node, "body")))
    if kind in _TYPES:
        return Found("class", _name(field(node, "name")))
    if kind in ("internal_module", "module"):
        return Found("module", _name(field(node, "name")), present(field(node, "body")))
    if kind in _VARIABLES:
        declared = [each for each in node.named_children if each.type == "variable_declarator"]
        return look(declared[0]) if len(declared) == 1 else Found("", inside=(node,))
    if kind == "variable_declarator":
        return _value(_name(field(node, "name")), field(node, "value"), field(node, "type"))
    if kind in _FIELDS:
        name = field(node, "key") or field(node, "property") or field(node, "name")
        return _value(_name(name), field(node, "value"), field(node, "type"))
    if kind == "export_statement":
        return _exported(node)
    if kind == "ambient_declaration":
        return next(filter(None, map(look, node.named_children)), None)
    if kind == "expression_statement":
        return _expression(node.named_children[0]) if node.named_children else None
    return Found("", inside=(node,)) if kind in _THROUGH else None


def _exported(node: Node) -> Found | None:
    declared, value = field(node, "declaration"), _unwrapped(field(node, "value"))
    if declared is not None:
        found = look(declared)
        return replace(found, name="default") if found and found.kind and not found.name else found
    if value is not None and value.type == "object":
        return Found("", inside=(value,))
    own_name = _name(field(value, "name")) if value is not None else ""
    return _value(own_name or "default", value)


def _expression(node: Node) -> Found | None:
    if node.type in ("internal_module", "module"):
        return look(node)
    if node.type == "assignment_expression":
        return _assignment(node)
    # Wrappers around a whole file: (function () { … })(), !function () { … }(), (function (f) { … }(this, f)).
    called = _unwrapped(field(node, "argument") if node.type == "unary_expression" else node)
    if called is None or called.type != "call_expression":
        return None
    function, given = _unwrapped(field(called, "function")), field(called, "arguments")
    if function is None or not (
        function.type in _FUNCTION_VALUES or text_of(function) in ("define", "System.register")
    ):
        return None
    functions = [function, *(given.named_children if given is not None else ())]
    bodies = (field(each, "body") for each in functions if each.type in _FUNCTION_VALUES)
    return Found("", inside=present(*bodies))


def _assignment(node: Node) -> Found | None:
    """`exports.f = function`, `A.prototype.m = function`, `module.exports = { … }`."""
    path = text_of(field(node, "left"))
    value = field(node, "right")
    while value is not None and value.type == "assignment_expression":
        value = field(value, "right")
    value = _unwrapped(value)
    if value is None or not _PATH.fullmatch(path):
        return None
    name = _EXPORTS.sub("", path).replace(".prototype.", ".")
    if not name and value.type == "object":
        return Found("", inside=(value,))
    found = _value(name or _name(field(value, "name")) or "exports", value)
    if found and found.kind == "function" and "." in name:
        return Found("method", found.name)
    return found


def _value(name: str, value: Node | None, annotation: Node | None = None) -> Found | None:
    """What a name stands for, when that is a function, a class or an object with methods."""
    value = _unwrapped(value)
    if not name or (annotation is None and value is None):
        return None
    if value is not None and value.type == "class":
        return Found("class", name, present(field(value, "body")))
    if value is not None and value.type == "object":
        return Found("class", name, (value,)) if any(map(_is_method, value.named_children)) else None
    is_function = _is_callable(annotation) or (value is not None and _makes_function(value))
    return Found("function", name) if is_function else None


def _is_method(member: Node) -> bool:
    value = field(member, "value") if member.type == "pair" else None
    return member.type == "method_definition" or (value is not None and value.type in _FUNCTION_VALUES)


def _is_callable(annotation: Node | None) -> bool:
    """`(a: A) => B` and `{ (a: A): B; … }`."""
    kind = annotation.named_children[0] if annotation is not None and annotation.named_children else None
    if kind is not None and kind.type == "object_type":
        kind = next((each for each in kind.named_children if each.type != "comment"), None)
    return kind is not None and kind.type in ("function_type", "call_signature")


def _makes_function(value: Node) -> bool:
    """A function, or what a helper makes of one: `memo(() => …)`, `Effect.fn("name")(function* () { … })`.

    `rows.map((row) => row.id)` is a value: helpers have a plain name, are members of something capitalised, or
    get a function with a body.
    """
    for _ in range(3):
        if value.type in _FUNCTION_VALUES:
            return True
        given, called = field(value, "arguments"), field(value, "function")
        if value.type != "call_expression" or given is None or called is None:
            return False
        while called.type == "call_expression" and (inner := field(called, "function")) is not None:
            called = inner
        inner = next(
            (e for e in given.named_children if e.type in (*_FUNCTION_VALUES, "call_expression")), None
        )
        if inner is None:
            return False
        if not (called.type == "identifier" or _TYPE_NAME.match(text_of(called))):
            body = field(inner, "body")
            return body is not None and body.type == "statement_block"
        value = inner
    return False


def _unwrapped(value: Node | None) -> Node | None:
    """Without parentheses and casts around it."""
    while value is not None and value.type in _WRAPPERS and value.named_children:
        value = value.named_children[-1 if value.type == "type_assertion" else 0]
    return value


def _name(node: Node | None) -> str:
    return text_of(node).strip("\"'`")
