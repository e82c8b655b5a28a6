"""Files into the index: what changed is replaced, one transaction per file; what is gone is removed.

Nothing here keeps a state of its own: what is indexed is what has rows. So a message that is run again,
by another worker or after a crash, does what is left to do and nothing twice.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import anyio
import msgspec

from cogo import errors

from . import apart, chunking, queries, scan, sources, tokens, vectors

if TYPE_CHECKING:
    from cogo import Database

# BM25 with a fixed pivot instead of the corpus' average length, so that a span's weights never change
# when others come and go (docs/adr/0005). Tuned on networkx and litestar, checked on others.
K1, B = 1.6, 0.75
PIVOT = {"section": 90.0}
PIVOT_CODE = 50.0
# How often the words of a name count as if they stood in the text: a symbol's own name, what it lies in,
# and the path.
NAME_WEIGHT, PARENT_WEIGHT, PATH_WEIGHT = 6, 3, 2
TITLE_WEIGHT = 3
# What a span is worth besides its words. The head of a module lists many names and says little about
# one; __repr__ and its kin are short and full of the class's name; a test says all the words of what it
# tests, but isn't where it is done.
PRIOR_MODULE, PRIOR_DUNDER, PRIOR_TEST = 0.92, 0.85, 0.8
_DUNDER = re.compile(r"\.__\w+__$")
_TEST = re.compile(
    r"(^|/)(tests?|testing|__tests__)/|(^|/)(test_[^/]*|[^/]*(_test|[.]test|[.]spec|[a-z]Tests?)|conftest)\.\w+$"
)
# The bracket that closes a class stands in a chunk, but there is nothing to find in it.
_WORD = re.compile(r"\w")


class Repo(msgspec.Struct, frozen=True):
    """A repository of a tenant. `root` is None for the rows of a table."""

    id: int
    root: str | None


class Plan(msgspec.Struct):
    """What a scan found: `changed` and `gone` are paths to index, the rest are counts.

    `unparsed` counts files by programming language where they are cut into lines: there is no grammar for it.
    """

    files: int = 0
    changed: list[str] = []
    gone: list[str] = []
    skipped: dict[str, int] = {}
    unparsed: dict[str, int] = {}


class Report(msgspec.Struct):
    """What indexing some paths did. `skipped` counts files by reason, `notes` say what was simplified."""

    files: int = 0
    chunks: int = 0
    removed: int = 0
    skipped: dict[str, int] = {}
    notes: dict[str, str] = {}


class Prepared(msgspec.Struct, frozen=True):
    """A file ready to be written: its chunks, and per term the chunks that hold it with their weights."""

    lang: str
    note: str | None
    chunks: Sequence[chunking.Chunk]
    postings: dict[str, tuple[list[int], list[float]]]


class Put(msgspec.Struct, frozen=True):
    """What became of one file; `why` it has no rows now, or none that are new."""

    done: Literal["indexed", "unchanged", "removed", "absent"]
    prepared: Prepared | None = None
    why: str | None = None


Load = Callable[[Any], Awaitable[scan.Read]]
"""Reads the newest content, on the transaction's connection if it needs one. Raises Skip, Gone."""


async def open_repo(db: Database, tenant: str, name: str, root: str | None, *, move: bool = False) -> Repo:
    """The repository of that name, made if it is new; `move` gives it another root if its own is gone.

    Raises TaskInvalid when the name means another folder: its files would replace the other's.
    """
    found = await db.fetch_one(queries.REPO, (tenant, name))
    if found is None or (
        move and found["root"] != root and not await anyio.Path(found["root"] or "/").is_dir()
    ):
        found = await db.fetch_one(queries.KEEP_REPO, (tenant, name, root))
    if found is None or found["root"] != root:
        folder = found["root"] if found else "nowhere"
        raise errors.TaskInvalid(f"{name!r} is indexed from {folder}; give another `repo` - at `$.repo`")
    return Repo(found["id"], found["root"])


# -- a whole folder ---------------------------------------------------------------------------


async def plan(db: Database, repo: Repo, root: Path) -> Plan:
    """Read and hash every file below the root, and compare with what is indexed."""
    rows = await db.fetch(queries.DIGESTS, (repo.id,))
    known = {row["path"]: bytes(row["digest"]) for row in rows}
    return await anyio.to_thread.run_sync(_compare, root, known)


