"""Questions out of a repository's own prose, for `cogo demo`: what its docstrings and documents say,
asked without the name of what says it; and one question about something that it has no word for.

Deterministic: the same files give the same questions.
"""

from __future__ import annotations

import ast
import codecs
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from . import chunking, scan, tokens

FILES_MAX = 300
"""Files of each sort that are looked at for sentences."""
WORDS = range(6, 21)

_VERBS = tokens.words(
    """add apply ask attach book build calculate call cancel check choose clear close collect combine compare
    compile compute connect convert copy count create cut decode decide delete detect determine discard
    dispatch drop emit encode ensure estimate evaluate execute expand extract fetch fill filter find flatten format
    generate get give group handle insert install invoke iterate join keep limit list load locate look make map mark
    match measure merge move normalise normalize open parse pick prepare print produce promote provide pull push
    put raise read reconstruct record reduce register release reload remove rename render replace report reset
    resolve restore retrieve return reverse run save scan schedule search select send serialize set show skip
    sort split start stop store strip submit suspend swap switch take tell test transform translate try turn
    unwrap update validate verify wait walk wrap write yield"""
)
_AUX = tokens.words("is are was were must may can will should")
_OPENERS = tokens.words("the a an each every all any no most some both these")
_VAGUE = tokens.words("""it its this that these those they them he she we you your our self above below following
    therefore also however thus then instead see""")
_CLAUSE = tokens.words("that which who when if where while because so")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 ,'/-]*\Z")
_COMMENT = re.compile(r"\s*(?:#+|//+|\*|--)\s+(.*)")
_AND_VERB = re.compile(r" and ([a-z]+) ")
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_ASIDE = re.compile(r"(^|/)(tests?|testing|examples?|vendor|_vendor|benchmarks?|scripts?|licenses?)(/|$)|changelog|history|"
                    r"licen[cs]e|contributing|(^|/)(test_|conftest)|news|releases?/", re.IGNORECASE)  # fmt: skip

# What hardly any repository is about, with the words that must stand nowhere in it. In rot13, so that
# COGO's own repository, where the demo is run first, holds none of these words either.
_TOPICS = (
    ("Ubj ybat qbrf fbheqbhtu qbhtu srezrag orsber vg vf onxrq?", "fbheqbhtu qbhtu srezrag onxrq"),
    ("Juvpu inppvar cebgrpgf gbqqyref ntnvafg zrnfyrf?", "inppvar gbqqyref zrnfyrf"),
    ("Ng jung grzcrengher qbrf ghatfgra fgneg gb zryg?", "ghatfgra zryg"),
    ("Ubj vf ubarl uneirfgrq sebz n orruvir?", "ubarl uneirfgrq orruvir"),
    ("Juvpu bepurfgen cerzvrerq gur ivbyva pbapregb?", "bepurfgen cerzvrerq ivbyva pbapregb"),
    ("Ubj qb tynpvref pneir n swbeq?", "tynpvref pneir swbeq"),
    ("Jub xavggrq gur jbbyyra zvggraf?", "xavggrq jbbyyra zvggraf"),
    ("Jura qb pureel bepuneqf oybffbz va Xlbgb?", "pureel bepuneqf oybffbz xlbgb"),
    ("Ubj vf n fhoznevar'f onyynfg gnax sybbqrq?", "fhoznevar onyynfg sybbqrq"),
    ("Juvpu zbhagnvarre pyvzorq gur ibypnab onersbbg?", "zbhagnvarre ibypnab onersbbg"),
)


class _Candidate(msgspec.Struct, frozen=True):
    """A question, the file it comes from, and how much its words tell of it."""

    question: str
    path: str
    rank: float


def answerable(folder: Path, count: int = 3) -> list[str]:
    """Up to `count` questions that the folder answers, from different files where there are enough."""
    texts = dict(_texts(folder))
    found = [*_from_documents(texts), *_from_docstrings(texts)]
    if len(found) < count:
        found += _from_any_text(texts)
    known = Counter(candidate.question for candidate in found)
    chosen: list[_Candidate] = []
    for spread in (True, False):
        for candidate in sorted(found, key=lambda c: (-c.rank, c.question)):
            taken = {c.path for c in chosen} if spread else {c.question for c in chosen}
            key = candidate.path if spread else candidate.question
            if len(chosen) < count and key not in taken and known[candidate.question] == 1:
                chosen.append(candidate)
    return [candidate.question for candidate in chosen]


def unanswerable(folder: Path) -> str:
    """A question none of whose own words stands anywhere in the folder, as far as there is one."""
    present: set[str] = set()
    topics = [
        (codecs.decode(question, "rot13"), codecs.decode(words, "rot13")) for question, words in _TOPICS
    ]
    stems = {question: tokens.terms(words) for question, words in topics}
    patterns = {stem for found in stems.values() for stem in found}
    for _, text in _texts(folder):
        lowered = text.lower()
        present |= {stem for stem in patterns - present if stem in lowered}
    return min(stems, key=lambda question: sum(stem in present for stem in stems[question]))


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    root = folder.resolve()
    for path in scan.list_files(root):
        try:
            yield path, scan.read_file(root, path).text
        except scan.Skip:
            continue


# -- from documents ---------------------------------------------------------------------------


