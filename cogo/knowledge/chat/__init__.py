"""Answers by a language model, from what the search found.

`settings` says which models and at what price, `prompt` packs the spans into a question, `client` asks the
server, `citations` checks what came back, `writing` does all of it within a request's budget and time to live,
`turns` keeps conversations. Whatever fails, there is an answer: the one that quotes.
"""

from __future__ import annotations

from .client import attached
from .settings import ChatSettings, chosen
from .turns import Turn, history, remember
from .writing import Draft, write

__all__ = ["ChatSettings", "Draft", "Turn", "attached", "chosen", "history", "remember", "write"]
