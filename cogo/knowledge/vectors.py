"""Vectors of the index: what is embedded, what lacks a vector, and which chunks are nearest to a question.

What has a vector is what has a row: nothing here counts or flags. The text that is embedded has a digest; a
chunk whose digest has no vector of a model lacks one, and whoever fills them may stop at any time.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import time
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from cogo import errors

from . import queries, tokens
from .embedding import Embedder, Model, local, open_embedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cogo import Database, Settings

    from .search import Scope

TEXT_MAX: Final = 1_200
"""Characters of a chunk that are embedded: what comes later changes little, and costs as much."""
BATCH: Final = 64
MATRIX_BLOCK: Final = 8_192
"""Vectors that are compared at a time."""
NEAREST: Final = 300
"""Chunks that are candidates by their vectors."""
WEIGHT: Final = 0.5
WEIGHT_SECTION: Final = 0.4
"""What vectors count, in code and in documents; words count the rest. Measured (docs/adr/0011)."""
NAME: Final = 0.2
"""How much of a chunk's vector is that of its name alone, before its length is made 1 again."""
PATIENCE_S: Final = 2.0
PATIENCE_EACH_S: Final = 0.05
"""Questions wait no longer for their vectors, and this much for each; then words alone answer them."""
REST_S: Final = 30.0
"""After a failure questions don't try the model again for so long: a dead server would cost each its patience."""
MAX_SCANNED: Final = 100_000
"""Vectors of others that the index passes over while it looks for those of a scope."""
_log = logging.getLogger("cogo.knowledge")


def embedded_texts(path: str, kind: str, qualname: str, text: str) -> tuple[str, str | None]:
    """What a chunk is embedded as: where it stands and what it is called, in words, then its beginning.

    And its name alone, if it is code: in a long text the model hears little of it. A section begins with its title.
    """
    if kind == "section":
        return f"{qualname}\n{text}"[:TEXT_MAX], None
    file = PurePosixPath(path).with_suffix("")
    place, name = _in_words(f"{file} {qualname}"), _in_words(qualname) or _in_words(file.name)
    return f"{place}\n{text[:TEXT_MAX]}", name or None


def _in_words(name: str) -> str:
    return " ".join(tokens.pieces(name)).lower()


def digest(path: str, kind: str, qualname: str, text: str) -> bytes:
    """Of the texts that are embedded: the same digest, the same vector."""
    whole, name = embedded_texts(path, kind, qualname, text)
    made_of = whole if name is None else f"{name}\n{NAME}\n{whole}"
    return hashlib.blake2b(made_of.encode(), digest_size=16).digest()


async def embed_chunks(embedder: Embedder, chunks: Sequence[Mapping[str, str]]) -> NDArray[np.float32]:
    """One vector of length 1 for each chunk: `path`, `kind`, `qualname` and `text`, as rows name them."""
    import numpy as np

    pairs = [embedded_texts(c["path"], c["kind"], c["qualname"], c["text"]) for c in chunks]
    places: dict[str, int] = {}  # of each text; methods share names
    for text in (text for pair in pairs for text in pair if text is not None):
        places.setdefault(text, len(places))
    found = await embedder.embed(list(places))
    vectors: NDArray[np.float32] = found[[places[whole] for whole, _ in pairs]]
    named = [place for place, (_, name) in enumerate(pairs) if name is not None]
    vectors[named] += NAME * found[[places[name] for _, name in pairs if name is not None]]
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return vectors


def certainty(model: Model, likeness: float) -> float:
    """How sure it is, from 0 to 1, that a span is about the question, by their likeness alone.

    Measured for minilm (docs/adr/0009): questions about something else come to 0.41 at most, 98 % stay below
    0.39; those about the subject reach 0.44 in nine of ten cases. Other models have other scales: 0.
    """
    return min(1.0, max(0.0, 2 * likeness - 0.4)) if model.name == "minilm" else 0.0


class Table(msgspec.Struct, frozen=True):
    """The vectors of one model. `pgvector` is the schema of the extension, None where there is none."""

    id: int
    model: Model
    pgvector: str | None

    @property
    def name(self) -> str:
        return f"cogo.kb_vectors_{self.id}"


