"""Proves that the judge of the chaos runs sees each kind of breach, and sees none in histories that are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chaos.breaches import WRONG, an_end_was_overwritten
from chaos.checker import check
from chaos.history import History
from chaos.stories import RIGHT, Story, plain
from chaos.verdict import RULES


@pytest.mark.parametrize("tell", RIGHT, ids=lambda tell: tell.__name__)
def test_right_histories_are_green(tell: Callable[[Story], None]):
    """Nothing that the bus may do is taken for a breach."""
    story = Story()
    tell(story)
    assert story.judged() == set()


@pytest.mark.parametrize(
    ("rule", "tell"), [(rule, tell) for rule, _, tell in WRONG], ids=[f"{r}-{n}" for r, n, _ in WRONG]
)
def test_each_breach_is_seen(rule: int, tell: Callable[[Story], Any]):
    """A history with one thing wrong is red, by the rule that this thing breaks."""
    story = Story()
    tell(story)
    assert rule in story.judged()


def test_every_rule_has_a_breach():
    """No rule is there that nothing could break."""
    assert {rule for rule, _, _ in WRONG} == RULES.keys()


def test_a_report_shows_the_message_and_its_history():
    """Who reads a red verdict finds the rule, the id, and what happened to that message."""
    story = Story()
    an_end_was_overwritten(story)
    found = [violation for violation in check(story.history()) if violation.rule == 2]
    text = found[0].report()
    assert "rule 2" in text
    assert "message 1" in text
    assert '"stage": "ok"' in text, "the answer that its producer got"
    assert text.count('"type": "change"') == 4


def test_a_kept_run_is_read_again(tmp_path: Path):
    """What a kill cut off in the middle of a line is left out."""
    story = Story()
    plain(story)
    history = story.history()
    lines = "\n".join(json.dumps(line) for line in history.lines)
    (tmp_path / "history.jsonl").write_text(lines + '\n{"type": "ha', encoding="utf-8")
    rows = [row for table in history.tables.values() for row in table]
    (tmp_path / "tables.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    again = History.read(tmp_path)
    assert again.lines == history.lines
    assert again.rows == history.rows
