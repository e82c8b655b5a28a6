"""What a run leaves behind, read back: the recorded history and the tables as they were at the end.

Both are JSON lines. A line of the history has `type` (meta, mark, op, handler, process, fault, change,
lease, pause, seen, rss) and `t`, seconds of the machine's monotonic clock; a `change` comes from a trigger in the database and has
the database's own time in `at`. A line of the tables has `table` (messages, events, effects, holds, counts).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

Line = dict[str, Any]

TERMINAL = frozenset({"done", "failed", "cancelled"})
OPERATORS = frozenset({"chaos:operator", "chaos:tenant"})
"""Application names of those who may cancel, and (the first) requeue."""
OUTSIDER = "chaos:outsider"
_FENCE = re.compile(r"\bfence=(\d+)")


@dataclass(slots=True)
class Step:
    """What one transaction did to one message: all its changes as one."""

    id: int
    tx: int
    at: float
    """When it was written, seconds of the database's clock."""
    began: float
    """When its transaction began."""
    was: str | None
    now: str | None
    fence_was: int
    fence: int
    by_was: str | None
    by: str | None
    application: str
    doors: tuple[str, ...]
    """Functions of the bus that it came through, outermost statement."""
    first: Line
    last: Line

    @property
    def claims(self) -> bool:
        """A claim begins with it."""
        return self.now == "claimed" and self.fence != self.fence_was

    @property
    def ends_claim(self) -> bool:
        return self.was == "claimed" and (self.now != "claimed" or self.fence != self.fence_was)

    @property
    def presented(self) -> int | None:
        """The fence that the one who wrote it was working under, where what he wrote tells."""
        if self.now == "waiting":
            return _whole(self.last.get("awaits"))
        if self.now == "done":
            return fence_in(self.last.get("snippet"))
        if self.last.get("error") != self.first.get("error_was"):
            found = _FENCE.search(self.last.get("error") or "")
            return int(found[1]) if found else None
        return None


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def fence_in(snippet: str | None) -> int | None:
    """The fence that a handler put into its result."""
    try:
        value = json.loads(snippet or "null")
    except ValueError:
        return None
    return _whole(value.get("fence")) if isinstance(value, dict) else None


def steps(changes: Iterable[Line]) -> dict[int, list[Step]]:
    """The changes by message, in the order in which they were written, one Step per transaction."""
    found: dict[int, list[Step]] = defaultdict(list)
    for change in sorted(changes, key=lambda change: change["n"]):
        line = found[change["id"]]
        if line and line[-1].tx == change["tx"]:
            _extend(line[-1], change)
        else:
            line.append(_step(change))
    return dict(found)


def _step(change: Line) -> Step:
    return Step(
        id=change["id"], tx=change["tx"], at=change["at"], began=change["began"], was=change["was"],
        now=change["now"], fence_was=change["fence_was"] or 0, fence=change["fence"] or 0,
        by_was=change["by_was"], by=change["by"], application=change["application"],
        doors=(change["door"],) if change.get("door") else (), first=change, last=change,
    )  # fmt: skip


def _extend(step: Step, change: Line) -> None:
    step.now, step.fence, step.by = change["now"], change["fence"] or 0, change["by"]
    step.at, step.last = change["at"], change
    if change.get("door"):
        step.doors += (change["door"],)


@dataclass
class Enqueue:
    """One message that a producer wanted to put into the bus, over all its tries."""

    uid: str
    asked: Line
    """The first `invoke`: lane, tenant, payload, key."""
    ids: set[int] = field(default_factory=set)
    """Ids of the answers: there is at most one."""
    outcomes: list[str] = field(default_factory=list)
    """ok, fail (surely not there) or info (the answer was lost), one per try."""

    @property
    def acknowledged(self) -> bool:
        return "ok" in self.outcomes

    @property
    def refused(self) -> bool:
        """Every try was answered, and each with no."""
        return bool(self.outcomes) and set(self.outcomes) == {"fail"}


