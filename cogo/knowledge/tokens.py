"""Text and identifiers into index terms: the same words for `parseHTTPHeader`, `parse_http_header`
and "parsing of HTTP headers".

Terms are lower-case; snake_case and camelCase are cut apart; accents are folded; English words are
stemmed lightly, Korean ones by their first two syllables; scripts without spaces between words become
pairs of characters, so that a question in any language finds text in it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

VERSION = "3"
"""Part of every file's digest: a new tokeniser, chunker or text to embed makes every file count as changed."""

TERM_MAX = 40
"""Longer runs are hashes, base64 and the like: cut, so that one line can't bloat the index."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W0-9A-Za-z_]+")
_UNSPACED = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿]+")
_HANGUL = re.compile(r"[가-힣]+")
_VOWEL = re.compile(r"[aeiouy]")
_ENDINGS = ("ations", "ation", "ator", "ition", "ion", "ive", "ment", "able", "ible", "ing", "ers", "ors",
            "er", "or", "ed", "ly")  # fmt: skip


def words(text: str) -> frozenset[str]:
    """A word list, as one writes it down."""
    return frozenset(text.split())


# Words that say nothing about what a text is about. Python's own "self", "cls" and "def" too.
STOP_WORDS = words(
    """a an and any are as at be been being but by can could did do does for from had has have he her his how i
    if in into is it its itself may me might must my no nor not of on or our shall she should so some such than
    that the their them then there these they this those to too us was we were what when where which while who
    whom whose why will with would you your self cls def"""
)

# What programmers write short and prose writes out. Both sides become the long form's stem.
_SHORT = dict(
    pair.split("=")
    for pair in words("""addr=address arg=argument args=argument async=asynchronous attr=attribute attrs=attribute
    bool=boolean buf=buffer char=character chars=character cfg=configuration cmd=command conf=configuration
    config=configuration conn=connection ctx=context cur=current db=database del=delete dest=destination
    dict=dictionary dicts=dictionary dir=directory dirs=directory dirname=directory doc=document docs=document
    dst=destination elem=element env=environment err=error exc=exception exec=execute expr=expression
    fmt=format fn=function func=function getattr=attribute hasattr=attribute idx=index img=image
    impl=implementation info=information init=initialize int=integer kwarg=argument kwargs=argument
    lang=language len=length lib=library loc=location max=maximum min=minimum mod=module msg=message
    num=number obj=object objs=object op=operation ops=operation opt=option opts=option param=parameter
    params=parameter pkg=package pos=position prev=previous proc=process prop=property recv=receive
    ref=reference regex=pattern req=request resp=response sep=separator seq=sequence setattr=attribute
    sig=signature sock=socket spec=specification src=source stmt=statement str=string subproc=subprocess
    sync=synchronous sys=system temp=temporary tmp=temporary tok=token txt=text tz=timezone usr=user
    util=utility utils=utility val=value vals=value var=variable vars=variable ver=version""")
)


def terms(text: str) -> list[str]:
    """The index terms of a text, in order, with repetitions."""
    if not text.isascii():
        text = _fold(text)
    found: list[str] = []
    for word in pieces(text):
        if word.isascii():
            term = _term(word)
            if term:
                found.append(term)
        else:
            found.extend(_foreign(word.lower()))
    return found


def pieces(text: str) -> list[str]:
    """The words that identifiers and prose are made of, as they are written."""
    return _WORD.findall(text)


def _fold(text: str) -> str:
    """Without accents, and in the one composed form (Hangul stays whole syllables)."""
    apart = unicodedata.normalize("NFKD", text)
    return unicodedata.normalize("NFC", "".join(c for c in apart if unicodedata.category(c) != "Mn"))


def _foreign(word: str) -> list[str]:
    if _HANGUL.fullmatch(word):
        return [word[:2]]  # what follows is mostly particles and endings
    if not _UNSPACED.fullmatch(word):
        return [word[:TERM_MAX]]
    return [word[i : i + 2] for i in range(len(word) - 1)] or [word]


@lru_cache(maxsize=65_536)
def _term(word: str) -> str | None:
    word = word.lower()
    if len(word) < 2 or word in STOP_WORDS:
        return None
    if word.isdigit():
        return word if len(word) <= 6 else None
    return stem(_SHORT.get(word, word)[:TERM_MAX])


def stem(word: str) -> str:
    """An English word without its commonest endings: parser, parses, parsed, parsing -> pars."""
    word = _singular(word)
    for ending in _ENDINGS:
        rest = len(word) - len(ending)
        shortest = 2 if ending in ("ing", "ed") else 4  # minor is no "min"
        if word.endswith(ending) and rest >= shortest and _VOWEL.search(word, 0, rest):
            word = _undouble(word[:rest]) if rest > 2 else word[:rest] + "e"  # used -> use
            break
    if len(word) > 3 and word.endswith("e"):
        return word[:-1]
    return word[:-1] + "i" if len(word) > 3 and word.endswith("y") else word


def _singular(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 4 else word[:-1]
    return word[:-2] if word.endswith(("sses", "shes", "ches", "xes")) else word[:-1]


def _undouble(word: str) -> str:
    """Undo what an ending doubled: stopp -> stop, but pass and call stay."""
    doubled = len(word) > 2 and word[-1] == word[-2] and word[-1] not in "lsz"
    return word[:-1] if doubled else word
