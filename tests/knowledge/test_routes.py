"""Proves that the knowledge routes answer as documented, and only about the caller's own tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from http_hands import Served, serving
from knowledge_hands import build_graph, index_all, write

from cogo import Database
from cogo.knowledge import graph


@pytest.fixture
async def served(dsn: str, database: Database, tmp_path: Path) -> AsyncIterator[Served]:
    root = write(tmp_path / "harbour")
    await index_all(database, root)
    await build_graph(database, root)
    async with serving(dsn, tmp_path / "home", ["gateway", "kg-builder"]) as found:
        yield found


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with served.as_("viewer", "acme") as found:
        yield found


async def test_search_answers_each_query(client: httpx.AsyncClient) -> None:
    body = {"queries": ["one night at the pontoon", "nothing of the sort", "boat"], "k": 2}
    answer = await client.post("/api/knowledge/search", json=body)
    assert answer.status_code == 200, answer.text
    first, second, third = answer.json()["results"]
    hit = first["hits"][0]
    assert set(hit) == {"path", "start", "end", "qualname", "score", "scores", "text", "repo", "kind", "lang"}
    assert (hit["path"], hit["start"], hit["end"], hit["qualname"]) == (
        "harbour/fees.py",
        12,
        14,
        "nightly_fee",
    )
    assert hit["scores"] == {"lexical": hit["score"], "dense": None}
    assert second == {"query": "nothing of the sort", "hits": []}
    assert len(third["hits"]) == 2
    said = answer.json()["vectors"]
    assert (said["model"], said["used"]) == (None, False)
    assert "no model has made the vectors" in said["why"]


async def test_search_takes_a_scope_and_explains(client: httpx.AsyncClient) -> None:
    scope = {"repo": "harbour", "paths": ["harbour"], "kinds": ["class"]}
    body = {"queries": ["ledger"], "scope": scope, "explain": True}
    (found,) = (await client.post("/api/knowledge/search", json=body)).json()["results"]
    assert {(hit["path"], hit["kind"]) for hit in found["hits"]} == {
        ("harbour/ledger.py", "class"),
        ("harbour/fees.py", "class"),
    }
    assert 0 < found["hits"][0]["coverage"] <= 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"queries": []}, 422),
        ({"queries": ["x"] * 1_001}, 422),
        ({"queries": ["x"], "k": 0}, 422),
        ({"queries": ["x"], "surprise": 1}, 422),
        ({"queries": ["x"], "scope": {"repo": "unknown"}}, 404),
        ({"queries": [5]}, 422),
    ],
)
async def test_bad_requests_are_refused_clearly(client: httpx.AsyncClient, body: object, status: int) -> None:
    answer = await client.post("/api/knowledge/search", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["code"]


async def test_other_tenants_have_nothing_here(served: Served) -> None:
    async with served.as_("viewer", "other") as stranger:
        (found,) = (await stranger.post("/api/knowledge/search", json={"queries": ["boat"]})).json()[
            "results"
        ]
        assert found["hits"] == []
        (found,) = (await stranger.post("/api/knowledge/search", json={"queries": ["boat"], "tenant": "acme"})).json()["results"]  # fmt: skip
        assert found["hits"] == []
        assert (await stranger.get("/api/knowledge/repos")).json() == {"repos": []}
        assert (await stranger.get("/api/kg/report", params={"repo": "harbour"})).status_code == 404
    async with served.client() as nobody:
        assert (await nobody.get("/api/knowledge/repos")).status_code == 401
        assert (await nobody.get("/api/kg/report", params={"repo": "harbour"})).status_code == 401
    async with served.as_("admin") as admin:
        assert len((await admin.get("/api/knowledge/repos")).json()["repos"]) == 1


async def test_repositories_are_listed_with_their_sizes(client: httpx.AsyncClient) -> None:
    (repo,) = (await client.get("/api/knowledge/repos")).json()["repos"]
    assert (repo["repo"], repo["tenant"], repo["files"], repo["modules"]) == ("harbour", "acme", 4, 3)
    assert repo["chunks"] > 5


async def test_an_answer_that_was_cut_says_so(
    client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"repo": "harbour", "name": "harbour.ledger"}
    assert (await client.get("/api/kg/importers", params=asked)).json()["truncated"] is False
    monkeypatch.setattr(graph.ask, "LIMIT", 1)
    monkeypatch.setattr(graph, "LIMIT", 1)
    for verb in ("importers", "uses", "impact"):
        found = (await client.get(f"/api/kg/{verb}", params=asked)).json()
        assert (len(found[verb]), found["truncated"]) == (1, True)


async def test_the_graph_answers(client: httpx.AsyncClient) -> None:
    async def get(verb: str, **params: str) -> httpx.Response:
        return await client.get(f"/api/kg/{verb}", params={"repo": "harbour", **params})

    importers = (await get("importers", name="harbour.ledger")).json()["importers"]
    where = {"name": "harbour", "kind": "package", "path": "harbour/__init__.py", "line": 3}
    assert importers == [{**where, "confidence": "exact"}]
    assert [row["name"] for row in (await get("imports", name="harbour/fees.py")).json()["imports"]] == [
        "harbour"
    ]
    path = (await get("path", name="harbour.fees", to="harbour.ledger")).json()["path"]
    assert [step["name"] for step in path] == ["harbour.fees", "harbour", "harbour.ledger"]
    report = (await get("report")).json()
    assert (report["files"], report["edges"]["imports"], report["cycles"]) == (4, 2, [])
    assert (await get("importers", name="nothing.here")).status_code == 404
    assert (await get("importers")).status_code == 422
    assert (await client.get("/api/kg/report", params={"repo": "x"})).status_code == 404