def _from_documents(texts: dict[str, str]) -> Iterator[_Candidate]:
    """`The ledger is copied at night.` -> `Is the ledger copied at night?`"""
    documents = [p for p in texts if p.endswith((".md", ".rst", ".txt")) and not _ASIDE.search(p)]
    for path in documents[:FILES_MAX]:
        for chunk in chunking.chunk_file(path, texts[path]).chunks:
            title = chunk.qualname.rpartition(" > ")[2]
            for sentence in _sentences(chunk.text):
                question = _asked(sentence)
                if question and _nameless(sentence, title):
                    yield _Candidate(question, path, _rank(sentence) + 0.5)
                elif _starts_plainly(sentence) and _nameless(sentence, title):
                    said = sentence[0].lower() + sentence[1:-1]
                    yield _Candidate(f"Where does it say that {said}?", path, _rank(sentence) - 5)


def _sentences(text: str) -> Iterator[str]:
    """Whole sentences of a section's paragraphs, without headings, lists, code and tables."""
    for paragraph in re.split(r"\n\s*\n", text):
        if all(line[:1].isalpha() for line in paragraph.split("\n") if line):
            yield from _SENTENCES.split(" ".join(paragraph.split()))


def _asked(sentence: str) -> str | None:
    """Turn a statement around its auxiliary verb: only when that is certainly the main one."""
    if not _starts_plainly(sentence):
        return None
    words = sentence.rstrip(".").split()
    at = next((i for i, word in enumerate(words[:7]) if word in _AUX), None)
    if (
        at is None
        or at < 2
        or _CLAUSE & {word.strip(",").lower() for word in words[:at]}
        or "," in " ".join(words[:at])
    ):
        return None
    return " ".join([words[at].capitalize(), words[0].lower(), *words[1:at], *words[at + 1 :]]) + "?"


def _starts_plainly(sentence: str) -> bool:
    opener = sentence.partition(" ")[0].lower()
    return sentence.endswith(".") and opener in _OPENERS and _is_plain(sentence[:-1])


def _from_any_text(texts: dict[str, str]) -> Iterator[_Candidate]:
    """Sentences of any language from documents and comments, quoted, where nothing better was found."""
    for path in [p for p in texts if not _ASIDE.search(p)][:FILES_MAX]:
        document = chunking.language(path) in ("markdown", "rst")
        for line in texts[path].split("\n"):
            said = _COMMENT.match(line)
            words = (line if document else said[1] if said else "").strip(" .").split()
            if len(words) in range(4, 25) and all(re.fullmatch(r"[^\W\d_][\w'’,-]*", word) for word in words):
                yield _Candidate(
                    f"Where does it say \u201c{' '.join(words)}\u201d?", path, len(words) / 25 - 20
                )


# -- from docstrings --------------------------------------------------------------------------


def _from_docstrings(texts: dict[str, str]) -> Iterator[_Candidate]:
    """`Return the price of a stay.` -> `Which function returns the price of a stay?`"""
    modules = [p for p in texts if p.endswith(".py") and not _ASIDE.search(p)]
    step = max(1, len(modules) // FILES_MAX)
    for path in modules[::step]:
        try:
            tree = chunking.parse_python(chunking.split_lines(texts[path]))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for kind, name, doc in _documented(tree.body, in_class=False):
            sentence = " ".join(re.split(r"\n\s*\n|(?<=\.)\s", doc.strip())[0].split()).rstrip(".")
            verb, _, rest = sentence.partition(" ")
            if _is_plain(sentence) and _nameless(sentence, name) and (said := _third_person(verb)):
                rest = _AND_VERB.sub(lambda found: f" and {_third_person(found[1]) or found[1]} ", f" {rest}")
                yield _Candidate(f"Which {kind} {said}{rest}?", path, _rank(sentence))


def _documented(body: Iterable[ast.AST], *, in_class: bool) -> Iterator[tuple[str, str, str]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            doc = ast.get_docstring(node)
            kind = "class" if isinstance(node, ast.ClassDef) else "method" if in_class else "function"
            if doc and not node.name.startswith("__"):
                yield kind, node.name, doc
            if isinstance(node, ast.ClassDef):
                yield from _documented(node.body, in_class=True)


def _third_person(verb: str) -> str | None:
    """`Parse` or `Parses` -> `parses`; None for what is no verb that we know."""
    verb = verb.lower()
    if verb in _VERBS:
        if verb.endswith("y") and verb[-2] not in "aeiou":
            return verb[:-1] + "ies"
        return verb + ("es" if verb.endswith(("s", "sh", "ch", "x", "z")) else "s")
    known = {verb[:-1], verb[:-2], verb[:-3] + "y"} & _VERBS
    return verb if verb.endswith("s") and known else None


# -- what makes a good question ---------------------------------------------------------------


def _is_plain(sentence: str) -> bool:
    """Ordinary words, not too few or many, that mean something without the text around them."""
    words = sentence.split()
    bare = {word.strip(",;()'").lower() for word in words}
    return (
        len(words) in WORDS
        and bool(_PLAIN.match(sentence))
        and not bare & _VAGUE
        and not any(re.search(r"[a-z][A-Z]|_", word) for word in words)
    )


def _nameless(sentence: str, name: str) -> bool:
    """Whether the sentence has no word of the name of what it is said about."""
    return not set(tokens.terms(sentence)) & set(tokens.terms(name))


def _rank(sentence: str) -> float:
    """Around a dozen words, many of them content; then by a digest, so that no letter is preferred."""
    content = len(set(tokens.terms(sentence)))
    spread = hashlib.blake2b(sentence.encode(), digest_size=2).digest()[0] / 256
    return min(content, 8) / 2 - abs(len(sentence.split()) - 12) / 4 + spread
