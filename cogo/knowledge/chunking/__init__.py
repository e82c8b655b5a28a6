"""A file into chunks: symbols of code, sections of Markdown and reStructuredText, else windows.

Every chunk is a run of whole lines, 1-based and inclusive, and its text is exactly those lines.
Chunks of a file never overlap, and every line with something on it is in one.
"""

from __future__ import annotations

import msgspec

from .. import syntax
from . import documents, grammars, python
from .languages import cut_into_lines, language
from .python import parse_python
from .spans import Chunk, windows

__all__ = [
    "Chunk",
    "Chunked",
    "chunk_file",
    "cut_into_lines",
    "has_grammar",
    "language",
    "parse_python",
    "split_lines",
]


class Chunked(msgspec.Struct, frozen=True):
    """What `chunk_file` made of a file. `note` says why a simpler cut than usual was taken."""

    lang: str
    chunks: tuple[Chunk, ...]
    note: str | None = None


def split_lines(text: str) -> list[str]:
    """Lines as editors and the parsers count them: not at form feeds or Unicode separators."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


def has_grammar(lang: str) -> bool:
    """Whether tree-sitter cuts it, which some texts bring to take hours (`apart`)."""
    return syntax.known(lang) and lang not in ("python", "markdown")


def chunk_file(path: str, text: str, lang: str | None = None, uncut: str | None = None) -> Chunked:
    """Cut a file's text. Never raises on any text: what can't be parsed is cut into windows.

    `uncut` says why it is not to be parsed at all.
    """
    lang, lines = lang or language(path), split_lines(text)
    note = None
    if uncut:
        note = f"{uncut}: cut into windows"
    elif lang == "python":
        try:
            return Chunked(lang, tuple(python.symbols(lines)))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            note = f"not parsable as Python ({type(error).__name__}): cut into windows"
    elif lang in ("markdown", "rst"):
        heads = documents.markdown_heads(lines) if lang == "markdown" else documents.rst_heads(lines)
        return Chunked(lang, tuple(documents.sections(lines, heads)))
    elif has_grammar(lang):
        try:
            chunks, note = grammars.symbols(lang, lines)
            return Chunked(lang, tuple(chunks), note)
        except syntax.TooDeepError as error:
            note = f"{error}: cut into windows"
    return Chunked(lang, tuple(windows(lines, 0, len(lines), "lines", "")), note)
