"""What a model's text may keep of its citations: only numbers of sources that were shown, with true quotes.

A statement is a sentence or a line. Its citations hold when each piece of it in backticks or quotation marks
stands in one of the sources that it cites; else they are taken out of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from .. import answers, tokens
from .prompt import Source

CITATIONS_MAX: Final = 100
CITED_AT_ONCE: Final = 50
"""Numbers of one statement that are looked at."""
QUOTES_MAX: Final = 50
"""A statement with more quotes than that is not checked: its citations don't hold."""
ROUNDS: Final = 5

# Code first: a bracket in it is no citation. A sentence doesn't end before the citation that belongs to it. White
# space is matched possessively: a model that writes 60,000 spaces must not keep the loop busy.
_TOKEN = re.compile(
    r"(?P<fence>```[^\n`]*\n?(?P<block>.*?)(?:```|\Z))"
    r"|(?P<tick>`(?P<code>[^`\n]+)`)"
    r"|(?P<cite>[\[【]\s*+\d{1,6}(?:\s*+[,;–-]\s*+\d{1,6})*\s*+[\]】])"
    r"|(?P<end>\n+|(?<=[.!?。！？])\s++(?![\[【]\s*+\d))",
    re.DOTALL,
)
_QUOTED = re.compile(r"“([^“”]+)”|«([^«»]+)»|「([^「」]+)」|\"([^\"\n]+)\"")
_ELLIPSIS = re.compile(r"…|\.\.\.")
_NUMBER = re.compile(r"(\d+)(?:\s*[–-]\s*(\d+))?")

_Kind = Literal["text", "cite", "code", "end"]


class Checked(msgspec.Struct, frozen=True):
    """A model's text without the citations that don't hold, and those that do."""

    text: str
    citations: list[answers.Citation]
    removed: int


def check(text: str, sources: Sequence[Source]) -> Checked:
    """Keep the citations that hold; none of a text that nests them deeper than anybody writes."""
    removed = 0
    for _ in range(ROUNDS):
        found = _check(text, sources)
        removed += found.removed
        if not found.removed:
            return Checked(found.text, found.citations, removed)
        text = found.text  # taking one out can make another of what stood around it: `[1[9]]`
    return Checked(text, [], removed)


def _check(text: str, sources: Sequence[Source]) -> Checked:
    known = {source.number: source for source in sources}
    has = {source.number: _even(f"{source.text}\n{source.head}") for source in sources}
    written, removed = "", 0
    citations: dict[answers.Citation, None] = {}
    for statement in _statements(text):
        cited = [n for kind, piece in statement if kind == "cite" for n in numbers(piece)]
        quotes = _quotes(statement)
        real = [known[n] for n in dict.fromkeys(cited) if n in known][:CITED_AT_ONCE]
        if len(quotes) > QUOTES_MAX or not all(any(_says(has[s.number], q) for s in real) for q in quotes):
            real = []
        kept = {source.number for source in real}
        said = "".join(piece for kind, piece in statement if kind != "cite")
        for source in real if len(citations) < CITATIONS_MAX else ():
            citations[_citation(source, said, quotes)] = None
        removed += sum(n not in kept for n in cited)
        written += _without(statement, kept)
    return Checked(written.strip(), list(citations)[:CITATIONS_MAX], removed)


def plain(text: str) -> str:
    """A text without its citations: their numbers mean nothing later in a conversation."""
    return check(text, ()).text


def numbers(cite: str) -> list[int]:
    """`[1, 3-5]` -> 1, 3, 4, 5."""
    found: list[int] = []
    for first, last in _NUMBER.findall(cite):
        low, high = int(first), int(last or first)
        found += range(low, min(high, low + CITED_AT_ONCE) + 1) if high > low else [low]
    return found


def _statements(text: str) -> list[list[tuple[_Kind, str]]]:
    """The text cut into statements, each into pieces; all pieces together are the text."""
    found: list[list[tuple[_Kind, str]]] = [[]]
    at = 0
    for match in _TOKEN.finditer(text):
        if between := text[at : match.start()]:
            found[-1].append(("text", between))
        at = match.end()
        kind: _Kind = "end" if match["end"] else "cite" if match["cite"] else "code"
        # A block of code, or a citation on a line of its own, belongs to what it follows.
        if len(found) > 1 and not found[-1] and (kind == "cite" or match["fence"]):
            found.pop()
        found[-1].append((kind, match[0]))
        if kind == "end":
            found.append([])
    found[-1].append(("text", text[at:]))
    return found


def _quotes(statement: list[tuple[_Kind, str]]) -> list[str]:
    """What the statement gives as words of a source."""
    found: list[str] = []
    for kind, piece in statement:
        if kind == "code" and (match := _TOKEN.match(piece)):
            found.append(match["block"] or match["code"] or "")
        elif kind == "text":
            found += ["".join(groups) for groups in _QUOTED.findall(piece)]
    return found


def _says(has: str, quote: str) -> bool:
    """Whether the quote stands in a source or its heading, whatever the white space; an ellipsis leaves out."""
    return all(_even(part).strip(" .,;:") in has for part in _ELLIPSIS.split(quote))


def _even(text: str) -> str:
    return " ".join(text.split())


def _citation(source: Source, said: str, quotes: Sequence[str]) -> answers.Citation:
    """The lines of a source that have most of the statement's words; they are quoted as they stand there."""
    lines = source.text.split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    weights = dict.fromkeys(tokens.terms(said), 1.0) | dict.fromkeys(tokens.terms(" ".join(quotes)), 2.0)
    part = answers.best_lines(lines, None, None, weights) or (first, first + 1)
    quote = "\n".join(lines[slice(*part)])[: answers.QUOTE_MAX].strip()
    return answers.Citation(
        source.path, source.start + part[0], source.start + part[1] - 1, quote, source.repo, source.qualname,
        source.number,
    )  # fmt: skip


def _without(statement: list[tuple[_Kind, str]], kept: set[int]) -> str:
    """The statement's text with these citations alone."""
    written = ""
    for kind, piece in statement:
        cited = numbers(piece) if kind == "cite" else []
        left = [n for n in cited if n in kept]
        if kind != "cite" or len(left) == len(cited):
            written += piece
        elif left:
            written += f"[{', '.join(map(str, left))}]"
        else:
            written = written.rstrip(" ")
    return written
