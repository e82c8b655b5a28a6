"""The packages of a repository as a picture (SVG): who imports stands above what is imported."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import anyio

from . import queries as sql
from .report import components, layers

if TYPE_CHECKING:
    from cogo import Database

BOXES_MAX: Final = 40
"""More packages than this are drawn as those that they lie in, or as one box."""
OTHERS: Final = "others"
_CHARACTER, _HEIGHT, _GAP, _ROW, _MARGIN, _WIDTH_MAX = 7.2, 26, 14, 84, 24, 1_400
_INK, _PALE, _CYCLE = "#1f2933", "#9aa5b1", "#c0392b"

Edges = Mapping[tuple[str, str], int]


async def picture(db: Database, repo_id: int, name: str) -> str:
    """An SVG document of the imports between packages; tests are left out."""
    modules = [row["name"] for row in await db.fetch(sql.MODULES, {"repo": repo_id}) if not row["is_test"]]
    rows = await db.fetch(sql.IMPORTS_ALL, {"repo": repo_id})
    group = _groups(modules)
    edges = Counter[tuple[str, str]]()
    for row in rows:
        one, other = group.get(row["importer"]), group.get(row["imported"])
        if one and other and one != other:
            edges[one, other] += 1
    return await anyio.to_thread.run_sync(draw, name, sorted(set(group.values())), edges)


def _groups(modules: Sequence[str]) -> dict[str, str]:
    """Module -> the package that stands for it: as deep as the picture has room for."""
    best: dict[str, str] = {}
    for depth in range(1, 12):
        found = {
            name: "".join(re.split(r"([./])", name.removeprefix("./"))[: 2 * depth - 1]) for name in modules
        }
        if best and (len(set(found.values())) > BOXES_MAX or found == best):
            break
        best = found
    sizes = Counter(best.values())
    if len(sizes) <= BOXES_MAX:
        return best
    drawn = {name for name, _ in sizes.most_common(BOXES_MAX - 1)}
    return {module: name if name in drawn else OTHERS for module, name in best.items()}


def draw(name: str, boxes: Sequence[str], edges: Edges) -> str:
    """Boxes in rows by layer, lines as thick as there are imports, cycles in red."""
    targets: dict[str, list[str]] = {box: [] for box in boxes}
    for one, other in edges:
        targets[one].append(other)
    groups = components(targets)
    together = {box: number for number, group in enumerate(groups) for box in group}
    places, width, height = _place(reversed(layers(groups, targets)))
    svg = ET.Element("svg", {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}",
        "height": f"{height:g}", "role": "img", "font-family": "ui-monospace, monospace", "font-size": "12",
    })  # fmt: skip
    ET.SubElement(svg, "title").text = f"Imports between the packages of {name}"
    ET.SubElement(svg, "rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    for (one, other), count in sorted(edges.items()):
        red = together[one] == together[other]
        _line(
            svg,
            places[one],
            places[other],
            count,
            _CYCLE if red else _PALE,
            f"{one} imports {other}: {count}",
        )
    for box, (x, y, wide) in places.items():
        red = len(groups[together[box]]) > 1
        _box(svg, box, x, y, wide, _CYCLE if red else _INK)
    return ET.tostring(svg, encoding="unicode", xml_declaration=False) + "\n"


_Place = tuple[float, float, float]
"""Left, top and width of a box."""


def _place(rows: Iterable[Sequence[str]]) -> tuple[dict[str, _Place], float, float]:
    """Rows from the top, broken where they are too wide."""
    lines: list[list[str]] = []
    for row in rows:
        lines.append([])
        taken = 0.0
        for box in row:
            wide = _wide(box) + _GAP
            if taken + wide > _WIDTH_MAX:
                lines.append([])
                taken = 0.0
            lines[-1].append(box)
            taken += wide
    lines = [line for line in lines if line]
    widths = [sum(_wide(box) + _GAP for box in line) - _GAP for line in lines]
    full = max(widths, default=0.0) + 2 * _MARGIN
    places: dict[str, _Place] = {}
    for number, (line, wide) in enumerate(zip(lines, widths, strict=True)):
        x, y = (full - wide) / 2, float(_MARGIN + number * _ROW)
        for box in line:
            places[box] = (x, y, _wide(box))
            x += _wide(box) + _GAP
    return places, full, 2.0 * _MARGIN + _ROW * max(0, len(lines) - 1) + _HEIGHT


def _wide(box: str) -> float:
    return len(box) * _CHARACTER + 20


def _line(svg: ET.Element, one: _Place, other: _Place, count: int, color: str, title: str) -> None:
    x1, x2 = one[0] + one[2] / 2, other[0] + other[2] / 2
    level = one[1] == other[1]
    y1, y2 = (
        (one[1], other[1])
        if level
        else (one[1] + _HEIGHT, other[1])
        if one[1] < other[1]
        else (one[1], other[1] + _HEIGHT)
    )
    bend = y1 - 40 if level else (y1 + y2) / 2
    line = ET.SubElement(svg, "path", {
        "d": f"M{x1:.1f} {y1:.1f}C{x1:.1f} {bend:.1f} {x2:.1f} {bend:.1f} {x2:.1f} {y2:.1f}", "fill": "none",
        "stroke": color, "stroke-width": f"{1 + math.log2(count) / 2:.1f}", "opacity": "0.6",
    })  # fmt: skip
    ET.SubElement(line, "title").text = title


def _box(svg: ET.Element, name: str, x: float, y: float, wide: float, color: str) -> None:
    ET.SubElement(svg, "rect", {
        "x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{wide:.1f}", "height": str(_HEIGHT), "rx": "4",
        "fill": "#f5f7fa", "stroke": color,
    })  # fmt: skip
    text = ET.SubElement(svg, "text", {
        "x": f"{x + wide / 2:.1f}", "y": f"{y + 17:.1f}", "text-anchor": "middle", "fill": color,
    })  # fmt: skip
    text.text = name
