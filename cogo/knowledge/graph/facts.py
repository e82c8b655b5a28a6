"""What one file says about the graph of code: names that it defines, and names that it refers to.

Pure: nothing here knows what else is in the repository. A reference keeps the names it may mean, made absolute;
the build finds out what they are (`names`).
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Kind = Literal["package", "module", "class", "function", "section"]
EdgeKind = Literal["defines", "imports", "inherits", "calls", "references", "tests", "documents"]

SUPER: Final = "<super>"
"""In a name: what the class before it inherits, but not itself (`pkg.C.<super>.run`)."""
UNKNOWN: Final = "."
"""Begins the name of something that is asked of a value whose type nobody told (`.run`)."""


class Module(msgspec.Struct, frozen=True):
    """What a file is known as. `packaged`: its folder is a package, so the name is certain."""

    name: str
    packaged: bool
    is_package: bool
    source: str
    """Folder that the top package is imported from."""
    other_names: tuple[str, ...] = ()
    """What its place in the repository suggests, for namespace packages and scripts."""


class Node(msgspec.Struct, frozen=True):
    """A package, module, class, function or section with its lines. `parent` is an index into the same list."""

    kind: Kind
    qualname: str
    start: int
    end: int
    parent: int | None


class Reference(msgspec.Struct, frozen=True):
    """`src` (an index into the nodes) refers to the first of `names` that exists."""

    src: int
    kind: EdgeKind
    names: tuple[str, ...]
    line: int


class Facts(msgspec.Struct, frozen=True):
    """All that a file says. `aliases` are other names: (name in this module, what it stands for)."""

    path: str
    language: str
    module: Module
    nodes: list[Node]
    references: list[Reference]
    aliases: list[tuple[str, str]]
    is_test: bool = False
    note: str | None = None
