"""What one Python file says about the graph of code: names that it defines, and names that it refers to.

Pure: nothing here knows what else is in the repository. References keep the names they may mean; the
build resolves them against everything that is there (`graph`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from . import chunking

# Folders that code is imported from, so that their own names are no part of a module's name.
_SOURCE_FOLDERS = frozenset({"src"})
_ENVIRONMENT_FOLDERS = frozenset({"site-packages", "dist-packages"})
_CLIMB_MAX = 20
_NAMESPACE_MAX = 4


class Module(msgspec.Struct, frozen=True):
    """How a file is imported. `packaged`: its folder is a package, so the name is certain."""

    name: str
    packaged: bool
    is_package: bool
    source: str
    """Folder that the top package is imported from."""
    other_names: tuple[str, ...]
    """What its place in the repository suggests, for namespace packages and scripts."""


class Node(msgspec.Struct, frozen=True):
    """A package, module, class or function with its lines. `parent` is an index into the same list."""

    kind: str
    qualname: str
    start: int
    end: int
    parent: int | None


class Reference(msgspec.Struct, frozen=True):
    """`src` (an index into the nodes) imports or inherits from the first of `names` that exists."""

    src: int
    kind: str
    names: tuple[str, ...]
    line: int


class Facts(msgspec.Struct, frozen=True):
    """All that a file says. `aliases` are re-exports: (name in this module, what it stands for)."""

    path: str
    module: Module
    nodes: list[Node]
    references: list[Reference]
    aliases: list[tuple[str, str]]
    note: str | None = None


# -- names of modules -------------------------------------------------------------------------


class Modules:
    """Names the modules below a root by the `__init__.py` files and the source folders around them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._has_init: dict[Path, bool] = {}

    def of(self, path: str) -> Module:
        """The module that a file is."""
        root, file = self.root, self.root / path
        own = [] if file.name == "__init__.py" else [file.stem]
        folder, names = file.parent, list[str]()
        while self._is_package(folder) and len(names) < _CLIMB_MAX:
            names.insert(0, folder.name)
            folder = folder.parent
        source = _source_folder(root, folder)
        # A folder without __init__.py inside a package is none that tools look into.
        orphan = not names and any(map(self._is_package, (folder, *folder.parents)[:_CLIMB_MAX]))
        packaged = "." not in file.stem and (bool(names) or (source is not None and not orphan))
        if source is not None:
            names = [*folder.relative_to(source).parts, *names]
        elif not packaged:
            names, folder = list(file.relative_to(root).parts[:-1]), root
        by_place = [*file.relative_to(root).parts[:-1], *own]
        full = [*names, *own]
        # Never a name that is shorter than the real one, but for folders between src and the package:
        # `typing` must not come to mean pkg/typing.py.
        others = {".".join(by_place)} if len(by_place) > len(full) else set()
        if not packaged:
            others.add(".".join([root.name, *by_place]))
        elif source is not None and source.is_relative_to(root) and folder != source:
            others.add(".".join([*file.parent.relative_to(folder).parts, *own]))
        name = ".".join(full) or root.name
        place = (source or folder).as_posix()
        return Module(name, packaged, not own, place, tuple(sorted(others - {name, ""})))

    def _is_package(self, folder: Path) -> bool:
        known = self._has_init.get(folder)
        if known is None:
            known = self._has_init[folder] = (folder / "__init__.py").exists()
        return known


def _source_folder(root: Path, folder: Path) -> Path | None:
    """The nearest folder at or above this one that code is imported from: folders in between are
    namespace packages. Above the root only an environment's counts: people keep projects in ~/src.
    """
    for above in (folder, *folder.parents)[:_NAMESPACE_MAX]:
        inside = above.is_relative_to(root) and above != root
        if above.name in _ENVIRONMENT_FOLDERS or (inside and above.name in _SOURCE_FOLDERS):
            return above
    return None


# -- one file ---------------------------------------------------------------------------------


