"""A small repository made on the fly, and the check of what `cogo demo --json` says about it.

`python small_repo.py write FOLDER` makes it; `python small_repo.py check FOLDER DEMO.json` reopens every
cited file and finds the quote at those lines. Standard library only: CI runs it beside an installed wheel.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HOPS = ["orchestrator/decide", "orchestrator/execute", "gateway/chat"]
EVENTS = ["orchestrate_enqueued", "orchestrate_decision", "execute_enqueued", "execute_done", "gateway_done"]

FILES = {
    "README.md": """\
# Harbour

Harbour keeps the books of a small marina: who moors where, for how long, and what that costs.

## Mooring fees

A berth is charged by the metre of the boat and by the night. Boats over twelve metres pay a surcharge of a
quarter, because they block two fingers of the pontoon.

## Late payment

An invoice that is unpaid after thirty days is sent to the harbour master, who may hold the boat until the
debt is settled. Interest is never charged.

## Backups

The ledger is copied to a second disk every night at three. Copies are kept for ninety days.
""",
    "docs/tides.md": """\
# Tides

## Depth at the sill

The sill dries at low water springs. A boat may cross only while the gauge reads more than its draught plus
half a metre of clearance.

## Tide tables

Predictions come from four harmonic constituents. They are recomputed each January and stored beside the code.
""",
    "harbour/__init__.py": '"""Harbour: the books of a small marina."""\n',
    "harbour/fees.py": '''\
"""Mooring fees: metres, nights and the surcharge for long boats."""

from harbour.ledger import Ledger

RATE_PER_METRE = 2.40
LONG_BOAT_METRES = 12.0
SURCHARGE = 1.25


def nightly_fee(length_m: float) -> float:
    """Return what one night at the pontoon costs a boat of this length.

    Boats over twelve metres block two fingers and pay a quarter more.
    """
    fee = length_m * RATE_PER_METRE
    return round(fee * SURCHARGE if length_m > LONG_BOAT_METRES else fee, 2)


def charge_stay(ledger: Ledger, boat: str, length_m: float, nights: int) -> float:
    """Book a stay of several nights on the boat's account and return its price."""
    price = nightly_fee(length_m) * nights
    ledger.book(boat, price)
    return price
''',
    "harbour/ledger.py": '''\
"""The ledger: what each boat owes."""

from collections import defaultdict


class Ledger:
    """Debts by boat name, in euros; a negative balance is credit."""

    def __init__(self) -> None:
        self.balance: dict[str, float] = defaultdict(float)

    def book(self, boat: str, euros: float) -> None:
        """Add a charge to the account of a boat."""
        self.balance[boat] += euros

    def settle(self, boat: str, euros: float) -> bool:
        """Take a payment; True when nothing is owed any more and the lines may be cast off."""
        self.balance[boat] -= euros
        return self.balance[boat] <= 0
''',
    "harbour/tides.py": '''\
"""Depth over the sill from harmonic constituents."""

import math

CONSTITUENTS = ((1.82, 12.42, 0.3), (0.61, 12.00, 1.1), (0.12, 23.93, 2.0), (0.08, 25.82, 0.7))


def height_at(hour: float) -> float:
    """Return the predicted height of the water above chart datum, in metres, at an hour since new year."""
    return sum(size * math.cos(2 * math.pi * hour / period - phase) for size, period, phase in CONSTITUENTS)


def may_cross(hour: float, draught_m: float, gauge_zero_m: float = 1.5) -> bool:
    """Tell whether a boat of this draught clears the sill by at least half a metre."""
    return gauge_zero_m + height_at(hour) > draught_m + 0.5
''',
    "harbour/app.py": '''\
"""Command line of the harbour office."""

import sys

from harbour.fees import charge_stay
from harbour.ledger import Ledger
from harbour.tides import may_cross


def main(arguments: list[str]) -> int:
    """Print the price of a stay, and whether the boat gets in now."""
    boat, length_m, nights = arguments[0], float(arguments[1]), int(arguments[2])
    print(charge_stay(Ledger(), boat, length_m, nights), may_cross(0.0, length_m / 6))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
''',
}


def write(folder: Path) -> Path:
    """Write the repository's files into a folder and return it."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def write_many(folder: Path, count: int) -> Path:
    """The same with so many more modules that indexing takes long enough to be interrupted."""
    write(folder)
    for number in range(count):
        functions = "\n\n".join(
            f"def function_{number}_{k}(value: int) -> int:\n"
            f'    """Add {k} to a value of module {number}."""\n'
            f"    return value + {k}"
            for k in range(12)
        )
        (folder / "harbour" / f"module_{number}.py").write_text(f'"""Module {number}."""\n\n{functions}\n')
    return folder


def check(folder: Path, demo: dict[str, Any]) -> int:
    """Assert that the demo's object is whole and every citation is true; return the number of citations."""
    indexed = demo["indexed"]
    assert indexed["files"] > 0, indexed
    assert indexed["chunks"] >= indexed["files"], indexed
    questions = demo["questions"]
    assert len(questions) == 4, f"three questions with an answer and one without, not {len(questions)}"
    assert [each["status"] for each in questions] == ["done"] * 4, questions
    assert [each["found"] for each in questions] == [True, True, True, False], questions
    cited = 0
    for each in questions[:3]:
        assert each["answer"], each
        assert each["citations"], each
        for citation in each["citations"]:
            check_citation(folder, citation)
            cited += 1
    assert questions[3]["citations"] == [], questions[3]
    for each in questions:
        assert each["hops"] == HOPS, each["hops"]
        assert each["elapsed_ms"] > 0
    missing = [kind for kind in EVENTS if demo["events"].get(kind, 0) < 4]
    assert not missing, (missing, demo["events"])
    assert demo["bus"]["byStatus"]["done"] >= 4 * len(HOPS), demo["bus"]
    assert demo["dashboard"].startswith("http://"), demo["dashboard"]
    return cited


def check_citation(folder: Path, citation: dict[str, Any]) -> None:
    """The quote stands in that file at those lines (1-based, inclusive)."""
    lines = (folder / citation["path"]).read_text(encoding="utf-8").splitlines()
    assert 1 <= citation["line"] <= citation["end"] <= len(lines), citation
    there = " ".join("\n".join(lines[citation["line"] - 1 : citation["end"]]).split())
    quote = " ".join(citation["quote"].split())
    assert quote, citation
    assert quote in there, f"{citation['path']}:{citation['line']}-{citation['end']} does not say {quote!r}"


def main(arguments: list[str]) -> int:
    verb, folder, *rest = arguments
    if verb == "write":
        write(Path(folder))
        return 0
    cited = check(Path(folder), json.loads(Path(rest[0]).read_text(encoding="utf-8")))
    print(f"demo: four questions answered, {cited} citations found at their lines")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