def _compare(root: Path, known: dict[str, bytes]) -> Plan:
    found, skipped, present = Plan(), Counter[str](), set[str]()
    for path in scan.list_files(root):
        try:
            digest = scan.read_file(root, path).digest
        except scan.Skip as reason:
            skipped[str(reason)] += 1
            continue
        present.add(path)
        if known.get(path) != digest:
            found.changed.append(path)
    skipped.pop("gone", None)
    found.files, found.skipped = len(present), dict(skipped)
    found.gone = sorted(known.keys() - present)
    found.unparsed = chunking.cut_into_lines(present)
    return found


async def index_paths(db: Database, repo: Repo, root: Path, paths: Sequence[str]) -> Report:
    """Index these files below the root as they are now; those that are gone leave the index.

    A file that fails doesn't stop the others. Raises BusUnavailable, and HandlerFailed at the end when
    files failed, so that the message is tried again and finally counts as failed, with their names.
    """
    return await _index(db, repo, [(path, partial(_load_file, root, path)) for path in paths])


async def _index(db: Database, repo: Repo, loads: Sequence[tuple[str, Load]]) -> Report:
    report, skipped, failed = Report(), Counter[str](), dict[str, str]()
    for path, load in loads:
        try:
            put = await put_file(db, repo, path, load)
        except errors.BusUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 (whatever one file does, the others are indexed)
            failed[path] = f"{type(error).__name__}: {error}"[:300]
            continue
        if put.prepared:
            report.files += 1
            report.chunks += len(put.prepared.chunks)
            if put.prepared.note:
                report.notes[path] = put.prepared.note
        report.removed += put.done == "removed"
        skipped.update([put.why] if put.why else [])
    if failed:
        names = "; ".join(f"{path}: {error}" for path, error in failed.items())
        raise errors.HandlerFailed(f"{len(failed)} of {len(loads)} files failed: {names}"[:1_500])
    report.skipped = dict(skipped)
    return report


async def _load_file(root: Path, path: str, _conn: object) -> scan.Read:
    return await anyio.to_thread.run_sync(scan.read_file, root, path)


# -- one file ---------------------------------------------------------------------------------


async def put_file(db: Database, repo: Repo, path: str, load: Load) -> Put:
    """Make the index say what `load` returns. One transaction: readers see the old file or the new."""
    async with db.transaction() as conn:
        await conn.execute(queries.NO_WAIT)
        await conn.execute(queries.LOCK_FILE, (repo.id, path))
        old = await (await conn.execute(queries.FILE, (repo.id, path))).fetchone()
        try:
            read = await load(conn)
        except scan.Skip as reason:
            if old is None:
                return Put("absent", why=str(reason))
            await conn.execute(queries.DELETE_FILE, (old["id"],))
            return Put("removed", why=str(reason))
        if old is not None and bytes(old["digest"]) == read.digest:
            return Put("unchanged", why="unchanged")
        prepared = await _prepared(path, read)
        await _write(conn, repo, path, None if old is None else old["id"], read.digest, prepared)
    return Put("indexed", prepared)


async def _write(
    conn: Any, repo: Repo, path: str, file_id: int | None, content: bytes, prepared: Prepared
) -> None:
    row = {
        "id": file_id, "repo_id": repo.id, "path": path, "digest": content, "lang": prepared.lang,
        "note": prepared.note, "n_chunks": len(prepared.chunks),
    }  # fmt: skip
    if file_id is None:
        file_id = (await (await conn.execute(queries.INSERT_FILE, row)).fetchone())["id"]
    else:
        await conn.execute(queries.EMPTY_FILE, row)
    async with conn.cursor() as cursor:
        async with cursor.copy(queries.COPY_CHUNKS) as copy:
            for ord, c in enumerate(prepared.chunks):
                named = _WORD.search(c.text) is not None
                digest = vectors.digest(path, c.kind, c.qualname, c.text) if named else None
                await copy.write_row((file_id, ord, c.kind, c.qualname, c.start, c.end, c.text, digest))
        async with cursor.copy(queries.COPY_POSTINGS) as copy:
            for term, (ords, weights) in prepared.postings.items():
                await copy.write_row((repo.id, term, file_id, ords, weights))


