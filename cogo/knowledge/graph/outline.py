"""The facts of a file in a language whose imports and calls nobody reads yet: what it defines."""

from __future__ import annotations

import posixpath

from .. import chunking
from .facts import Facts, Kind, Module, Node

ENDINGS = (".go", ".rs", ".java", ".sql")
_KINDS: dict[str, Kind] = {"class": "class", "function": "function", "method": "function"}


def named(path: str) -> Module:
    """A module is known by its path, without the ending."""
    return Module(posixpath.splitext(path)[0], packaged=True, is_package=False, source="")


def read(module: Module, path: str, text: str) -> Facts:
    """Classes and functions as they are cut for the index; several spans of one symbol are one node."""
    cut = chunking.chunk_file(path, text)
    nodes = [Node("module", module.name, 1, max(1, len(chunking.split_lines(text))), None)]
    places = {"": 0}
    for chunk in cut.chunks:
        if chunk.qualname in places or chunk.kind not in _KINDS:
            continue
        parent = places.get(chunk.qualname.rpartition(".")[0], 0)
        places[chunk.qualname] = len(nodes)
        nodes.append(
            Node(_KINDS[chunk.kind], f"{module.name}.{chunk.qualname}", chunk.start, chunk.end, parent)
        )
    return Facts(path, cut.lang, module, nodes, [], [], note=cut.note)
