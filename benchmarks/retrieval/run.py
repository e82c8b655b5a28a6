"""How well and how fast the search finds what a docstring describes and what a title names.

    python benchmarks/retrieval/run.py [--code NAME=FOLDER ...] [--docs NAME=FOLDER ...]
                                       [--queries N] [--seed N] [--words] [--json]

Each set is asked twice: by words alone, and by words and vectors (not with --words, or where `cogo models
install` has put no model into the data home).

Code: query = a function's first docstring sentence, target = the function in a copy without docstrings.
Docs: query = a section's title, target = the section in a copy without titles. Sets are made of what is
installed (default: this environment's larger packages and the standard library; documents only if given,
for example an unpacked source distribution's docs folder). A hit counts when it overlaps the target by
half of the shorter of both. A fresh embedded Postgres in a temporary folder; no network.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import sets

from cogo import Database
from cogo.core import migrate
from cogo.core.embedded import own_or_share
from cogo.core.settings import Settings, load
from cogo.knowledge import index, scan, search, tokens, vectors

TENANT = "bench"
INSTALLED = ("litestar", "rich", "anyio", "hypothesis", "mypy")


def defaults() -> dict[str, dict[str, Path]]:
    site = Path(sysconfig.get_path("purelib"))
    packages = {name: site / name for name in INSTALLED if (site / name).is_dir()}
    return {"installed packages": packages, "standard library": {"lib": Path(sysconfig.get_path("stdlib"))}}


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


async def measure(db: Database, name: str, queries: list[sets.Query]) -> dict[str, Any]:
    gains, recalls, hard, times = [], [], [], []
    for query in queries:
        began = time.perf_counter()
        (hits,) = await search.search(db, TENANT, [query.text], 10, search.Scope(repo=name))
        times.append(1000 * (time.perf_counter() - began))
        place = next((i for i, hit in enumerate(hits) if matches(hit, query)), None)
        gains.append(0.0 if place is None else 1 / math.log2(place + 2))
        recalls.append(place is not None)
        if not set(tokens.terms(query.text)) & set(tokens.terms(query.name)):
            hard.append(gains[-1])
    times.sort()
    return {
        "queries": len(queries), "ndcg@10": round(statistics.mean(gains), 3),
        "recall@10": round(statistics.mean(recalls), 3),
        "ndcg@10_hard": round(statistics.mean(hard), 3) if hard else None, "hard": len(hard),
        "p50_ms": round(times[len(times) // 2], 1), "p95_ms": round(times[int(len(times) * 0.95)], 1),
    }  # fmt: skip


def matches(hit: search.Hit, query: sets.Query) -> bool:
    shared = min(hit.end, query.end) - max(hit.start, query.start) + 1
    shorter = min(hit.end - hit.start, query.end - query.start) + 1
    return hit.path == query.path and shared >= shorter / 2


async def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    jobs = [("code", name, sources) for name, sources in given(args.code) or defaults().items()]
    jobs += [("docs", name, sources) for name, sources in given(args.docs)]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        base.chmod(0o755)  # noqa: ASYNC240 (nothing else runs); the server may run as another user
        async with own_or_share(Settings(data_dir=base / "home")) as server:
            await migrate.apply(server.dsn)
            db = Database(server.dsn)
            await db.open()
            both = await with_vectors(server.dsn, load().settings.data_dir) if not args.words else None
            for kind, name, sources in jobs:
                into = base / f"{kind}-{len(rows)}"
                make = sets.code_set if kind == "code" else sets.docs_set
                queries = make(sources, into, count=args.queries, seed=args.seed)
                found = await index_folder(db, scan.open_root(str(into)), into.name)
                await db.execute("ANALYZE cogo.kb_postings")
                asked = {"set": kind, "name": name}
                rows.append({**asked, "by": "words", **found, **await measure(db, into.name, queries)})
                report(rows[-1], as_json=args.json)
                if both is not None:
                    embedded = await embed(both, into.name)
                    rows.append(
                        {**asked, "by": "both", **embedded, **await measure(both, into.name, queries)}
                    )
                    report(rows[-1], as_json=args.json)
            await db.close()
            if both is not None:
                await both.close()
    return rows


async def with_vectors(dsn: str, data_dir: Path) -> Database | None:
    """A database whose searches use vectors; None when no model is installed."""
    db = Database(dsn)
    if vectors.attach(db, data_dir).installed("minilm") is None:
        return None
    await db.open()
    return db


def given(texts: list[str]) -> list[tuple[str, dict[str, Path]]]:
    pairs = [text.partition("=") for text in texts]
    return [(name, {name: Path(folder).resolve()}) for name, _, folder in pairs]


def report(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
        return
    width = max(map(len, row))
    for key, value in row.items():
        print(f"{key:>{width}}  {value}", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--docs", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--queries", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--words", action="store_true", help="words alone")
    parser.add_argument("--json", action="store_true")
    anyio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
