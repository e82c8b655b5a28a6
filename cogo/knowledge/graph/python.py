"""The facts of a Python file, by its syntax tree: definitions, imports, and what each name means by Python's scopes.

A call or reference is kept when its first word is bound to something that a module can define: an import, a class,
a function, `self`, or a variable or attribute whose class is told by an annotation or by the call that made it. What else
a variable holds is not guessed.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from .. import syntax
from .facts import SUPER, UNKNOWN, Facts, Module, Reference
from .scopes import Scope, Scopes, used

if TYPE_CHECKING:
    from tree_sitter import Node as Tree

_NAME: Final = "[(identifier) (attribute)]"
QUERY: Final = f"""
(function_definition) @function
(class_definition) @class
(import_statement) @import
(import_from_statement) @import
(call function: {_NAME} @call)
(decorator {_NAME} @use)
(argument_list {_NAME} @use)
(keyword_argument value: {_NAME} @use)
(type {_NAME} @use)
(generic_type (identifier) @use)
(assignment right: {_NAME} @use)
(return_statement {_NAME} @use)
(pair value: {_NAME} @use)
(list {_NAME} @use)
(tuple {_NAME} @use)
(default_parameter value: {_NAME} @use)
(typed_default_parameter value: {_NAME} @use)
(except_clause {_NAME} @use)
(assignment) @assignment
(typed_parameter) @parameter
(typed_default_parameter) @parameter
(for_statement left: (identifier) @variable)
(for_in_clause left: (identifier) @variable)
(parameters (identifier) @variable)
(lambda_parameters (identifier) @variable)
(default_parameter name: (identifier) @variable)
(list_splat_pattern (identifier) @variable)
(dictionary_splat_pattern (identifier) @variable)
(as_pattern_target (identifier) @variable)
(pattern_list (identifier) @variable)
(named_expression name: (identifier) @variable)
"""
_BUILTINS: Final = frozenset(dir(builtins))
# Methods of strings, containers and files: whoever calls one of an unknown value says nothing.
_COMMON: Final = frozenset(
    name for type in (str, bytes, list, dict, set, tuple, int, float) for name in dir(type)
) | {"read", "write", "close", "open", "readline", "readlines", "seek", "flush"}
_DOTTED: Final = re.compile(r"\w+(?:\.\w+)*")
_MADE: Final = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)\((?:(?!\)[.(]).)*\)", re.DOTALL)
_ANNOTATED: Final = re.compile(r"[\"']?([A-Za-z_][\w.]*)[\"']?(?:\s*\|\s*None)?")


def read(module: Module, path: str, text: str, *, is_test: bool = False) -> Facts:
    """The facts of a file; what doesn't parse is left out, and a note says so."""
    source = text.replace("\r\n", "\n").replace("\r", "\n").encode()
    root = syntax.parse("python", source).root_node
    reader = _Reader(module, source, root)
    note = "parts of it are not parsable as Python" if root.has_error else None
    references = list(reader.references())
    return Facts(path, "python", module, reader.nodes, references, reader.aliases, is_test, note)


