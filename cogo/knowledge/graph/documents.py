"""The facts of a document: its sections, and the code that they name."""

from __future__ import annotations

import re
from typing import Final

from .. import chunking
from .facts import UNKNOWN, Facts, Kind, Module, Node, Reference

# `name`, ``name``, :func:`name` and :py:class:`~pkg.name`; a call's brackets may follow the name.
_MENTION: Final = re.compile(r"`+~?([A-Za-z_][\w.]*)(?:\([^`]*\))?`+")
_TELLING: Final = re.compile(r"[a-z]_[a-z]|[a-z][A-Z]|[A-Z][a-z]+[A-Z]")
"""A single word that somebody made up: snake_case or CamelCase."""


def named(path: str) -> Module:
    """A document is known by its path."""
    return Module(path, packaged=True, is_package=False, source="")


def read(module: Module, path: str, text: str) -> Facts:
    """Sections and what they mention; a single word is looked up only if it looks like a name."""
    cut = chunking.chunk_file(path, text)
    lines = len(chunking.split_lines(text))
    nodes = [Node("section", module.name, 1, max(1, lines), None)]
    references = list[Reference]()
    of_section: dict[str, int] = {"": 0}
    for chunk in cut.chunks:
        here = of_section.get(chunk.qualname)
        if here is None:  # a long section is several chunks
            kind: Kind = "section"
            parent = of_section.get(chunk.qualname.rpartition(" > ")[0], 0)
            here = of_section[chunk.qualname] = len(nodes)
            nodes.append(Node(kind, f"{path}#{chunk.qualname}", chunk.start, chunk.end, parent))
        seen = set[str]()
        for number, line in enumerate(chunk.text.split("\n"), chunk.start):
            for mention in _MENTION.findall(line):
                name = mention.strip(".")
                if name in seen or not ("." in name or _TELLING.search(name)):
                    continue
                seen.add(name)
                names = (name,) if "." in name else (UNKNOWN + name,)
                references.append(Reference(here, "documents", names, number))
    return Facts(path, cut.lang, module, nodes, references, [], note=cut.note)