class Vectors:
    """The embedders of a process, and which of them questions need."""

    def __init__(self, db: Database, data_dir: Path) -> None:
        self._db = db
        self._data_dir = data_dir
        self.keys: dict[str, str] | None = None
        """Of servers that embed, by their environment names; None: as the environment has them."""
        self._embedders: dict[Model, Embedder] = {}
        self._matrices: dict[tuple[int, tuple[int, ...]], Matrix] = {}
        self.unavailable: str | None = None
        """Why questions are answered by words alone though there are vectors."""
        self._again_at = 0.0

    def embedder(self, model: Model) -> Embedder:
        """Opened once. Raises ModelUnavailable."""
        if model not in self._embedders:
            self._embedders[model] = open_embedder(model, self._data_dir, self.keys)
        return self._embedders[model]

    async def aclose(self) -> None:
        """Close the embedders; they are opened again when they are needed."""
        while self._embedders:
            _, embedder = self._embedders.popitem()
            await embedder.aclose()

    def installed(self, name: str) -> Model | None:
        """The model of that name that can run in this process."""
        return local.installed(self._data_dir, name)

    async def serving(self) -> Table | None:
        """The vectors that answer."""
        row = await self._db.fetch_one(queries.MODEL_SERVING)
        return None if row is None else _table(row)

    async def matrix(self, table: Table, repos: Sequence[int], narrow: str, scope: Scope) -> Matrix:
        """All vectors of these repositories; kept as long as they don't change, unless they are narrowed down."""
        params = {
            "repos": list(repos),
            "paths": None if scope.paths is None else list(scope.paths),
            "kinds": None if scope.kinds is None else list(scope.kinds),
        }
        row = await self._db.fetch_one(queries.VECTORS_VERSION.format(table=table.name), params)
        assert row is not None
        version = (row["count"], row["newest"])
        place = (table.id, tuple(repos))
        kept = self._matrices.get(place)
        if kept is not None and kept.version == version and not narrow:
            return kept
        rows = await self._db.fetch(queries.ALL_VECTORS.format(table=table.name, narrow=narrow), params)
        matrix = await anyio.to_thread.run_sync(_matrix, version, rows, table.model.dimension)
        if not narrow:
            self._matrices.clear()  # the one that was asked last: they may be large
            self._matrices[place] = matrix
        return matrix

    async def of_questions(self, texts: Sequence[str]) -> tuple[Table, NDArray[np.float32]] | None:
        """The questions' vectors and the table to look in; None where words alone must do."""
        table = await self.serving()
        if table is None:
            self.unavailable = None
            return None
        if self.unavailable and time.monotonic() < self._again_at:
            return None
        self._again_at = time.monotonic() + REST_S  # of those that come meanwhile none waits for the same
        try:
            with anyio.fail_after(PATIENCE_S + len(texts) * PATIENCE_EACH_S):
                found = await self.embedder(table.model).embed(texts)
        except errors.BusUnavailable:
            raise
        except Exception as reason:  # noqa: BLE001 (whatever a model does, words can answer)
            said = f"{type(reason).__name__}: {reason}"
            if said != self.unavailable:
                _log.warning("questions are answered by words alone: %s", said)
            self.unavailable = said
            self._again_at = time.monotonic() + REST_S
            return None
        self.unavailable = None
        return table, found


_ATTACHED: weakref.WeakKeyDictionary[Database, Vectors] = weakref.WeakKeyDictionary()


def attach(db: Database, home: Path | Settings) -> Vectors:
    """Have searches of this database use vectors, with models from this data home, and the settings' keys."""
    if isinstance(home, Path):
        return _ATTACHED.setdefault(db, Vectors(db, home))
    found = _ATTACHED.setdefault(db, Vectors(db, home.data_dir))
    secrets = {"COGO_EMBED_API_KEY": home.embed_api_key, "OPENAI_API_KEY": home.openai_api_key}
    found.keys = {name: secret.reveal() for name, secret in secrets.items() if secret}
    return found


