"""The files of a folder that the graph knows how to read, as facts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

import anyio
import msgspec

from .. import apart, chunking, scan
from . import documents, outline, python, script
from .facts import Facts, Kind, Module, Node, Reference
from .modules import Modules

VERSION: Final = b"3"
"""Part of every file's digest: what is read otherwise than before counts as changed."""
NAME_MAX: Final = 600
"""Characters; four bytes each at most, where an index takes 2,700."""
PACKAGES_MAX: Final = 1_000
_TEST: Final = re.compile(
    r"(^|/)(tests?|testing|__tests__|spec)/|(^|/)(test_[^/]*|[^/]*[_.](test|spec)|conftest)\.\w+$"
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_DOCUMENTS: Final = (".md", ".markdown", ".rst")


class Changed(msgspec.Struct, frozen=True):
    """A file as it is now."""

    facts: Facts
    digest: bytes
    words: str
    """Of all names that it refers to, each between line feeds."""


class Wanted(msgspec.Struct, frozen=True):
    """A file that is to be read, and how; its size in characters."""

    path: str
    reader: _Reader
    size: int


def compare(
    root: Path, known: Mapping[str, bytes], paths: Sequence[str] | None = None
) -> tuple[list[Wanted], list[str]]:
    """New and changed files below the root, and the known paths that are gone; with `paths`, among these only.

    Whoever names paths has looked which ones are wanted (`scan.list_files`). What a file is called depends on some
    files around it: when one of those changes, all are looked at.
    """
    if paths is not None and any(
        PurePosixPath(path).name in ("__init__.py", "package.json") for path in paths
    ):
        paths = None
    scripts = paths is None or any(path.endswith(tuple(script.ENDINGS)) for path in paths)
    listed = scan.list_files(root) if scripts else []
    folder = _Folder(root, listed)
    found, present = list[Wanted](), set[str]()
    for path in listed if paths is None else sorted(set(paths)):
        reader = folder.reader(path)
        if reader is None:
            continue
        try:
            content = _content(root, path)
        except scan.Skip:
            continue
        present.add(path)
        if known.get(path) != reader.digest(content):
            found.append(Wanted(path, reader, len(content.text)))
    expected = known.keys() if paths is None else known.keys() & set(paths)
    return found, sorted(expected - present)


async def read(root: Path, wanted: Sequence[Wanted]) -> list[Changed]:
    """The facts of these files, without those that are gone meanwhile."""
    made = await apart.run_each(partial(_read, root), wanted, [each.size for each in wanted])
    return await anyio.to_thread.run_sync(lambda: list(_unpacked(root, wanted, made)))


_DECODER: Final = msgspec.msgpack.Decoder(Changed)


def _unpacked(root: Path, wanted: Sequence[Wanted], made: Sequence[bytes | None]) -> Iterator[Changed]:
    for each, packed in zip(wanted, made, strict=True):
        said = packed if packed is not None else _read(root, each, "reading it took too long")
        if said:
            yield _DECODER.decode(said)


def _read(root: Path, wanted: Wanted, unread: str | None = None) -> bytes:
    """A packed Changed; nothing when the file is gone. `unread` says why its content is left out."""
    path, reader = wanted.path, wanted.reader
    try:
        content = _content(root, path)
    except scan.Skip:
        return b""
    text = _CONTROL.sub(" ", content.text)
    facts = _bounded(reader.skip(path, text, unread) if unread else reader.read(path, text))
    words = {word for each in facts.references for name in each.names for word in name.split(".")}
    said = "\n".join(["", *sorted(words), ""])
    return msgspec.msgpack.encode(Changed(facts, reader.digest(content), said))


def _content(root: Path, path: str) -> scan.Read:
    return scan.read_file(root, path, as_code=not path.endswith(_DOCUMENTS))


class _Reader(msgspec.Struct, frozen=True):
    """How a file is read: with all that its facts depend on besides its content."""

    module: Module
    is_test: bool
    packages: dict[str, str] | None = None
    """The repository's own npm packages: names and folders."""

    def digest(self, content: scan.Read) -> bytes:
        """Of all that the facts depend on."""
        said = content.digest + VERSION + msgspec.json.encode(self)
        return hashlib.blake2b(said, digest_size=16).digest()

    def skip(self, path: str, text: str, why: str) -> Facts:
        """A file of which only its name is known."""
        module = self.module
        kind: Kind = "package" if module.is_package else "module"
        node = Node(kind, module.name, 1, max(1, len(chunking.split_lines(text))), None)
        return Facts(path, chunking.language(path), module, [node], [], [], self.is_test, why)

    def read(self, path: str, text: str) -> Facts:
        if path.endswith(".py"):
            facts = python.read(self.module, path, text)
        elif path.endswith(_DOCUMENTS):
            facts = documents.read(self.module, path, text)
        elif path.endswith(outline.ENDINGS):
            facts = outline.read(self.module, path, text)
        else:
            facts = script.read(self.module, path, text, self.packages)
        if not self.is_test:
            return facts
        return msgspec.structs.replace(facts, is_test=True, references=list(_tested(facts.references)))


class _Folder:
    def __init__(self, root: Path, listed: Sequence[str]) -> None:
        self.modules = Modules(root)
        self.packages = _packages(root, listed)

    def reader(self, path: str) -> _Reader | None:
        """None for a file of another kind. What a .pyi says, the module says again."""
        is_test = _TEST.search(path) is not None
        if _CONTROL.search(path):
            return None
        if path.endswith(".py"):
            return _Reader(self.modules.of(path), is_test)
        if path.endswith(_DOCUMENTS):
            return _Reader(documents.named(path), is_test)
        if path.endswith(outline.ENDINGS):
            return _Reader(outline.named(path), is_test)
        if path.endswith(tuple(script.ENDINGS)):
            return _Reader(script.named(path), is_test, self.packages)
        return None


def _bounded(facts: Facts) -> Facts:
    """Names that an index of Postgres takes: longer ones are data in a heading, or nothing that one refers to."""
    replace = msgspec.structs.replace
    nodes = [
        n if len(n.qualname) <= NAME_MAX else replace(n, qualname=n.qualname[:NAME_MAX]) for n in facts.nodes
    ]
    references = [each for each in facts.references if all(len(name) <= NAME_MAX for name in each.names)]
    aliases = [pair for pair in facts.aliases if max(map(len, pair)) <= NAME_MAX]
    return replace(facts, nodes=nodes, references=references, aliases=aliases)


def _packages(root: Path, listed: Sequence[str]) -> dict[str, str]:
    found = dict[str, str]()
    for path in [path for path in listed if PurePosixPath(path).name == "package.json"][:PACKAGES_MAX]:
        try:
            name = msgspec.json.decode(scan.read_file(root, path).text, type=_Package).name
        except (scan.Skip, msgspec.MsgspecError):
            continue
        if name:
            found[name] = str(PurePosixPath(path).parent)
    return found


class _Package(msgspec.Struct):
    name: str | None = None


def _tested(references: Sequence[Reference]) -> Iterator[Reference]:
    """What a test calls or uses it tests, if that is no test itself."""
    seen = set[tuple[int, tuple[str, ...]]]()
    for each in references:
        yield each
        if each.kind in ("calls", "references") and (each.src, each.names) not in seen:
            seen.add((each.src, each.names))
            yield Reference(each.src, "tests", each.names, each.line)
