"""Answers without a language model: the lines that answer, who uses them, and where each stands.

Every statement names `path:start-end`, and its quote is a piece of exactly those lines. When the words
of the question weigh more than what was found of them, the answer is "not found": that is better than
a confident list of lines about something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from . import queries, search, signatures, tokens
from .graph import queries as graph_queries

if TYPE_CHECKING:
    from cogo import Database

FOUND_FROM = 0.4
"""Confidence below which nothing counts as found. Measured (docs/adr/0005): questions of general knowledge
reach 0.35 unless the repository has their words, a person's questions about its own subject 0.44 and more."""
STATEMENTS = 3
RERANKED = 20
"""Hits among which the answer is looked for."""
NEAR = 0.6
"""Hits count as answers from this share of the best one's weight."""
QUOTE_MAX = 500
NOT_FOUND = "not found"
BEFORE_MAX = 1_000
"""Characters of the words of a question before."""
SIGNATURE_MAX, TEXT_MAX = 160, 300
CODE = frozenset({"function", "method", "class"})
DOCSTRING_BONUS = 1.0
WINDOW = 3
SHOWN = 2

# Words by which people ask, and words for code as such: no evidence that a span is about the question.
_ASKING = tokens.words(
    """which what where when who whom how why does do did is are was were can could should would will there here
    part code function functions class classes method methods module modules file files repository repo project
    thing something anyone anything way please tell show explain describe find look me about used use using
    happens happen happening get got give gives works work handled handle responsible implemented implement
    defined define located live lives say says said written true"""
)
_ASKING_KOREAN = ("어디", "무엇", "무슨", "어떻", "어떤", "누가", "누구", "언제", "왜", "입니까")
_MARKS = re.compile(r'^(#+|[*>|-]+)\s+|^//[/!]*\s*|^/\*[*!]*\s*|\s*\*+/$|^\*$|[rbuf]?"""|[rbuf]?\'\'\'')
# Words that stand for something said before. Korean ones may carry a particle.
_REFERRING = re.compile(
    r"\b(it|its|this|these|those|they|them|their|he|she|him|her|same|latter|former)\b|^\W*(and|but|also|or)\b"
    r"|(^|\s)(그것|그거|그건|그게|그걸|이것|이거|이건|이게|이걸|거기|그럼|그리고|그러면|그 )",
    re.IGNORECASE,
)


class Citation(msgspec.Struct, frozen=True):
    """`quote` stands in the file `path` of `repo` within the lines `line` to `end` (1-based, inclusive)."""

    path: str
    line: int
    end: int
    quote: str
    repo: str
    qualname: str
    number: int | None = None
    """How the text of a model's answer names it: `[1]`; None where the text names the place itself."""

    @property
    def place(self) -> str:
        return f"{self.path}:{self.line}-{self.end}"


class Usage(msgspec.Struct, frozen=True):
    """Tokens that a model's call used: what the server counted, or the most that it can have been."""

    input_tokens: int
    output_tokens: int


class Answer(msgspec.Struct):
    """What gateway/chat ends with. `confidence` is from 0 to 1; without an answer there are no citations."""

    found: bool
    answer: str
    mode: str
    """`extractive`, or `model` when a language model wrote the text."""
    confidence: float
    citations: list[Citation]
    model: str | None = None
    """The model that was to write it; None where none is set up."""
    usage: Usage | None = None
    """None when no model was called."""
    cost_usd: float = 0.0
    degraded: str | None = None
    """Why the answer is extractive though a model is set up: one of the codes in docs/guides/knowledge.md."""
    citations_removed: int = 0
    """Citations in the model's text that held nothing, and were taken out of it."""


class Found(msgspec.Struct, frozen=True):
    """What the index has for a question, best first."""

    asked: str
    """The words that were searched for."""
    hits: list[search.Hit]
    confidence: float

    @property
    def enough(self) -> bool:
        return self.confidence >= FOUND_FROM


async def answer(
    db: Database, tenant: str, question: str, *, repo: str | None = None, k: int = 6, before: str = ""
) -> Answer:
    """Answer from the index of one repository, or of all of the tenant's. Raises NotFound, Invalid."""
    found = await find(db, tenant, question, repo=repo, k=k, before=before)
    return await quoted(db, tenant, found, repo=repo)