async def _prepared(path: str, read: scan.Read) -> Prepared:
    if not chunking.has_grammar(read.lang or chunking.language(path)):
        return await anyio.to_thread.run_sync(prepare, path, read)
    (packed,) = await apart.run_each(_pack, [(path, read)], [len(read.text)])
    if packed is None:
        return await anyio.to_thread.run_sync(partial(prepare, uncut="parsing it took too long"), path, read)
    return msgspec.msgpack.decode(packed, type=Prepared)


def _pack(file: tuple[str, scan.Read]) -> bytes:
    return msgspec.msgpack.encode(prepare(*file))


def prepare(path: str, read: scan.Read, uncut: str | None = None) -> Prepared:
    """Cut a file and weigh its words; `uncut` says why it is only cut into windows. Takes CPU: call it in a thread."""
    cut = chunking.chunk_file(path, read.text, read.lang, uncut)
    note = "; ".join(filter(None, (read.note, cut.note))) or None
    return Prepared(cut.lang, note, cut.chunks, _postings(path, cut.chunks))


def _postings(path: str, chunks: Sequence[chunking.Chunk]) -> dict[str, tuple[list[int], list[float]]]:
    found: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    place = tokens.terms(str(PurePosixPath(path).with_suffix("")))
    of_file = (K1 + 1) * (PRIOR_TEST if _TEST.search(path) else 1.0)
    for ord, chunk in enumerate(chunks):
        if not _WORD.search(chunk.text):
            continue
        counts = Counter(tokens.terms(chunk.text) + _names(chunk) + place * PATH_WEIGHT)
        length = 1 - B + B * counts.total() / PIVOT.get(chunk.kind, PIVOT_CODE)
        prior = of_file * (PRIOR_MODULE if chunk.kind == "module" else 1.0)
        prior *= PRIOR_DUNDER if _DUNDER.search(chunk.qualname) else 1.0
        for term, n in counts.items():
            ords, weights = found[term]
            ords.append(ord)
            weights.append(round(prior * n / (n + K1 * length), 5))
    return found


def _names(chunk: chunking.Chunk) -> list[str]:
    """The words of what the chunk is called, as often as they count."""
    if chunk.kind == "section":
        return tokens.terms(chunk.qualname) * TITLE_WEIGHT
    parent, _, own = chunk.qualname.rpartition(".")
    return tokens.terms(own) * NAME_WEIGHT + tokens.terms(parent) * PARENT_WEIGHT


# -- rows of a table --------------------------------------------------------------------------


async def index_rows(db: Database, tenant: str, table: str, ids: Sequence[str]) -> Report:
    """Index these rows of a followed table as documents `table/id`; deleted rows leave the index.

    Raises TaskInvalid when nobody declared that the table may be read, or when it isn't as it was declared.
    """
    source = await sources.readable(db, table)
    repo = await open_repo(db, tenant, table, None)
    return await _index(
        db, repo, [(row_path(table, id), partial(_load_row, source, tenant, id)) for id in ids]
    )


def row_path(source: str, id: str) -> str:
    """What a row is called among the files."""
    return f"{source}/{id}"


async def _load_row(source: sources.Source, tenant: str, id: str, conn: Any) -> scan.Read:
    row = await (await conn.execute(queries.READ_ROW, (source.table, tenant, id))).fetchone()
    if row is None or row["body"] is None:
        raise scan.Gone("gone")
    read = scan.read_text(row["body"].encode())
    if source.table != sources.CODE:
        return msgspec.structs.replace(read, lang="markdown")
    lang = language(row["path"], row["lang"])
    digest = hashlib.blake2b(read.digest + lang.encode(), digest_size=16).digest()
    return msgspec.structs.replace(read, lang=lang, digest=digest)


def language(path: str | None, named: str | None) -> str:
    """What a row of code is written in: as it says (`Python`, `py`), else by its path's ending, else `text`."""
    said = (named or "").strip().lower()
    by_ending = chunking.language(f"x.{said}")
    return by_ending if by_ending != "text" else said or chunking.language(path or "")
