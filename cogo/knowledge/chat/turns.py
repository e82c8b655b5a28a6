"""Conversations: the turns that came before a question. A tenant's own, and bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from cogo import Database, Transaction

KEPT: Final = 50
"""Turns of one conversation; older ones go when a new one comes."""
QUESTION_MAX: Final = 2_000
ANSWER_MAX: Final = 2_000

HISTORY = """
SELECT question, asked, answer FROM cogo.chat_turns
WHERE tenant = %s AND conversation_id = %s AND message_id < %s ORDER BY message_id DESC LIMIT %s
"""
REMEMBER = """
INSERT INTO cogo.chat_turns (tenant, conversation_id, message_id, question, asked, answer)
VALUES (%s, %s, %s, %s, %s, %s)
"""
FORGET = """
DELETE FROM cogo.chat_turns WHERE tenant = %(tenant)s AND conversation_id = %(id)s AND message_id <= (
  SELECT message_id FROM cogo.chat_turns WHERE tenant = %(tenant)s AND conversation_id = %(id)s
  ORDER BY message_id DESC OFFSET %(kept)s LIMIT 1)
"""


class Turn(msgspec.Struct, frozen=True):
    """A question and its answer. `asked` are the words that the index was searched for."""

    question: str
    asked: str
    answer: str


async def history(db: Database, tenant: str, conversation: str, before: int, limit: int) -> list[Turn]:
    """The last turns of questions that were sent before this message, oldest first."""
    rows = await db.fetch(HISTORY, (tenant, conversation, before, limit))
    return [Turn(**row) for row in reversed(rows)]


async def remember(tx: Transaction, tenant: str, conversation: str, message_id: int, turn: Turn) -> None:
    """Write a turn in the transaction that ends its message: a message that is tried again has none yet."""
    turn = Turn(turn.question[:QUESTION_MAX], turn.asked[:QUESTION_MAX], turn.answer[:ANSWER_MAX])
    await tx.execute(REMEMBER, (tenant, conversation, message_id, turn.question, turn.asked, turn.answer))
    await tx.execute(FORGET, {"tenant": tenant, "id": conversation, "kept": KEPT})
