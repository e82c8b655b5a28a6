"""Questions that the graph answers itself: who calls, imports, uses, inherits or tests something, and what breaks with it.

Such a question names a thing of the code. If it names none that the graph knows, or several, it is a question like
any other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from cogo import errors

from . import answers, graph, search

if TYPE_CHECKING:
    from cogo import Database

SHOWN: Final = 10
ASKED_MAX: Final = 300
"""Characters of the longest question of these forms."""
_NAME: Final = r"[`'\"]?(?P<name>[A-Za-z_][A-Za-z0-9_-]*(?:[./][A-Za-z0-9_-]+)*)(?:\(\))?[`'\"]?"
_THE: Final = r"(?:the )?(?:(?:function|method|class|module|file) )?"
_PLACE: Final = r"(?: (?:module|function|class|method|file))? ?[?.!]*$"


def _asking(verbs: str) -> re.Pattern[str]:
    return re.compile(rf"^(?:who|what|which(?: \w+)?) (?:{verbs}) {_THE}{_NAME}{_PLACE}", re.IGNORECASE)


# What is asked, by the words of the question; and how the answer begins, for some and for none.
_FORMS: Final = (
    (_asking("calls?|invokes?"), "callers", "is called by", "is known to call"),
    (_asking(r"imports?|depends?\ on"), "importers", "is imported by", "imports the module of"),
    (_asking(r"inherits?\ from|inherits?|extends?|subclass(?:es)?"), "heirs", "is inherited by", "inherits from"),
    (_asking("tests?|covers?"), "tests", "is tested by", "is known to test"),
    (_asking("documents?|mentions?|describes?"), "documents", "is named by", "names"),
    (_asking("uses?|references?|needs?"), "uses", "is used by", "is known to use"),
    (re.compile(rf"^what (?:would |may |could )?(?:breaks?|changes?|is affected) (?:if|when|by) (?:I change )?"
                rf"{_THE}{_NAME}(?: (?:changes?|breaks?|is (?:changed|removed)|goes))?{_PLACE}", re.IGNORECASE),
     "impact", "is needed, directly or not, by", "is known to need"),
    (re.compile(rf"^what does {_THE}{_NAME} calls?{_PLACE}", re.IGNORECASE), "callees", "calls", "is called by"),
    (re.compile(rf"^what does {_THE}{_NAME} imports?{_PLACE}", re.IGNORECASE), "imports", "imports", "is imported by"),
    (re.compile(rf"^{_NAME} ?(?:을|를)? ?(?:호출|부르)\S*.*$"), "callers", "is called by", "is known to call"),
    (re.compile(rf"^{_NAME} ?(?:을|를)? ?(?:임포트|import)\S*.*$"), "importers", "is imported by", "imports the module of"),
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
    text = " ".join(question.split())
    if len(text) > ASKED_MAX:
        return None
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
    found: list[tuple[int, str, graph.Row]] = []
    for row in await search.repos(db, [tenant]):
        if repo not in (None, row["repo"]):
            continue
        (repo_id,) = await search.repo_ids(db, tenant, row["repo"])
        try:
            found.append((repo_id, row["repo"], await graph.find(db, repo_id, asked.name)))
        except errors.NotFound:
            continue
        except errors.Invalid:
            return None
    if len(found) != 1:
        return None
    repo_id, name, subject = found[0]
    return await _told(db, tenant, name, subject, await _rows(db, repo_id, subject, asked.verb), asked)


async def _rows(db: Database, repo_id: int, subject: graph.Row, verb: str) -> graph.Rows:
    if verb in _KINDS:
        return await graph.uses(db, repo_id, subject, _KINDS[verb])
    if verb == "impact":
        return await graph.impact(db, repo_id, subject)
    ask = {
        "callers": graph.callers,
        "callees": graph.callees,
        "importers": graph.importers,
        "imports": graph.imports,
    }
    return await ask[verb](db, repo_id, subject)


async def _told(
    db: Database, tenant: str, repo: str, subject: graph.Row, rows: graph.Rows, asked: Asked
) -> answers.Answer | None:
    head = await answers.cite(db, tenant, repo, [subject])
    if not head:
        return None  # the index has not come to it yet
    cited = await answers.cite(db, tenant, repo, rows[:SHOWN])
    called = f"`{subject['name']}` [{head[0].place}]"
    if rows:
        many = f"{len(rows)}" if len(rows) < graph.LIMIT else f"{graph.LIMIT:,} or more"
        lines = [f"{called} {asked.some} {many}:"]
        lines += [f"- `{each.qualname}` [{each.place}]: {each.quote}" for each in cited]
        lines += [f"and {len(rows) - len(cited)} more."] if len(rows) > len(cited) else []
    elif asked.verb in ("callees", "imports"):
        lines = [f"{called} {asked.some} nothing of this repository by a name."]
    else:
        lines = [f"Nothing in this repository {asked.none} {called}."]
    return answers.Answer(
        found=True, answer="\n".join(lines), mode="extractive", confidence=1.0, citations=[*head, *cited]
    )
