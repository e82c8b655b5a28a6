"""Proves that prose and code become the same index terms, in any language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogo.knowledge import tokens


@pytest.mark.parametrize(
    ("code", "prose"),
    [
        ("parse_http_header", "parsing HTTP headers"),
        ("parseHTTPHeader", "parsed HTTP header"),
        ("getURL", "get URL"),
        ("max_conn", "maximum connections"),
        ("del_dirs", "delete directories"),
        ("stoppedRunning", "stop run"),
    ],
)
def test_identifiers_are_the_words_that_describe_them(code: str, prose: str) -> None:
    assert tokens.terms(code) == tokens.terms(prose)


@pytest.mark.parametrize(("one", "other"), [("minor", "min"), ("pass", "passage"), ("string", "str ing")])
def test_different_words_stay_different(one: str, other: str) -> None:
    assert tokens.terms(one) != tokens.terms(other)


def test_words_that_say_nothing_are_left_out() -> None:
    assert tokens.terms("def it(self): is the a x 1") == []


def test_a_korean_question_finds_words_inside_words() -> None:
    assert set(tokens.terms("장부를 복사")) & set(tokens.terms("장부는 매일 복사된다"))
    assert tokens.terms("Café") == tokens.terms("cafe")
    assert tokens.terms("Лодка") == ["лодка"]


@given(st.text())
def test_any_text_has_terms_that_postgres_can_hold(text: str) -> None:
    for term in tokens.terms(text):
        assert term
        assert "\0" not in term
        assert len(term) <= tokens.TERM_MAX
        assert term == term.lower() or not term.isascii()