@asynccontextmanager
async def attached(db: Database, home: Path | Settings) -> AsyncIterator[None]:
    """The same for the life of a process: at its end the embedders are closed."""
    found = attach(db, home)
    yield
    await found.aclose()


def of(db: Database) -> Vectors | None:
    """What was attached to this database."""
    return _ATTACHED.get(db)


class Account(msgspec.Struct, frozen=True):
    """Whether vectors had a say in an answer: by which model, or why words alone decided."""

    model: str | None
    used: bool
    why: str | None = None


async def account(db: Database, *, used: bool) -> Account:
    """What to say of searches that were just made; `used` as their hits tell (`by_vectors`)."""
    known = of(db)
    table = await known.serving() if known else None
    if table is None:
        return Account(None, used, None if used else "no model has made the vectors of what is indexed")
    return Account(table.model.name, used, None if used or known is None else known.unavailable)


# -- asking -----------------------------------------------------------------------------------


class Near(msgspec.Struct, frozen=True):
    """The part of the search that finds what is nearest to each of the questions."""

    sql: str
    table: Table
    given: list[dict[str, Any]]

    def params(self, place: int) -> dict[str, Any]:
        """Of the question at this place."""
        return {"weight": WEIGHT, "weight_section": WEIGHT_SECTION, **self.given[place]}


async def near(db: Database, repos: Sequence[int], texts: Sequence[str], scope: Scope) -> Near | None:
    """How to find the nearest chunks to these questions; None where words alone must do."""
    known = of(db)
    if known is None or (found := await known.of_questions(texts)) is None:
        return None
    table, questions = found
    narrow = (queries.NEAR_PATHS if scope.paths is not None else "") + (
        queries.NEAR_KINDS if scope.kinds is not None else ""
    )
    if table.pgvector is not None:
        sql = queries.NEAR_PGVECTOR.format(table=table.name, pgvector=_quoted(table.pgvector), narrow=narrow)
        return Near(sql, table, [{"vector": literal(row), "nearest": NEAREST} for row in questions])
    matrix = await known.matrix(table, repos, narrow, scope)
    return Near(queries.NEAR_GIVEN, table, await anyio.to_thread.run_sync(matrix.nearest, questions))