async def find(
    db: Database, tenant: str, question: str, *, repo: str | None = None, k: int = 6, before: str = ""
) -> Found:
    """The best `k` spans; `before` are the words of the question that this one follows."""
    first: Found | None = None
    for asked in wordings(question, before):
        (hits,) = await search.search(db, tenant, [asked], max(k, RERANKED), search.Scope(repo=repo))
        # One span must answer: of two with the same score the one that has more of the question's words.
        best = sorted(hits, key=_weight, reverse=True)[:k]
        words = len(set(tokens.terms(asked)))
        found = Found(asked, best, round(max((_confidence(hit, words) for hit in best), default=0.0), 2))
        if found.enough:
            return found
        first = first or found
    assert first is not None
    return first


async def quoted(db: Database, tenant: str, found: Found, *, repo: str | None = None) -> Answer:
    """The answer that quotes; the same question and index give the same answer."""
    confidence, hits = found.confidence, found.hits
    if not found.enough:
        return Answer(found=False, answer=NOT_FOUND, mode="extractive", confidence=confidence, citations=[])
    best = distinct(hit for hit in hits if _weight(hit) >= NEAR * _weight(hits[0]))[:STATEMENTS]
    ids = await search.repo_ids(db, tenant, repo)
    weights = await search.idf(db, ids, sorted(set(tokens.terms(found.asked))))
    known = await facts(db, tenant, best)
    lines, citations = list[str](), list[Citation]()
    for number, hit in enumerate(best):
        said, cited = _statement(hit, weights)
        lines += said
        citations += cited
        if number == 0 and (fact := known.get((hit.repo, hit.path, hit.qualname))):
            lines.append(fact.sentence)
            citations += fact.citations
    return Answer(
        found=True, answer="\n".join(lines), mode="extractive", confidence=confidence, citations=citations
    )


def _weight(hit: search.Hit) -> float:
    """By words and vectors the score says it all; by words alone one span must have most of them."""
    return hit.score if hit.by_vectors else hit.score * hit.coverage


def _confidence(hit: search.Hit, words: int) -> float:
    """How sure it is that the span is about the question: it has its weighty words, and they weigh in it.

    Nearly all of many words found together are evidence also in a long span, where each weighs little. Or it
    means the same.
    """
    together = hit.coverage**4 * (1 - 2 / max(words, 2))
    by_words = hit.coverage * max(min(1.0, hit.strength), together)
    return max(by_words, hit.certainty)


def essence(question: str) -> str:
    """The question without the words by which one asks; all of it when nothing else is left."""
    return _essence(question) or question


def _essence(question: str) -> str:
    words = re.findall(r"[^\W_]+(?:[_.][^\W_]+)*", question)
    kept = (w for w in words if w.lower() not in _ASKING and not w.startswith(_ASKING_KOREAN))
    return " ".join(kept)


def wordings(question: str, before: str) -> list[str]:
    """What to search for: the question's own words, and those with the words of the question before it.

    A question that refers to something ("and who calls it?"), or has next to no words, is first looked for
    together with that one; another only if its own words find nothing.
    """
    own = essence(question)
    if not before:
        return [own]
    bare, referring = _REFERRING.subn(" ", question)
    both = f"{_essence(bare)} {before[:BEFORE_MAX]}".strip()
    return [both, own] if referring or len(set(tokens.terms(own))) < 2 else [own, both]


def distinct(hits: Any) -> list[search.Hit]:
    """Without spans whose text was there before (files that are copies of each other)."""
    return list({hit.text: hit for hit in reversed(list(hits))}.values())[::-1]


# -- one span ---------------------------------------------------------------------------------


def _statement(hit: search.Hit, weights: dict[str, float]) -> tuple[list[str], list[Citation]]:
    """What a hit says: the symbol with its signature, and the lines that answer best."""
    lines = hit.text.split("\n")
    head = signatures.signature(lines, hit.lang, hit.qualname) if hit.kind in CODE else None
    about = signatures.doc(lines, head)
    # What the name says already is said; the line should add to it.
    named = set(tokens.terms(hit.qualname))
    window = best_lines(lines, head, about, {t: w * (0.3 if t in named else 1.0) for t, w in weights.items()})
    said, cited = list[str](), list[Citation]()
    if head is not None:
        whole = _cite(hit, lines, head, span=(0, len(lines)))
        said.append(
            f"{hit.kind} `{hit.qualname}` [{whole.place}]: {_plain(whole.quote, SIGNATURE_MAX).removesuffix(' {')}"
        )
        cited.append(whole)
    if window is not None:
        piece = _cite(hit, lines, window)
        where = "  says" if head is not None else f"{hit.kind} `{hit.qualname or hit.path}`"
        said.append(f"{where} [{piece.place}]: {_plain(piece.quote, TEXT_MAX)}")
        cited.append(piece)
    return said, cited


