"""A small repository for the knowledge tests, and short ways to index it and look at the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cogo import Database
from cogo.knowledge import graph, index, scan

FILES = {
    "README.md": (
        "# Harbour\n\nHarbour keeps the books of a small marina.\n\n"
        "## Mooring fees\n\nA berth is charged by the metre of the boat and by the night.\n"
    ),
    "harbour/__init__.py": '"""The books of a small marina."""\n\nfrom .ledger import Ledger\n',
    "harbour/ledger.py": (
        '"""The ledger: what each boat owes."""\n\n\nclass Ledger:\n    """Debts by boat."""\n\n'
        '    def settle(self, boat: str, euros: float) -> bool:\n        """Take a payment for a vessel."""\n'
        "        return euros > 0\n"
    ),
    "harbour/fees.py": (
        '"""Mooring fees."""\n\nfrom harbour import Ledger\n\nRATE = 2.4\n\n\nclass Special(Ledger):\n    pass\n\n\n'
        'def nightly_fee(length_m: float) -> float:\n    """Return what one night at the pontoon costs."""\n'
        "    return length_m * RATE\n"
    ),
}


def write(root: Path, files: dict[str, str] = FILES) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


async def index_all(db: Database, root: Path, tenant: str = "acme", name: str | None = None) -> index.Report:
    """Plan and index a folder as the role does, without the bus."""
    root = scan.open_root(str(root))
    repo = await index.open_repo(db, tenant, name or root.name, str(root), move=True)
    plan = await index.plan(db, repo, root)
    return await index.index_paths(db, repo, root, [*plan.changed, *plan.gone])


async def build_graph(db: Database, root: Path, tenant: str = "acme") -> tuple[int, graph.Built]:
    root = scan.open_root(str(root))
    repo = await index.open_repo(db, tenant, root.name, str(root), move=True)
    return repo.id, await graph.build(db, repo, root)


async def rows(db: Database) -> dict[str, Any]:
    """Everything the index holds, without ids and times: two indexes of the same files are equal."""
    chunks = await db.fetch(
        "SELECT r.tenant, r.name, f.path, c.ord, c.kind, c.qualname, c.start_line, c.end_line, c.text"
        " FROM cogo.kb_repos r JOIN cogo.kb_files f ON f.repo_id = r.id JOIN cogo.kb_chunks c ON c.file_id = f.id"
        " ORDER BY 1, 2, 3, 4"
    )
    postings = await db.fetch(
        "SELECT f.path, p.term, p.ords, p.weights FROM cogo.kb_postings p JOIN cogo.kb_files f ON f.id = p.file_id"
        " ORDER BY 1, 2"
    )
    return {"chunks": chunks, "postings": postings}
