"""text/summarise: shorten a text."""

import msgspec

from cogo import Context, Role, hookimpl


class Summarise(msgspec.Struct):
    text: str
    max_words: int = 5


class Summary(msgspec.Struct):
    words: int
    text: str


async def summarise(task: Summarise, ctx: Context) -> Summary:
    words = task.text.split()[: task.max_words]
    return Summary(words=len(words), text=" ".join(words))


@hookimpl
def cogo_role():
    return Role("text", "summarise", handle=summarise, concurrency=8)
