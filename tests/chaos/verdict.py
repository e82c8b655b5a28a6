"""What a judge can say: the rules by number, and the breach of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from chaos.history import Line

RULES: dict[int, str] = {
    0: "the record itself is whole",
    1: "every acknowledged message has exactly one end",
    2: "an end never changes, except by an operator's requeue",
    3: "only the newest claim may write, and a fence stands exactly while claimed",
    4: "claims of one message never overlap, and none is taken from a living holder",
    5: "a transactional effect happens once for each message that is done, and for no other",
    6: "no message has more attempts than its lane allows",
    7: "a tenant's session sees its own rows, all of them and no others",
    8: "no budget is overspent",
    9: "work goes on under faults, and all of it ends soon after they do",
    10: "no process grows without bound",
    11: "what was enqueued is what is there, once",
    12: "follow-ups and children exist exactly once for each accepted finish",
    13: "each end has its one bus event, and the counters agree with the rows",
    14: "what waits ends with its child, and as its child",
    15: "no process ends by itself",
    16: "messages of one ordering key are worked on one after the other, in order",
    17: "lanes keep their limits, and nothing of what is paused is claimed",
}

SHOWN = 60
"""Lines of history that a report shows for one violation."""


@dataclass
class Violation:
    """One breach: the rule's number, the message (None: it is about the whole run), and its history."""

    rule: int
    what: str
    id: int | None = None
    history: list[Line] = field(default_factory=list)

    def __str__(self) -> str:
        about = "" if self.id is None else f" message {self.id}:"
        return f"rule {self.rule} ({RULES[self.rule]}):{about} {self.what}"

    def report(self) -> str:
        lines = [json.dumps(line, ensure_ascii=False)[:1000] for line in self.history[:SHOWN]]
        return "\n    ".join([str(self), *lines])


Found = Iterator[Violation]
