"""How well and how fast the search finds what a docstring describes and what a title names, beside its peers.

    python benchmarks/retrieval/run.py [--code NAME=FOLDER ...] [--docs NAME=FOLDER ...] [--fetch]
                                       [--queries N] [--seed N] [--words] [--no-peers] [--json FILE] [--write]

Code: query = a function's first docstring sentence, target = the function in a copy without docstrings.
Docs: query = a section's title, target = the section in a copy without titles. Sets are made of what is
installed (default: this environment's larger packages and the standard library), of folders, and with --fetch of
what PyPI has: the standard library and Django as one, and the documents of Django, Flask, attrs and pytest.
A hit counts when it overlaps the target by half of the shorter of both.

COGO is asked twice: by words alone, and by words and vectors (not with --words, or where `cogo models install`
has put no model into the data home). Its peers search the same spans (peers.py). A fresh embedded Postgres in
a temporary folder; without --fetch the network is needed for bm25s alone. --write puts the tables into
docs/benchmarks-retrieval.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import peers
import report
import scoring
import sets

from cogo import Database
from cogo.core import migrate
from cogo.core.embedded import own_or_share
from cogo.core.settings import Settings, load
from cogo.knowledge import index, scan, search, vectors
from cogo.knowledge.embedding import Embedder

TENANT = "bench"
INSTALLED = ("litestar", "rich", "anyio", "hypothesis", "mypy")
FETCHED = {"django==5.2.19": "docs", "flask==3.1.3": "docs", "attrs==26.1.0": "docs", "pytest==9.2.0": "doc"}
"""Source distributions and the folder of their documents."""

Sources = dict[str, Path]


def defaults() -> dict[str, Sources]:
    site = Path(sysconfig.get_path("purelib"))
    packages = {name: site / name for name in INSTALLED if (site / name).is_dir()}
    return {"installed packages": packages, "standard library": {"lib": standard_library()}}


def standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def fetched(folder: Path) -> list[tuple[str, str, Sources]]:
    """The sets of --fetch, by pip: it knows the user's index."""
    found: list[tuple[str, str, Sources]] = []
    for requirement, docs in FETCHED.items():
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True)
        name = requirement.replace("==", "-")
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        found.append(("docs", name, {name: folder / name / docs}))
    django = next(iter(FETCHED)).replace("==", "-")
    both = {"lib": standard_library(), "django": folder / django / "django"}
    return [("code", "standard library and Django", both), *found]


async def index_folder(db: Database, root: Path, name: str) -> dict[str, float]:
    began = time.perf_counter()
    repo = await index.open_repo(db, TENANT, name, str(root))
    plan = await index.plan(db, repo, root)
    report = await index.index_paths(db, repo, root, plan.changed)
    index_s = time.perf_counter() - began
    began = time.perf_counter()
    await index.plan(db, repo, root)
    return {
        "files": report.files, "chunks": report.chunks, "index_s": round(index_s, 2),
        "ms_per_1000_chunks": round(1e6 * index_s / report.chunks), "rescan_s": round(time.perf_counter() - began, 2),
    }  # fmt: skip


async def embed(db: Database, name: str) -> dict[str, float]:
    """Vectors for all that is indexed under that name."""
    attached = vectors.of(db)
    model = attached and attached.installed("minilm")
    assert attached is not None
    assert model is not None
    (repo_id,) = await search.repo_ids(db, TENANT, name)
    table = await vectors.table_of(db, model)
    paths = await vectors.lacking(db, table, repo_id)
    began = time.perf_counter()
    made, _ = await vectors.fill(db, table, attached.embedder(model), repo_id, paths)
    await db.execute(f"ANALYZE {table.name}")
    embed_s = time.perf_counter() - began
    return {"embed_s": round(embed_s, 1), "chunks_a_s": round(made / embed_s, 1)}