class _Reader(Scopes):
    builtins = _BUILTINS

    def __init__(self, module: Module, source: bytes, root: Tree) -> None:
        super().__init__(module, source)
        self.package = module.name if module.is_package else module.name.rpartition(".")[0]
        self.aliases: list[tuple[str, str]] = []
        self.bases: list[tuple[int, Tree]] = []
        self.attributes: dict[tuple[str, str], str | None] = {}
        """(class, name) -> what `self.name` is an instance of, in the form of `meaning`."""
        self.found = syntax.captures(syntax.query("python", QUERY), root)
        self._define()

    def _define(self) -> None:
        """Nodes and scopes of all classes and functions, in the order of the text."""
        everything = [(n.start_byte, n, True) for n in self.found.get("class", ())]
        everything += [(n.start_byte, n, False) for n in self.found.get("function", ())]
        everything.sort(key=lambda each: each[0])
        for _, tree, is_class in everything:
            named, above = tree.child_by_field_name("name"), tree.parent
            if named is None:
                continue
            first = above if above is not None and above.type == "decorated_definition" else tree
            lines = first.start_point[0] + 1, tree.end_point[0] + 1
            here = self.open(tree, self.text(named), "class" if is_class else "function", lines=lines)
            if is_class and (bases := tree.child_by_field_name("superclasses")) is not None:
                self.bases.append((here, bases))

    # -- what names are bound to ------------------------------------------------------------------

    def _bind(self) -> None:
        """What is assigned hides what is imported or defined further out, but not beside it."""
        self.hide(self.found.get("variable", ()))
        for tree in self.found.get("parameter", ()):
            name = tree.child_by_field_name("name") or tree.children[0]
            scope = self.scopes[self.at(tree.start_byte)]
            scope.bound[self.text(name)] = self._instance(tree.child_by_field_name("type"), scope)
        for tree in self.found.get("assignment", ()):
            left, right = tree.child_by_field_name("left"), tree.child_by_field_name("right")
            told, at = tree.child_by_field_name("type"), self.at(tree.start_byte)
            if left is not None and left.type == "identifier":
                if told is not None:
                    self._annotate(self.text(left), told, at)
                self._assign(self.text(left), right, at)
            elif left is not None and left.type == "attribute":
                self._assign_to_self(self.text(left), right, told, at)

    def _annotate(self, name: str, told: Tree, at: int) -> None:
        """`name: Class` in a function, or as a field of a class."""
        scope = self.scopes[at]
        instance = self._instance(told, scope)
        if scope.is_class and scope.owner:
            self.attributes[scope.owner, name] = instance
        elif instance is not None and at:
            scope.bound.setdefault(name, instance)

    def _assign_to_self(self, target: str, right: Tree | None, told: Tree | None, at: int) -> None:
        """`self.name = …`: of what type it is, if all assignments in the class agree; None beside one says nothing."""
        root, _, name = target.partition(".")
        scope = self.scopes[at]
        if (
            root != "self"
            or "." in name
            or scope.owner is None
            or (told is None and right is not None and right.type == "none")
        ):
            return
        key = scope.owner, name
        value = self._instance(told, scope) if told is not None else self._value(right, at)
        instance = value if value is not None and value.endswith("()") else None
        self.attributes[key] = instance if self.attributes.get(key, instance) == instance else None

    def _assign(self, name: str, right: Tree | None, at: int) -> None:
        scope = self.scopes[at]
        if name in scope.bound:
            if (scope.bound[name] or "()").endswith("()"):
                scope.bound[name] = None  # assigned twice: it may be either
            return
        meant = self._value(right, at)
        if meant is not None and at == 0 and right is not None and right.type != "call":
            self.aliases.append((f"{self.module.name}.{name}", meant))
        scope.bound[name] = meant

    def _value(self, right: Tree | None, at: int) -> str | None:
        """What an assigned expression means: another name, or an instance of what is called."""
        if right is not None and right.type in ("identifier", "attribute"):
            return self.meaning(self.text(right), at)
        called = right.child_by_field_name("function") if right is not None and right.type == "call" else None
        if called is None or called.type not in ("identifier", "attribute"):
            return None
        meant = self.meaning(self.text(called), at)
        return meant and f"{meant}()"

    def _instance(self, annotation: Tree | None, scope: Scope) -> str | None:
        """What a parameter is an instance of, by its annotation."""
        if annotation is None:
            return None
        named = _ANNOTATED.fullmatch(self.text(annotation))
        if named is None or named[1] in _BUILTINS:
            return None
        meant = self.meaning(named[1], scope.parent)
        return meant and f"{meant}()"

    # -- imports ----------------------------------------------------------------------------------

    def _imports(self) -> Iterator[Reference]:
        """Every import, wherever it stands; it binds names in its own scope."""
        seen: set[tuple[str, ...]] = set()
        for tree in self.found.get("import", ()):
            at, line = self.at(tree.start_byte), tree.start_point[0] + 1
            base, relative = self._base(tree)
            if base is None:
                continue
            plain = tree.type == "import_statement"
            # A script's own folder is where Python looks first for what it imports.
            beside = "" if self.module.packaged or relative else self.package
            for name, short in self._imported(tree):
                if plain:
                    full = name
                    self._import(
                        at, short or name.partition(".")[0], name if short else name.partition(".")[0]
                    )
                elif name == "*":
                    full = base
                    self.has_star = True
                    self.aliases.append((f"{self.module.name}.*", f"{base}.*"))
                else:
                    full = f"{base}.{name}" if base else name
                    self._import(at, short or name, full, alias=True)
                    if not plain:
                        yield Reference(self.scopes[at].node, "references", (full,), line)
                names = [full] if name == "*" else [full, full.rpartition(".")[0]]
                names += [f"{beside}.{each}" for each in names if beside and each]
                unique = tuple(dict.fromkeys(filter(None, names)))
                if unique not in seen:
                    seen.add(unique)
                    yield Reference(0, "imports", unique, line)

    def _import(self, at: int, name: str, target: str, *, alias: bool = False) -> None:
        self.scopes[at].bound.setdefault(name, target)
        if alias and at == 0:
            self.aliases.append((f"{self.module.name}.{name}", target))

    def _base(self, tree: Tree) -> tuple[str | None, bool]:
        """The absolute name of what `from` names, None when it leads above the top package; and if it is relative."""
        if tree.type == "import_statement":
            return "", False
        named = tree.child_by_field_name("module_name")
        text = re.sub(r"[\s\\]", "", self.text(named)) if named is not None else ""
        name = text.lstrip(".")
        level = len(text) - len(name)
        if not level:
            return name, False
        parts = self.package.split(".") if self.package else []
        if level > len(parts):
            return None, True
        parts = parts[: len(parts) - level + 1]
        return ".".join([*parts, name] if name else parts), True

    def _imported(self, tree: Tree) -> Iterator[tuple[str, str | None]]:
        """What is imported, and as what."""
        for child in tree.named_children:
            if child.type == "wildcard_import":
                yield "*", None
        for named in tree.children_by_field_name("name"):
            if named.type == "aliased_import":
                name, short = named.child_by_field_name("name"), named.child_by_field_name("alias")
                if name is not None and short is not None:
                    yield self.text(name), self.text(short)
            else:
                yield self.text(named), None

    # -- what refers to what ------------------------------------------------------------------------

    def references(self) -> Iterator[Reference]:
        """Imports, base classes, calls and other uses; each once per place and meaning."""
        yield from self._imports()
        self._bind()
        yield from self._inherits()
        seen: set[tuple[int, str]] = set()
        for kind in ("calls", "references"):
            for tree in self.found.get("call" if kind == "calls" else "use", ()):
                start = tree.start_byte
                at = self.at(start)
                meant = self._meant(self.source[start : tree.end_byte].decode(errors="replace"), at)
                if meant is None or (kind == "references" and meant[0] == UNKNOWN):
                    continue
                key = (self.scopes[at].node, meant)
                if key not in seen:
                    seen.add(key)
                    yield Reference(key[0], kind, (meant,), tree.start_point[0] + 1)

    def _meant(self, text: str, at: int) -> str | None:
        if not _DOTTED.fullmatch(text):
            return self._asked(text, at)
        root, _, rest = text.partition(".")
        if rest and root in ("self", "cls"):
            owner = self.scopes[at].owner
            if owner is not None:
                name, _, more = rest.partition(".")
                if not more:
                    return f"{owner}.{name}"
                held = self.attributes.get((owner, name))
                return used(f"{held}.{more}") if held else _unknown(more)
        meant = self.meaning(text, at)
        if meant is None:
            return _unknown(rest) if rest else None
        return used(meant)

    def _asked(self, text: str, at: int) -> str | None:
        """What `super().run` or `<some expression>.run` asks for."""
        head, _, name = text.rpartition(".")
        owner = self.scopes[at].owner
        if head.startswith("super(") and head.endswith(")") and "." not in head and owner is not None:
            return f"{owner}.{SUPER}.{name}"
        # `Class(…).run()`; of a function's result nothing is known, and nothing will be found.
        made = _MADE.fullmatch(head)
        meant = made and self.meaning(made[1], at)
        if meant and not meant.endswith("()"):
            return used(f"{meant}().{name}")
        return _unknown(name) if name.isidentifier() else None

    def _inherits(self) -> Iterator[Reference]:
        for here, bases in self.bases:
            line, seen = bases.start_point[0] + 1, set[str]()
            at = self.at(bases.parent.start_byte - 1) if bases.parent is not None else 0
            for tree in bases.named_children:
                written = tree.child_by_field_name("value") if tree.type == "subscript" else tree
                if written is None or written.type not in ("identifier", "attribute"):
                    continue
                meant = self.meaning(self.text(written), at)
                if meant is not None and meant not in seen and not meant.endswith("()"):
                    seen.add(meant)
                    yield Reference(here, "inherits", (meant,), line)


def _unknown(rest: str) -> str | None:
    name = rest.rpartition(".")[2]
    return None if name in _COMMON or name.startswith("__") else UNKNOWN + name
