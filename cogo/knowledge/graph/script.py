"""The facts of a JavaScript or TypeScript file. Modules are known by their paths, without the ending.

Imports are resolved as a bundler does without configuration: relative paths by what is there, bare names by the
packages of the repository itself. What a `tsconfig` maps is not known.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from .. import syntax
from .facts import Facts, Kind, Module, Reference
from .scopes import Scopes, used

if TYPE_CHECKING:
    from tree_sitter import Node as Tree

ENDINGS: Final = {
    ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript", ".jsx": "javascript",
    ".ts": "typescript", ".mts": "typescript", ".cts": "typescript", ".tsx": "tsx",
}  # fmt: skip
_ENDING: Final = re.compile(r"\.(d\.)?[mc]?[jt]sx?$")
_JAVASCRIPT: Final = """
(import_statement) @import
(export_statement source: (string)) @export
(call_expression function: (import) arguments: (arguments . (string) @path))
(call_expression function: (identifier) @_require arguments: (arguments . (string) @path) (#eq? @_require "require"))
(function_declaration) @function
(generator_function_declaration) @function
(method_definition) @function
(arrow_function) @function
(function_expression) @function
(class_declaration) @class
(call_expression function: [(identifier) (member_expression)] @call)
(new_expression constructor: [(identifier) (member_expression)] @call)
(class_heritage) @bases
(arguments [(identifier) (member_expression)] @use)
(pair value: [(identifier) (member_expression)] @use)
(return_statement [(identifier) (member_expression)] @use)
(variable_declarator value: [(identifier) (member_expression)] @use)
(variable_declarator name: (identifier) @variable)
(arrow_function parameter: (identifier) @variable)
(catch_clause parameter: (identifier) @variable)
(shorthand_property_identifier_pattern) @variable
"""
_TYPES: Final = """
(import_require_clause source: (string) @path)
(abstract_class_declaration) @class
(interface_declaration) @class
(enum_declaration) @class
(type_alias_declaration) @class
(internal_module) @class
(type_annotation [(type_identifier) (nested_type_identifier)] @use)
(type_arguments [(type_identifier) (nested_type_identifier)] @use)
(extends_type_clause) @bases
(required_parameter pattern: (identifier) @variable)
(optional_parameter pattern: (identifier) @variable)
"""
_UNTYPED: Final = """
(class) @class
(formal_parameters (identifier) @variable)
"""
_JSX: Final = """
(jsx_opening_element name: [(identifier) (member_expression)] @call)
(jsx_self_closing_element name: [(identifier) (member_expression)] @call)
"""
_QUERIES: Final = {
    "javascript": _JAVASCRIPT + _UNTYPED + _JSX, "typescript": _JAVASCRIPT + _TYPES, "tsx": _JAVASCRIPT + _TYPES + _JSX,
}  # fmt: skip
_DOTTED: Final = re.compile(r"[\w$]+(?:\.[\w$]+)*")
_NAMED: Final = (
    "identifier",
    "type_identifier",
    "property_identifier",
    "private_property_identifier",
    "string",
)


def named(path: str) -> Module:
    """`src/api/index.ts` is src/api/index, and src/api by its folder."""
    name = _ENDING.sub("", path)
    folder, _, last = name.rpartition("/")
    others = (folder,) if last == "index" and folder else ()
    return Module(
        name if folder else f"./{name}", packaged=True, is_package=False, source="", other_names=others
    )


def read(module: Module, path: str, text: str, packages: Mapping[str, str] | None = None) -> Facts:
    """The facts of a file. `packages` are the repository's own: their names and folders."""
    source = text.replace("\r\n", "\n").replace("\r", "\n").encode()
    language = ENDINGS[posixpath.splitext(path)[1].lower()]
    try:
        root = syntax.parse(language, source).root_node
    except syntax.TooDeepError as error:
        nodes = Scopes(module, source).nodes
        return Facts(path, language.replace("tsx", "typescript"), module, nodes, [], [], note=str(error))
    found = syntax.captures(syntax.query(language, _QUERIES[language]), root)
    reader = _Reader(module, source, found, posixpath.dirname(path), packages or {})
    references = list(reader.references())
    aliases = reader.aliases + [(name, module.name) for name in module.other_names]
    note = "parts of it are not parsable" if root.has_error else None
    return Facts(
        path, language.replace("tsx", "typescript"), module, reader.nodes, references, aliases, note=note
    )


class _Reader(Scopes):
    sees_class_names = False

    def __init__(
        self, module: Module, source: bytes, found: Mapping[str, list[Tree]], folder: str,
        packages: Mapping[str, str],
    ) -> None:  # fmt: skip
        super().__init__(module, source)
        self.found, self.folder, self.packages = found, folder, packages
        self.aliases: list[tuple[str, str]] = []
        scopes = [(n.start_byte, -n.end_byte, n, True) for n in found.get("class", ())]
        scopes += [(n.start_byte, -n.end_byte, n, False) for n in found.get("function", ())]
        self.heirs: dict[int, int] = {}
        for _, _, tree, is_class in sorted(scopes, key=lambda each: each[:2]):
            name, whole = _called(tree)
            kind: Kind = "class" if is_class else "function"
            lines = whole.start_point[0] + 1, whole.end_point[0] + 1
            here = self.open(tree, name and self.text(name).strip("'\"`#"), kind, lines=lines)
            if is_class:
                self.heirs[tree.id] = here

    # -- imports ----------------------------------------------------------------------------------

    def modules(self, tree: Tree) -> tuple[str, ...]:
        """What a path may mean, by name."""
        path = self.text(tree).strip("'\"`")
        if path.startswith("."):
            name = _ENDING.sub("", posixpath.normpath(posixpath.join(self.folder, path)))
            if name.startswith(".."):
                return ()
            return (name if "/" in name else f"./{name}", f"{name}/index")
        parts = path.split("/")
        for length in (1, 2):
            folder = self.packages.get("/".join(parts[:length]))
            if folder is not None:
                rest = _ENDING.sub("", "/".join(parts[length:])) or "index"
                places = [
                    posixpath.normpath(posixpath.join(folder, at, rest)) for at in ("src", ".", "lib", "dist")
                ]
                return tuple(place for name in places for place in (name, f"{name}/index"))
        return ()

    def _imports(self) -> Iterator[Reference]:
        seen = set[tuple[str, ...]]()
        trees = [*self.found.get("import", ()), *self.found.get("export", ()), *self.found.get("path", ())]
        for tree in trees:
            path = tree if tree.type == "string" else tree.child_by_field_name("source")
            names = self.modules(path) if path is not None else ()
            if not names:
                continue
            if names not in seen:
                seen.add(names)
                yield Reference(0, "imports", names, tree.start_point[0] + 1)
            if tree.type == "import_statement":
                self._bind(tree, names[0])
            elif tree.type == "export_statement":
                self._again(tree, names[0])
            else:
                self._required(tree, names[0])

    def _bind(self, tree: Tree, module: str) -> None:
        bound = self.scopes[0].bound
        for clause in (child for child in tree.named_children if child.type == "import_clause"):
            for part in clause.named_children:
                if part.type == "identifier":
                    bound.setdefault(self.text(part), f"{module}.default")
                elif part.type == "namespace_import":
                    bound.setdefault(self.text(part.named_children[0]), module)
                elif part.type == "named_imports":
                    for name, short in self._names(part, "import_specifier"):
                        bound.setdefault(short, f"{module}.{name}")

    def _required(self, path: Tree, module: str) -> None:
        """`const utils = require("./utils")`, `const { compile } = require("./utils")`."""
        call = path.parent and path.parent.parent
        declared = call and call.parent
        name = (
            declared.child_by_field_name("name")
            if declared and declared.type == "variable_declarator"
            else None
        )
        if name is None or declared is None:
            return
        bound = self.scopes[self.at(declared.start_byte)].bound
        if name.type == "identifier":
            bound.setdefault(self.text(name), module)
        for part in name.named_children:
            if part.type == "shorthand_property_identifier_pattern":
                bound.setdefault(self.text(part), f"{module}.{self.text(part)}")

    def _again(self, tree: Tree, module: str) -> None:
        """`export … from`."""
        own, told = self.module.name, False
        for clause in tree.named_children:
            if clause.type == "export_clause":
                told = True
                self.aliases += [
                    (f"{own}.{short}", f"{module}.{name}")
                    for name, short in self._names(clause, "export_specifier")
                ]
            elif clause.type == "namespace_export":
                told = True
                self.aliases.append((f"{own}.{self.text(clause.named_children[0])}", module))
        if not told:
            self.aliases.append((f"{own}.*", f"{module}.*"))

    def _names(self, clause: Tree, kind: str) -> Iterator[tuple[str, str]]:
        for each in clause.named_children:
            name, short = each.child_by_field_name("name"), each.child_by_field_name("alias")
            if each.type == kind and name is not None:
                yield self.text(name), self.text(short or name)

    # -- what refers to what ------------------------------------------------------------------------

    def references(self) -> Iterator[Reference]:
        """Imports, what classes extend, calls and other uses; each once per place and meaning."""
        yield from self._imports()
        self.hide(self.found.get("variable", ()))
        for clause in self.found.get("bases", ()):
            yield from self._inherits(clause)
        seen: set[tuple[int, str]] = set()
        known = self.words() | {"this"}
        for kind in ("calls", "references"):
            for tree in self.found.get("call" if kind == "calls" else "use", ()):
                text = self.text(tree)
                if text.partition(".")[0] not in known:
                    continue
                place = self.at(tree.start_byte)
                meant = self._meant(text, place)
                key = (self.scopes[place].node, meant or "")
                if meant is not None and key not in seen:
                    seen.add(key)
                    yield Reference(key[0], kind, (meant,), tree.start_point[0] + 1)

    def _meant(self, text: str, place: int) -> str | None:
        if not _DOTTED.fullmatch(text):
            return None
        root, _, rest = text.partition(".")
        owner = self.scopes[place].owner
        if root == "this":
            return f"{owner}.{rest}" if owner and rest and "." not in rest else None
        return used(self.meaning(text, place))

    def _inherits(self, clause: Tree) -> Iterator[Reference]:
        heir = clause.parent
        while heir is not None and heir.id not in self.heirs:
            heir = heir.parent
        if heir is None:
            return
        place = self.at(max(0, heir.start_byte - 1))
        for part in re.findall(
            r"[A-Za-z_$][\w$.]*", re.sub(r"<.*>|\(.*\)", "", self.text(clause), flags=re.DOTALL)
        ):
            meant = None if part in ("extends", "implements") else self._meant(part, place)
            if meant is not None:
                yield Reference(self.heirs[heir.id], "inherits", (meant,), clause.start_point[0] + 1)


def _called(tree: Tree) -> tuple[Tree | None, Tree]:
    """The name of a function or class, if it has one, and all that belongs to it."""
    name, whole = tree.child_by_field_name("name"), tree
    above = tree.parent
    if (
        name is None
        and above is not None
        and above.type in ("variable_declarator", "public_field_definition", "field_definition")
    ):
        name = above.child_by_field_name("name") or above.child_by_field_name("property")
        whole = above.parent if above.type == "variable_declarator" and above.parent is not None else above
    elif name is None and above is not None and above.type == "assignment_expression":
        left = above.child_by_field_name("left")
        if left is not None and left.type == "member_expression":
            name = left.child_by_field_name("property")
    if name is not None and name.type not in _NAMED:
        name = None
    above = whole.parent
    return name, above if above is not None and above.type == "export_statement" else whole