def _cite(
    hit: search.Hit, lines: list[str], part: tuple[int, int], *, span: tuple[int, int] | None = None
) -> Citation:
    """Quote lines[part] (0-based, end exclusive), cited by their own lines or by those of `span`."""
    first, last = span or part
    quote = "\n".join(lines[slice(*part)])[:QUOTE_MAX].strip()
    return Citation(hit.path, hit.start + first, hit.start + last - 1, quote, hit.repo, hit.qualname)


def best_lines(
    lines: list[str], head: signatures.Lines | None, said: int | None, weights: dict[str, float]
) -> signatures.Lines | None:
    """Up to three neighbouring lines with the most of the question's words, beside the signature.

    Words about the symbol stand below it in Python, and from the line `said` above it elsewhere.
    """
    first = said if said is not None else head[1] if head else 0
    apart = set(range(*head)) if head else set[int]()
    found = [set(tokens.terms(line)) & weights.keys() for line in lines]
    best, chosen = 0.0, None
    for start in range(first, len(lines)):
        together: set[str] = set()
        for end in range(start, min(start + WINDOW, len(lines))):
            if end in apart or not lines[end].strip():
                break
            together |= found[end]
            value = sum(weights[term] for term in together) * (1 - 0.05 * (end - start))
            value += DOCSTRING_BONUS * (start == said or lines[start].lstrip().startswith('"""'))
            if value > best:
                best, chosen = value, (start, end + 1)
    if chosen is None and first < len(lines) and (head is None or '"""' in lines[first]):
        # Only the name matches, or the meaning: then what it says of itself.
        first = next((i for i in range(first, len(lines)) if lines[i].strip()), first)
        return first, first + 1
    return chosen


def _plain(quote: str, limit: int) -> str:
    """A quote as running text, without comment signs and docstring quotes, cut to the limit."""
    words = " ".join(filter(None, (_MARKS.sub("", line.strip()).strip() for line in quote.split("\n"))))
    return words if len(words) <= limit else words[: limit - 1] + "…"


# -- what the graph adds ----------------------------------------------------------------------


class Fact(msgspec.Struct, frozen=True):
    """Who calls a symbol, or else who imports its module: the first of them by their lines, and how many there are."""

    text: str
    """The beginning of a sentence: `It is called by`."""
    citations: list[Citation]
    count: int

    @property
    def sentence(self) -> str:
        named = ", ".join(f"`{each.qualname}` [{each.place}]" for each in self.citations)
        rest = self.count - len(self.citations)
        return f"{self.text} {named}" + (f" and {rest} more." if rest > 0 else ".")


async def facts(db: Database, tenant: str, hits: Sequence[search.Hit]) -> dict[tuple[str, str, str], Fact]:
    """What the graph knows of the best hit, by (repo, path, qualname); lines are quoted as the index has them."""
    best = hits[:1]
    params = {
        "repos": [hit.repo for hit in best], "paths": [hit.path for hit in best], "tenant": tenant,
        "symbols": [hit.qualname for hit in best], "show": SHOWN,
    }  # fmt: skip
    found: dict[tuple[str, str, str], Fact] = {}
    for row in await db.fetch(graph_queries.FACTS, params):
        called = bool(row["callers"])
        text = "It is called by" if called else f"Its module `{row['module']}` is imported by"
        cited = await cite(db, tenant, row["repo"], row["calls"] if called else row["imports"])
        if cited:
            count = row["callers"] if called else row["importers"]
            found[row["repo"], row["path"], row["symbol"]] = Fact(text, cited, count)
    return found


async def cite(db: Database, tenant: str, repo: str, places: Sequence[Mapping[str, Any]]) -> list[Citation]:
    """`{name, path, line}` as citations, as far as the index holds these lines (still)."""
    cited = list[Citation]()
    for at in places:
        where = {"tenant": tenant, "repo": repo, "path": at["path"], "line": at["line"]}
        row = await db.fetch_one(queries.LINE, where)
        if row is not None:
            text = row["text"].split("\n")[at["line"] - row["start_line"]]
            quote = text.strip()[:QUOTE_MAX]
            cited.append(Citation(at["path"], at["line"], at["line"], quote, repo, at["name"]))
    return cited
