"""Questions that the graph answers itself: who calls, imports, uses, inherits or tests something, and what breaks with it.

Such a question names a thing of the code. If it names none that the graph knows, or several, it is a question like
any other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cogo import errors

from . import answers, graph, search

if TYPE_CHECKING:
    from cogo import Database

SHOWN: Final = 10
_NAME: Final = r"[`'\"]?(?P<name>[A-Za-z_][A-Za-z0-9_/-]*(?:[./][A-Za-z0-9_-]+)*)(?:\(\))?[`'\"]?"
_THE: Final = r"(?:the\s+)?(?:function|method|class|module|file)?\s*"
_PLACE: Final = r"(?:\s+(?:module|function|class|method|file))?\s*[?.!]*$"


def _asking(verbs: str) -> re.Pattern[str]:
    return re.compile(rf"^(?:who|what|which(?:\s+\w+)?)\s+(?:{verbs})\s+{_THE}{_NAME}{_PLACE}", re.IGNORECASE)


# What is asked, by the words of the question; and how the answer begins, for some and for none.
_FORMS: Final = (
    (_asking("calls?|invokes?"), "callers", "is called by", "is known to call"),
    (_asking("imports?|depends?\\s+on"), "importers", "is imported by", "imports the module of"),
    (_asking("inherits?\\s+from|inherits?|extends?|subclass(?:es)?"), "heirs", "is inherited by", "inherits from"),
    (_asking("tests?|covers?"), "tests", "is tested by", "is known to test"),
    (_asking("documents?|mentions?|describes?"), "documents", "is named by", "names"),
    (_asking("uses?|references?|needs?"), "uses", "is used by", "is known to use"),
    (re.compile(rf"^what\s+(?:would\s+|may\s+|could\s+)?(?:breaks?|changes?|is\s+affected)\s+(?:if|when|by)\s+(?:I\s+change\s+)?"
                rf"{_THE}{_NAME}(?:\s+(?:changes?|breaks?|is\s+(?:changed|removed)|goes))?{_PLACE}", re.IGNORECASE),
     "impact", "is needed, directly or not, by", "is known to need"),
    (re.compile(rf"^what\s+does\s+{_THE}{_NAME}\s+calls?{_PLACE}", re.IGNORECASE), "callees", "calls", "is called by"),
    (re.compile(rf"^what\s+does\s+{_THE}{_NAME}\s+imports?{_PLACE}", re.IGNORECASE), "imports", "imports", "is imported by"),
    (re.compile(rf"^{_NAME}\s*(?:을|를)?\s*(?:호출|부르)\S*.*$"), "callers", "is called by", "is known to call"),
    (re.compile(rf"^{_NAME}\s*(?:을|를)?\s*(?:임포트|import)\S*.*$"), "importers", "is imported by", "imports the module of"),
)  # fmt: skip
_REFERRING: Final = frozenset({"it", "this", "that", "them", "these", "those"})
_KINDS: Final = {"heirs": ("inherits",), "tests": ("tests",), "documents": ("documents",), "uses": graph.USES}


class Asked(msgspec.Struct, frozen=True):
    """What is asked of which name."""

    verb: str
    name: str
    some: str
    none: str


def parse(question: str) -> Asked | None:
    """None for a question of another form."""
    text = question.strip()
    for form, verb, some, none in _FORMS:
        if (found := form.match(text)) and found["name"].lower() not in _REFERRING:
            return Asked(verb, found["name"], some, none)
    return None


async def answer(
    db: Database, tenant: str, question: str, *, repo: str | None = None
) -> answers.Answer | None:
    """The graph's answer, each line cited; None when this is no question for it. Raises NotFound for a repository."""
    asked = parse(question)
    if asked is None:
        return None
    names = {row["repo"] for row in await search.repos(db, [tenant]) if repo in (None, row["repo"])}
    for name in sorted(names):
        (repo_id,) = await search.repo_ids(db, tenant, name)
        try:
            subject = await graph.find(db, repo_id, asked.name)
            rows = await _rows(db, repo_id, subject["name"], asked.verb)
        except (errors.NotFound, errors.Invalid):
            continue
        return await _told(db, tenant, name, subject, rows, asked)
    return None


async def _rows(db: Database, repo_id: int, name: str, verb: str) -> graph.Rows:
    if verb in _KINDS:
        return await graph.uses(db, repo_id, name, _KINDS[verb])
    if verb == "impact":
        return await graph.impact(db, repo_id, name)
    ask = {
        "callers": graph.callers,
        "callees": graph.callees,
        "importers": graph.importers,
        "imports": graph.imports,
    }
    return await ask[verb](db, repo_id, name)


async def _told(
    db: Database, tenant: str, repo: str, subject: dict[str, Any], rows: graph.Rows, asked: Asked
) -> answers.Answer | None:
    head = await answers.cite(db, tenant, repo, [subject])
    if not head:
        return None  # the index has not come to it yet
    cited = await answers.cite(db, tenant, repo, rows[:SHOWN])
    called = f"`{subject['name']}` [{head[0].place}]"
    if rows:
        lines = [f"{called} {asked.some} {len(rows)}:"]
        lines += [f"- `{each.qualname}` [{each.place}]: {each.quote}" for each in cited]
        lines += [f"and {len(rows) - len(cited)} more."] if len(rows) > len(cited) else []
    elif asked.verb in ("callees", "imports"):
        lines = [f"{called} {asked.some} nothing of this repository by a name."]
    else:
        lines = [f"Nothing in this repository {asked.none} {called}."]
    return answers.Answer(
        found=True, answer="\n".join(lines), mode="extractive", confidence=1.0, citations=[*head, *cited]
    )