class History:
    """The history of one run with the indexes that rules need."""

    def __init__(self, lines: Iterable[Line], tables: Iterable[Line]) -> None:
        self.lines = list(lines)
        self.by_type: dict[str, list[Line]] = defaultdict(list)
        for line in self.lines:
            self.by_type[line["type"]].append(line)
        self.meta: Line = self.by_type["meta"][0] if self.by_type["meta"] else {}
        self.tables: dict[str, list[Line]] = defaultdict(list)
        for row in tables:
            self.tables[row["table"]].append(row)
        self.rows: dict[int, Line] = {row["id"]: row for row in self.tables["messages"]}

    @classmethod
    def read(cls, folder: Path) -> History:
        """Of history.jsonl and tables.jsonl in this folder."""
        return cls(read(folder / "history.jsonl"), read(folder / "tables.jsonl"))

    @cached_property
    def steps(self) -> dict[int, list[Step]]:
        return steps(self.by_type["change"])

    @cached_property
    def by_tx(self) -> dict[int, list[Step]]:
        """All steps of a transaction, over all messages."""
        found: dict[int, list[Step]] = defaultdict(list)
        for line in self.steps.values():
            for step in line:
                found[step.tx].append(step)
        return dict(found)

    @cached_property
    def enqueues(self) -> dict[str, Enqueue]:
        """By uid."""
        found: dict[str, Enqueue] = {}
        for op in self.by_type["op"]:
            if op["f"] != "enqueue":
                continue
            one = found.setdefault(op["uid"], Enqueue(op["uid"], op))
            if op["stage"] == "invoke":
                one.outcomes.append("info")  # until its answer comes
            else:
                one.outcomes[-1] = op["stage"]
            if op["stage"] == "ok":
                one.ids.add(op["id"])
        return found

    @cached_property
    def rows_by_uid(self) -> dict[str, list[Line]]:
        found: dict[str, list[Line]] = defaultdict(list)
        for row in self.rows.values():
            found[row["payload"].get("uid", "")].append(row)
        return dict(found)

    @cached_property
    def starts(self) -> dict[tuple[int, int], list[Line]]:
        """Handlers that began, by (message, fence)."""
        found: dict[tuple[int, int], list[Line]] = defaultdict(list)
        for line in self.by_type["handler"]:
            if line["stage"] == "start":
                found[line["id"], line["fence"]].append(line)
        return dict(found)

    @cached_property
    def begun(self) -> dict[int, list[Line]]:
        """Handlers that began, by fence alone: a number is issued once, for whatever message."""
        found: dict[int, list[Line]] = defaultdict(list)
        for (_, fence), starts in self.starts.items():
            found[fence] += starts
        return dict(found)

    @cached_property
    def leases(self) -> dict[int, list[Line]]:
        """What the lease of each holder was, by epoch, in the order of time."""
        found: dict[int, list[Line]] = defaultdict(list)
        for line in sorted(self.by_type["lease"], key=lambda line: line["at"]):
            found[line["epoch"]].append(line)
        return dict(found)

    @cached_property
    def holders(self) -> frozenset[str]:
        """Every process that ever was started, by the name under which it holds claims."""
        return frozenset(
            line["holder"] for line in self.by_type["process"] if line["stage"] in {"started", "ready"}
        )

    def lane(self, row: Line) -> Line:
        """The policy of a message's lane: max_attempts, events."""
        lanes: dict[str, Line] = self.meta.get("lanes", {})
        return lanes.get(f"{row['service']}/{row['role']}", {"max_attempts": 5, "events": None})

    def mark(self, name: str) -> Line | None:
        return next((line for line in self.by_type["mark"] if line["name"] == name), None)

    def requeues(self, id: int) -> int:
        """How often the message left a terminal state."""
        return sum(step.was in TERMINAL and step.now == "queued" for step in self.steps.get(id, ()))

    def slice(self, id: int | None) -> list[Line]:
        """All that is known of one message, in order: what a violation shows."""
        if id is None:
            return []
        uid = self.rows.get(id, {}).get("payload", {}).get("uid")
        own = [line for line in self.lines if line.get("id") == id or (uid and line.get("uid") == uid)]
        return sorted(own, key=lambda line: line["t"])

    def ended(self, status: str) -> Iterator[Step]:
        """The steps by which messages came to this terminal state."""
        for line in self.steps.values():
            for step in line:
                if step.now == status and step.was != status:
                    yield step


def read(path: Path) -> list[Line]:
    """JSON lines; a last line that a kill has cut off is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").split("\n"):
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found
