"""The graph of a repository's code and documents: built in one transaction, then asked.

`facts` says what a file can say, `python`, `script` and `documents` read it out of the text, `names` finds out what
is meant, `build` keeps the rows; `ask`, `report`, `picture` and `export` read them.
"""

from .ask import LIMIT, USES, Row, Rows, callees, callers, find, impact, importers, imports, path, uses
from .build import Built, build
from .picture import picture
from .report import Report, cycles, markdown, report

__all__ = [
    "LIMIT",
    "USES",
    "Built",
    "Report",
    "Row",
    "Rows",
    "build",
    "callees",
    "callers",
    "cycles",
    "find",
    "impact",
    "importers",
    "imports",
    "markdown",
    "path",
    "picture",
    "report",
    "uses",
]  # fmt: skip