def read(module: Module, path: str, text: str) -> Facts:
    """The facts of a file; a file that isn't Python is a module without any, and a note says so."""
    lines = chunking.split_lines(text)
    kind = "package" if module.is_package else "module"
    nodes = [Node(kind, module.name, 1, max(1, len(lines)), None)]
    try:
        tree = chunking.parse_python(lines)
        names = _Names(module)
        references = list(names.imports(tree))
        references += _definitions(tree.body, 0, nodes, names)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Facts(path, module, nodes, [], [], f"not parsable as Python ({type(error).__name__})")
    return Facts(path, module, nodes, references, names.aliases)


class _Names:
    """What names mean inside a module."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.package = module.name if module.is_package else module.name.rpartition(".")[0]
        self.bound: dict[str, str] = {}
        self.aliases: list[tuple[str, str]] = []

    def imports(self, tree: ast.Module) -> Iterator[Reference]:
        """Every import, wherever it stands; those of the module's own level also bind names."""
        at_module_level = {id(node) for node in _own_statements(tree.body)}
        seen: set[tuple[str, ...]] = set()
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            if id(node) in at_module_level:
                self._bind(node)
            for names in self._targets(node):
                if names not in seen:
                    seen.add(names)
                    yield Reference(0, "imports", names, node.lineno)

    def _base(self, node: ast.ImportFrom) -> str | None:
        """The absolute name of what `from` names; None when it leads above the top package."""
        if not node.level:
            return node.module
        parts = self.package.split(".") if self.package else []
        if node.level > len(parts):
            return None
        parts = parts[: len(parts) - node.level + 1]
        return ".".join([*parts, node.module] if node.module else parts)

    def _targets(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, ...]]:
        """Per imported thing, the modules that it may be: itself, else the one that holds it."""
        base, relative = "", False
        if isinstance(node, ast.ImportFrom):
            found = self._base(node)
            if found is None:
                return
            base, relative = found, node.level > 0
        # A script's own folder is where Python looks first for what it imports.
        beside = "" if self.module.packaged or relative else self.package
        for alias in node.names:
            if alias.name == "*":
                names = [base]
            else:
                name = f"{base}.{alias.name}" if base else alias.name
                names = [name, name.rpartition(".")[0]]
            names += [f"{beside}.{each}" for each in names if beside and each]
            yield tuple(dict.fromkeys(filter(None, names)))

    def _bind(self, node: ast.Import | ast.ImportFrom) -> None:
        own = self.module.name
        if isinstance(node, ast.Import):
            for alias in node.names:
                short = alias.asname or alias.name.partition(".")[0]
                self.bound[short] = alias.name if alias.asname else short
            return
        base = self._base(node)
        for alias in node.names if base else ():
            if alias.name == "*":
                self.aliases.append((f"{own}.*", f"{base}.*"))
            else:
                self.bound[alias.asname or alias.name] = f"{base}.{alias.name}"
                self.aliases.append((f"{own}.{alias.asname or alias.name}", f"{base}.{alias.name}"))

    def meaning(self, expression: ast.expr) -> str | None:
        """The dotted name that a base class is written as, made absolute; None for anything else."""
        parts: list[str] = []
        while isinstance(expression, ast.Attribute | ast.Subscript):
            if isinstance(expression, ast.Attribute):
                parts.insert(0, expression.attr)
            expression = expression.value
        if not isinstance(expression, ast.Name):
            return None
        return ".".join([self.bound.get(expression.id, f"{self.module.name}.{expression.id}"), *parts])


def _own_statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The statements of a module or class, also inside if, try, with and loops, but of no inner scope."""
    for node in body:
        yield node
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case) and not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ):
            yield from _own_statements(n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.expr))


def _definitions(body: list[ast.stmt], parent: int, nodes: list[Node], names: _Names) -> Iterator[Reference]:
    """Append classes and functions to the nodes; yield what the classes inherit from."""
    for node in _own_statements(body):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        qualname = f"{nodes[parent].qualname}.{node.name}"
        nodes.append(Node(kind, qualname, start, node.end_lineno or start, parent))
        here = len(nodes) - 1
        if isinstance(node, ast.ClassDef):
            meanings = dict.fromkeys(filter(None, map(names.meaning, node.bases)))
            yield from (Reference(here, "inherits", (name,), node.lineno) for name in meanings)
            yield from _definitions(node.body, here, nodes, names)