@dataclass(frozen=True)
class Matrix:
    """The vectors of some repositories in memory, where Postgres can't compare them."""

    version: tuple[int, int]
    """How many there are, and the newest one's id: it changes with every change."""
    files: list[int]
    digests: list[bytes]
    vectors: NDArray[np.float16]

    def nearest(self, questions: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Per question the parameters of NEAR_GIVEN. Takes CPU: call it in a thread."""
        import numpy as np

        found = []
        for question in questions:
            blocks = range(0, len(self.files), MATRIX_BLOCK)
            parts = [self.vectors[at : at + MATRIX_BLOCK].astype(np.float32) @ question for at in blocks]
            likeness = np.concatenate(parts) if parts else np.zeros(0, np.float32)
            places = np.argsort(-likeness)[:NEAREST].tolist()
            found.append({
                "near_files": [self.files[i] for i in places], "near_digests": [self.digests[i] for i in places],
                "near_likeness": likeness[places].tolist(),
            })  # fmt: skip
        return found


# -- filling ----------------------------------------------------------------------------------


async def table_of(db: Database, model: Model, *, change: bool = False) -> Table:
    """The table of a model's vectors, made when there is none; they are wanted if no others are, or with `change`."""
    row = await db.fetch_one(queries.MODEL, (model.name, model.revision, model.dimension, model.base_url))
    assert row is not None
    await db.execute(queries.WANT_MODEL, (row["id"], change))
    return _table(row)


async def want_none(db: Database) -> None:
    """Have no vectors made, and words alone answer. Those that are there stay until others replace them."""
    await db.execute(queries.WANT_MODEL, (None, True))


async def wanted(db: Database) -> Table | None:
    """The vectors that are to be made, whatever process makes them."""
    row = await db.fetch_one(queries.MODEL_WANTED)
    return None if row is None else _table(row)


async def any_known(db: Database) -> bool:
    """Whether vectors of some model were ever wanted."""
    return bool(await db.fetch_value(queries.MODELS_KNOWN))


async def ask_for(db: Database, tenant: str | None) -> int:
    """Have what lacks a wanted vector looked for, of this tenant or (None) of all; how many messages were sent."""
    sent = await db.fetch_value(queries.WANT_VECTORS, (tenant,))
    return int(sent)


async def lacking(db: Database, table: Table, repo_id: int) -> list[str]:
    """Paths of files that have chunks without a vector."""
    rows = await db.fetch(queries.LACKING_PATHS.format(table=table.name), (repo_id,))
    return [row["path"] for row in rows]


async def count_lacking(db: Database, table: Table) -> int:
    """Spans without a vector, of all tenants."""
    return int(await db.fetch_value(queries.LACKING_COUNT.format(table=table.name)))


async def share(db: Database, table: Table, tenant: str, limit: int) -> dict[int, list[str]]:
    """Paths of some files of the tenant that lack vectors, by repository; empty when none does."""
    newest = await db.fetch_value(queries.NEWEST_FILE)
    start = random.randint(0, newest)
    found: dict[int, list[str]] = {}
    for after, until in ((start, newest), (0, start)):
        params = {"tenant": tenant, "after": after, "until": until, "limit": limit}
        for row in await db.fetch(queries.LACKING_SHARE.format(table=table.name), params):
            found.setdefault(row["repo_id"], []).append(row["path"])
        limit -= sum(map(len, found.values()))
        if limit <= 0:
            break
    return found


async def serve(db: Database, table: Table) -> bool:
    """Have these vectors answer if they are the wanted ones and complete; whether they do."""
    return bool(await db.fetch_value(queries.SERVE, (table.id,)))


async def fill(
    db: Database,
    table: Table,
    embedder: Embedder,
    repo_id: int,
    paths: Sequence[str],
    turn_s: float = math.inf,
) -> tuple[int, bool]:
    """Give each chunk of these files its vector: how many were made, and whether that was all.

    Each batch stands as soon as it is made; after `turn_s` seconds no other one is begun.
    """
    made, ends = 0, time.monotonic() + turn_s
    params = {"repo": repo_id, "paths": list(paths), "limit": BATCH}
    while rows := await db.fetch(queries.LACKING.format(table=table.name), params):
        found = await embed_chunks(embedder, rows)
        await db.execute(
            queries.PUT_VECTORS.format(table=table.name, **_types(table)),
            {
                "repo": repo_id, "files": [row["file_id"] for row in rows],
                "digests": [row["digest"] for row in rows], "vectors": _stored(table, found),
            },
        )  # fmt: skip
        made += len(rows)
        if time.monotonic() > ends:
            return made, False
    await db.execute(queries.SWEEP_VECTORS.format(table=table.name), params)
    await serve(db, table)
    return made, True


def _table(row: dict[str, Any]) -> Table:
    model = Model(row["name"], row["dimension"], row["revision"], row["base_url"])
    return Table(row["id"], model, row["pgvector"])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _types(table: Table) -> dict[str, str]:
    if table.pgvector is None:
        return {"arrived": "bytea", "cast": ""}
    return {"arrived": "text", "cast": f"::{_quoted(table.pgvector)}.halfvec"}


def _stored(table: Table, vectors: NDArray[np.float32]) -> list[Any]:
    if table.pgvector is None:
        return [row.astype("<f2").tobytes() for row in vectors]
    return [literal(row) for row in vectors]


def _matrix(version: tuple[int, int], rows: Sequence[dict[str, Any]], dimension: int) -> Matrix:
    import numpy as np

    numbers = np.frombuffer(b"".join(row["vector"] for row in rows), "<f2").reshape(len(rows), dimension)
    return Matrix(version, [row["file_id"] for row in rows], [bytes(row["digest"]) for row in rows], numbers)


def literal(vector: NDArray[np.float32]) -> str:
    """As pgvector reads it; four digits are what a half-precision number holds."""
    return "[" + ",".join(f"{number:.4g}" for number in vector.tolist()) + "]"
