-- Conversations: what was asked and answered before, so that a follow-up question can be understood.
--
-- A turn is written in the transaction that ends its message, so there is one for each answer that was given,
-- however often the message was tried. cogo.retain_rest() removes turns with the messages' own retention.

CREATE TABLE cogo.chat_turns (
  tenant          text NOT NULL,
  conversation_id text NOT NULL,
  message_id      bigint NOT NULL,  -- also the order: as the questions were sent
  question        text NOT NULL,
  asked           text NOT NULL,    -- the words that the index was searched for
  answer          text NOT NULL,    -- cut, and without the numbers of its citations
  created_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant, conversation_id, message_id)
);
CREATE INDEX chat_turns_created ON cogo.chat_turns (created_at);

REVOKE ALL ON cogo.chat_turns FROM PUBLIC, anon, authenticated;
GRANT ALL ON cogo.chat_turns TO service_role;
