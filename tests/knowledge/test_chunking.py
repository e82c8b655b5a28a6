"""Proves that chunks are exact runs of lines, aligned to symbols and sections, on any text."""

from __future__ import annotations

import textwrap
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogo.knowledge import chunking

PYTHON = textwrap.dedent(
    '''\
    """Module head."""

    import os

    LIMIT = 3


    @decorated(
        twice=True,
    )
    async def first(a, b):
        """First."""

        def inner():
            return a

        return inner


    class Outer(Base):
        """Outer head."""

        field = 1

        @property
        def name(self):
            return self.field

        class Inner:
            def deep(self): return 1

        tail = 2


    if LIMIT:
        def maybe():
            pass
    else:
        def maybe():
            return 2
    '''
)


def spans(path: str, text: str) -> list[tuple[str, str, int, int]]:
    return [(c.kind, c.qualname, c.start, c.end) for c in chunking.chunk_file(path, text).chunks]


def test_python_is_cut_into_symbols_with_decorators() -> None:
    assert spans("a.py", PYTHON) == [
        ("module", "", 1, 5),
        ("function", "first", 8, 17),
        ("class", "Outer", 20, 23),
        ("method", "Outer.name", 25, 27),
        ("class", "Outer.Inner", 29, 29),
        ("method", "Outer.Inner.deep", 30, 30),
        ("class", "Outer", 32, 32),
        ("module", "", 35, 35),
        ("function", "maybe", 36, 37),
        ("module", "", 38, 38),
        ("function", "maybe", 39, 40),
    ]


def test_what_is_not_python_is_cut_into_windows_and_says_so() -> None:
    cut = chunking.chunk_file("a.py", "def broken(:\n    pass\n")
    assert [c.kind for c in cut.chunks] == ["lines"]
    assert cut.note is not None
    assert "SyntaxError" in cut.note


def test_a_deep_nest_does_not_end_the_process() -> None:
    cut = chunking.chunk_file("a.py", "x = " + "(" * 50_000 + ")" * 50_000 + "\n")
    assert cut.note is not None


def test_markdown_sections_know_their_trail() -> None:
    text = "intro\n\n# Guide #\n\ntext\n\n```sh\n# no heading\n```\n\n## Install\n\nsteps\n\nSetext\n======\n\nend\n"
    assert spans("a.md", text) == [
        ("section", "", 1, 1),
        ("section", "Guide", 3, 9),
        ("section", "Guide > Install", 11, 13),
        ("section", "Setext", 15, 18),
    ]


def test_a_table_rule_and_front_matter_are_no_headings() -> None:
    assert [s[1] for s in spans("a.md", "| a |\n|---|\n| b |\n\n- item\n---\n")] == [""]


def test_rst_levels_come_by_order_of_their_marks() -> None:
    text = "=====\nTitle\n=====\n\nintro\n\nPart\n----\n\ntext\n\nSub\n~~~\n\nmore\n\nPart 2\n------\n\n====  ====\nA     B\n====  ====\n"
    assert [(q, a, b) for _, q, a, b in spans("a.rst", text)] == [
        ("Title", 1, 5),
        ("Title > Part", 7, 10),
        ("Title > Part > Sub", 12, 15),
        ("Title > Part 2", 17, 22),
    ]


def test_long_text_is_cut_at_blank_lines() -> None:
    lines = ["word"] * 200
    lines[50] = lines[100] = ""
    cut = spans("a.txt", "\n".join(lines))
    assert [s[2:] for s in cut] == [(1, 50), (52, 100), (102, 161), (162, 200)]


TEXTS = st.lists(
    st.sampled_from(
        ["", " ", "def f():", "    return 1", "class A:", "@d", "# H", "## H2", "text", "====", "----", "```", '"""', "\t",
         "\x0c", "가나다", "if x:", "else:", "    def g(self): pass", "a\u2028b", "\x85"]
    ),
    max_size=40,
).map("\n".join) | st.text(st.characters(exclude_characters="\0"))  # fmt: skip


@given(TEXTS, st.sampled_from(["a.py", "a.md", "a.rst", "a.txt", "a.go", "a"]))
def test_chunks_are_exact_disjoint_and_leave_nothing_out(text: str, path: str) -> None:
    lines = chunking.split_lines(text)
    covered: list[int] = []
    for chunk in chunking.chunk_file(path, text).chunks:
        assert chunk.text == "\n".join(lines[chunk.start - 1 : chunk.end])
        covered += range(chunk.start, chunk.end + 1)
    assert covered == sorted(set(covered))
    assert {i for i, line in enumerate(lines, 1) if line.strip()} <= set(covered)


@pytest.mark.parametrize("path", sorted(Path(anyio.__file__).parent.rglob("*.py")), ids=lambda p: p.name)
def test_every_function_of_a_real_package_is_a_chunk(path: Path) -> None:
    """Against the syntax tree itself: each function that isn't inside another one has its own exact span."""
    import ast

    text = path.read_text("utf-8")
    found = {(c.start, c.end) for c in chunking.chunk_file(path.name, text).chunks}
    inside: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside |= {id(n) for n in ast.walk(node)} - {id(node)}
            if id(node) not in inside:
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                assert (start, node.end_lineno) in found, node.name
