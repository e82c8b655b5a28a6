"""Proves that a graph can be read as a page and as a picture, and that other tools get all of it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree as ET

import pytest
from knowledge_hands import build_graph, write

from cogo import Database, errors
from cogo.knowledge import graph
from cogo.knowledge.graph import export
from cogo.knowledge.graph.picture import BOXES_MAX

FILES = {
    "shop/__init__.py": "", "shop/base.py": "def used(): ...\ndef forgotten(): ...\ndef main(): ...\n",
    "shop/one.py": "import shop.two\nfrom shop.base import used\n", "shop/two.py": "import shop.one\n",
    "shop/top.py": "from shop.one import shop\nfrom shop.base import used as u\nu()\n",
    "tests/test_base.py": "from shop.base import used\n", 'odd & "quoted".md': "# A <b> & c\n",
}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"
GRAPHML = "{http://graphml.graphdrawing.org/xmlns}"


async def test_the_report_says_what_stands_where(database: Database, tmp_path: Path) -> None:
    repo, _ = await build_graph(database, write(tmp_path / "repo", FILES))
    report = await graph.report(database, repo)
    assert report.cycles == [["shop.one", "shop.two"]]
    assert report.most_imported[0] == ("shop.base", 3)
    level = {name: place for place, names in enumerate(report.layers) for name in names}
    assert level["shop.base"] < level["shop.one"] == level["shop.two"] < level["shop.top"]
    assert report.dead_ends == ["shop.top"]
    assert [row["name"] for row in report.unused] == ["shop.base.forgotten"]
    page = graph.markdown("shop", report)
    assert "- shop.one, shop.two\n" in page
    assert "| shop.base | 3 |" in page
    assert "- `shop.base.forgotten` shop/base.py:2\n" in page


async def test_the_picture_has_a_box_for_each_package_and_shows_cycles(
    database: Database, tmp_path: Path
) -> None:
    repo, _ = await build_graph(database, write(tmp_path / "repo", FILES))
    svg = ET.fromstring(await graph.picture(database, repo, 'a "shop" & more'))
    texts = {text.text: text for text in svg.iter(f"{SVG}text")}
    assert texts.keys() == {"shop", "shop.base", "shop.one", "shop.two", "shop.top"}
    assert texts["shop.one"].get("fill") == texts["shop.two"].get("fill") != texts["shop.base"].get("fill")
    assert float(texts["shop.top"].get("y", 0)) < float(texts["shop.base"].get("y", 0))
    said = {line.findtext(f"{SVG}title") for line in svg.iter(f"{SVG}path")}
    assert "shop.top imports shop.base: 1" in said


async def test_a_crowd_of_scripts_is_one_box(database: Database, tmp_path: Path) -> None:
    crowd = {f"s{i:03}.py": f"import s{(i + 1) % 200:03}\n" for i in range(200)}
    repo, _ = await build_graph(database, write(tmp_path / "repo", crowd))
    svg = ET.fromstring(await graph.picture(database, repo, "crowd"))
    assert len([*svg.iter(f"{SVG}text")]) == BOXES_MAX
    assert len((await graph.report(database, repo)).cycles[0]) == 200


async def test_a_repository_without_code_has_a_picture_too(database: Database, tmp_path: Path) -> None:
    repo, _ = await build_graph(database, write(tmp_path / "repo", {"a.md": "# A\n"}))
    assert ET.fromstring(await graph.picture(database, repo, "empty")).tag == f"{SVG}svg"
    assert "None." in graph.markdown("empty", await graph.report(database, repo))


async def test_graphml_has_every_node_and_edge(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PAGE", 3)
    repo, _ = await build_graph(database, write(tmp_path / "repo", FILES))
    report = await graph.report(database, repo)
    tree = ET.fromstring("".join([piece async for piece in export.graphml(database, repo)]))
    nodes = {node.get("id") for node in tree.iter(f"{GRAPHML}node")}
    edges = [*tree.iter(f"{GRAPHML}edge")]
    assert len(nodes) == sum(report.nodes.values())
    assert {edge.get(end) for edge in edges for end in ("source", "target")} <= nodes
    kinds = Counter(edge.findtext(f"{GRAPHML}data[@key='edge_kind']") for edge in edges)
    assert kinds == Counter(report.edges)


async def test_cypher_quotes_what_needs_it(database: Database, tmp_path: Path) -> None:
    repo, _ = await build_graph(database, write(tmp_path / "repo", FILES))
    text = "".join([piece async for piece in export.cypher(database, repo, "shop")])
    assert "CREATE (:Code:Section {id: " in text
    assert 'path: "odd & \\"quoted\\".md"' in text
    assert text.count("CREATE (a)-[:IMPORTS {") == 6
    assert all(line.endswith(";") for line in text.splitlines())


class FakeNeo4j:
    """What of the driver is used, keeping what it was told; a server can't run here."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def driver(self, uri: str, auth: tuple[str, str]) -> FakeNeo4j:
        if not uri.startswith("bolt://"):
            raise ValueError(f"unknown scheme {uri}")
        return self

    def session(self, database: str | None) -> FakeNeo4j:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def run(self, statement: str, parameters: dict[str, Any]) -> FakeNeo4j:
        self.told.append((statement, parameters))
        return self

    async def consume(self) -> None:
        return None


async def test_neo4j_gets_batches_of_rows(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import neo4j

    fake = FakeNeo4j()
    monkeypatch.setattr(neo4j, "AsyncGraphDatabase", fake)
    repo, _ = await build_graph(database, write(tmp_path / "repo", FILES))
    counts = await export.to_neo4j(database, repo, "shop", "bolt://here", "neo4j", "secret")
    assert "DETACH DELETE" in fake.told[1][0]
    rows = [(statement, row) for statement, given in fake.told for row in given.get("rows", ())]
    assert counts == {
        "nodes": sum("MERGE (n" in s for s, _ in rows),
        "edges": sum("MATCH (a" in s for s, _ in rows),
    }
    ids = {row["id"] for statement, row in rows if "MERGE (n" in statement}
    assert {row["src"] for statement, row in rows if "MATCH (a" in statement} <= ids
    with pytest.raises(errors.Invalid, match="could not be written"):
        await export.to_neo4j(database, repo, "shop", "ftp://here", "neo4j", "secret")


async def test_without_the_driver_the_error_names_the_extra(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "neo4j", None)
    with pytest.raises(errors.Invalid) as caught:
        await export.to_neo4j(database, 1, "shop", "bolt://here", "neo4j", "secret")
    assert "cogo-agents[neo4j]" in caught.value.next_step