async def measure(
    db: Database, both: Database | None, job: tuple[str, str, Sources], into: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """One set: indexed, asked of everybody."""
    kind, name, sources = job
    make = sets.code_set if kind == "code" else sets.docs_set
    queries = make(sources, into, count=args.queries, seed=args.seed)
    found: dict[str, Any] = {"set": kind, "name": name, "queries": len(queries)}
    found |= await index_folder(db, scan.open_root(str(into)), into.name)
    await db.execute("ANALYZE cogo.kb_postings")
    embedder = None
    if both is not None:
        found |= await embed(both, into.name)
        embedder = embedder_of(both)
    systems = {"COGO, words": of_cogo(db, into.name)}
    if both is not None:
        systems["COGO, words and vectors"] = of_cogo(both, into.name)
    if not args.no_peers:
        systems |= await of_peers(db, into, embedder)
    found["scores"] = {}
    for system, find in systems.items():
        found["scores"][system] = asdict(await scoring.score(find, queries))
    return found


def of_cogo(db: Database, repo: str) -> scoring.Find:
    async def find(text: str) -> list[scoring.Span]:
        (hits,) = await search.search(db, TENANT, [text], scoring.TOP, search.Scope(repo=repo))
        return [(hit.path, hit.start, hit.end) for hit in hits]

    return find


async def of_peers(db: Database, into: Path, embedder: Embedder | None) -> dict[str, scoring.Find]:
    ranked = peers.Ranked(await db.fetch(peers.SPANS, (into.name,)), peers.install(into.parent / "bm25s"))
    systems = {
        "Postgres ts_rank, english": await peers.full_text(db, into.name, "english"),
        "Postgres ts_rank, simple": await peers.full_text(db, into.name, "simple"),
    }
    if ranked.has_words:
        systems["bm25s"] = ranked.by_words
    if embedder is not None:
        await ranked.embed(embedder)
        systems["MiniLM"] = ranked.by_meaning
        if ranked.has_words:
            systems["bm25s and MiniLM, RRF"] = ranked.by_ranks
    return systems


def embedder_of(db: Database) -> Embedder:
    attached = vectors.of(db)
    model = attached and attached.installed("minilm")
    assert attached is not None
    assert model is not None
    return attached.embedder(model)


async def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        base.chmod(0o755)  # noqa: ASYNC240 (nothing else runs); the server may run as another user
        jobs = [("code", *each) for each in given(args.code)] + [("docs", *each) for each in given(args.docs)]
        jobs += fetched(base) if args.fetch else []
        jobs = jobs or [("code", *each) for each in defaults().items()]
        async with own_or_share(Settings(data_dir=base / "home")) as server:
            await migrate.apply(server.dsn)
            db = Database(server.dsn)
            await db.open()
            both = await with_vectors(server.dsn, load().settings.data_dir) if not args.words else None
            for number, job in enumerate(jobs):
                rows.append(await measure(db, both, job, base / f"{job[0]}-{number}", args))
                print(report.table(rows[-1]), flush=True)
            await db.close()
            if both is not None:
                await both.close()
    print(report.bars(rows))
    return rows


async def with_vectors(dsn: str, data_dir: Path) -> Database | None:
    """A database whose searches use vectors; None when no model is installed."""
    db = Database(dsn)
    if vectors.attach(db, data_dir).installed("minilm") is None:
        return None
    await db.open()
    return db


def given(texts: list[str]) -> list[tuple[str, Sources]]:
    pairs = [text.partition("=") for text in texts]
    return [(name, {name: Path(folder).resolve()}) for name, _, folder in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--docs", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument(
        "--fetch", action="store_true", help="also the sets of PyPI's Django, Flask, attrs and pytest"
    )
    parser.add_argument("--queries", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--words", action="store_true", help="words alone")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--write", action="store_true", help="the page of docs/")
    args = parser.parse_args()
    rows = anyio.run(run, args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if args.write:
        report.write(rows, args)


if __name__ == "__main__":
    main()
