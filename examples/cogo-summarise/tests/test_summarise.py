"""Proves that the role shortens a text to the words asked for, and refuses a payload without a text."""

import cogo_summarise
import pytest

from cogo import errors
from cogo.testing import run_role

pytestmark = pytest.mark.anyio


async def test_a_text_is_cut_to_five_words_unless_told_otherwise():
    role = cogo_summarise.cogo_role()
    short = await run_role(role, {"text": "one two three four five six"})
    assert short == cogo_summarise.Summary(words=5, text="one two three four five")
    shorter = await run_role(role, {"text": "one two three", "max_words": 2})
    assert shorter.text == "one two"


async def test_a_payload_without_text_does_not_reach_the_handler():
    with pytest.raises(errors.TaskInvalid, match="text"):
        await run_role(cogo_summarise.cogo_role(), {"max_words": 2})
