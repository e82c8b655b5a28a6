"""One answer by a model, within the request's budget and time to live; else the one that quotes, and why.

Before the call the most that it can cost is drawn from the budget: what is not drawn can't be spent. After it
the rest goes back. A process that dies in between leaves all of it as spent: too little money is left then, never
too much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from cogo import errors

from .. import answers
from . import citations, prompt
from .client import Endpoint, Failed, Reply, opened
from .settings import ChatSettings, Cost, cost_of
from .turns import Turn

if TYPE_CHECKING:
    from cogo import Context, Reservation

SPARE_S: Final = 1.0
"""Of the request's time, for what comes after the model."""
LEAST_S: Final = 1.0
"""A model that has less time is not asked."""
PATIENCE_S: Final = 10.0
"""A server that asks for a longer pause is not waited for: a person waits."""
LEAST_OUTPUT: Final = 64
"""Tokens; an answer that must be shorter is not asked for."""
DRAWS: Final = 3
"""Another hop of the same request may draw in between; then it is tried again with what is left."""


class Draft(msgspec.Struct, frozen=True):
    """What the model gets: a question, what the index has for it, the answer that quotes, what was said before."""

    question: str
    found: answers.Found
    quoted: answers.Answer
    turns: Sequence[Turn] = ()


@dataclass(frozen=True)
class _Call:
    """A call that is paid for."""

    messages: prompt.Messages
    sources: list[prompt.Source]
    given: int
    """Input tokens, at most."""
    made: int
    """Output tokens, at most."""
    reservation: Reservation
    cost: Cost


class _Voice:
    """Passes pieces on to whoever listens. NOT FOUND, while it may become that, is held back."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._held = ""
        self.said = ""

    async def say(self, text: str) -> None:
        self._held += text
        if prompt.NOT_FOUND.startswith((self.said + self._held).strip()):
            return
        # A former attempt may have said something: a listener starts anew.
        anew = {"replace": True} if self._ctx.attempt > 1 and not self.said else {}
        await self._ctx.progress({"text": self._held, **anew}, kind="answer")
        self.said += self._held
        self._held = ""


async def write(ctx: Context, settings: ChatSettings, model: str, draft: Draft) -> answers.Answer:
    """The answer by the model, or the one that quotes with the reason in `degraded`.

    Streams the pieces by ctx.progress, kind `answer`; the text that counts follows with `replace` when it is not
    what was streamed. Raises ModelDenied, ClaimLost.
    """
    voice = _Voice(ctx)
    answer = draft.quoted
    if draft.found.enough:
        answer = await _within_limits(ctx, settings, model, draft, voice)
        usage = answer.usage
        ctx.event(
            "chat_answered", model=model, mode=answer.mode, degraded=answer.degraded, cost_usd=answer.cost_usd,
            input_tokens=usage.input_tokens if usage else 0, output_tokens=usage.output_tokens if usage else 0,
            citations_removed=answer.citations_removed,
        )  # fmt: skip
    if voice.said.strip() != answer.answer:
        anew = {"replace": True} if voice.said or ctx.attempt > 1 else {}
        await ctx.progress({"text": answer.answer, **anew}, kind="answer")
    return answer


async def _within_limits(
    ctx: Context, settings: ChatSettings, model: str, draft: Draft, voice: _Voice
) -> answers.Answer:
    degraded = partial(msgspec.structs.replace, draft.quoted, model=model)
    cost = cost_of(settings, model)
    if cost is None:
        ctx.log.warning("chat.degraded id=%s price_unknown: nobody knows what %s costs at %s; set it in `prices`"
                        " of [plugins.gateway]", ctx.message_id, model, settings.base_url)  # fmt: skip
        return degraded(degraded="price_unknown")
    time_s = min(settings.timeout_s, _left_s(ctx))
    if time_s < LEAST_S:
        return degraded(degraded="ttl_short")
    known = await answers.facts(ctx.db, ctx.key.tenant, draft.found.hits)
    lines = [line for fact in known.values() for line in fact.citations]
    call = await _paid(ctx, settings, model, draft, prompt.sources(draft.found.hits, lines), cost)
    if isinstance(call, str):
        return degraded(degraded=call)
    reply: Reply | Failed | None = None
    with anyio.move_on_after(time_s):
        async with opened(ctx.db, settings) as endpoint:
            reply = await _asked(endpoint, model, call, voice, time_s)
    if reply is None:
        over = "ttl_short" if time_s < settings.timeout_s else "model_unavailable"
        reply = Failed(over, f"the answer was not finished within {time_s:.1f} s")
    usage, cost_usd = await _settled(call, reply)
    spent = {"usage": usage, "cost_usd": cost_usd}
    if isinstance(reply, Failed):
        ctx.log.warning("chat.degraded id=%s model=%s %s", ctx.message_id, model, reply)
        return degraded(degraded=reply.code, **spent)
    return await anyio.to_thread.run_sync(_checked, call, reply, partial(degraded, **spent))


def _checked(call: _Call, reply: Reply, made: Callable[..., answers.Answer]) -> answers.Answer:
    """The model's answer if it holds: not without a citation."""
    checked = citations.check(reply.text, call.sources)
    if checked.citations:
        return made(
            mode="model", answer=checked.text, citations=checked.citations, citations_removed=checked.removed
        )
    if reply.text.strip().strip('."`*').upper() == prompt.NOT_FOUND:
        return made(mode="model", found=False, answer=answers.NOT_FOUND, citations=[])
    return made(degraded="uncited", citations_removed=checked.removed)


def _left_s(ctx: Context) -> float:
    """Seconds of this attempt that a model may use: by the database's clock, from which both were derived."""
    ends = [end for end in (ctx.deadline, ctx.expires) if end is not None]
    return min(ends) - time.monotonic() - SPARE_S if ends else float("inf")


# -- the call -----------------------------------------------------------------------------------


async def _asked(endpoint: Endpoint, model: str, call: _Call, voice: _Voice, time_s: float) -> Reply | Failed:
    """Ask, and once more when that may help and there is time."""
    ends = time.monotonic() + time_s
    for again in (True, False):
        try:
            return await endpoint.write(model, call.messages, call.made, voice.say)
        except Failed as failed:
            wait_s = failed.again_s
            patience_s = min(PATIENCE_S, ends - time.monotonic() - LEAST_S)
            if not again or wait_s is None or wait_s > patience_s:
                return failed
        await anyio.sleep(wait_s)
    raise AssertionError


async def _settled(call: _Call, reply: Reply | Failed) -> tuple[answers.Usage | None, float]:
    """Give back what was not used. A count that is missing or can't be true is taken as the most it can be."""
    if isinstance(reply, Failed) and reply.free:
        await call.reservation.settle()
        return None, 0.0
    counted = None if isinstance(reply, Failed) else reply.counted
    if (
        counted
        and 0 < counted[0] <= call.given
        and 0 <= counted[2] <= counted[0]
        and 0 < counted[1] <= call.made
    ):
        cost_usd = min(call.cost(*counted), call.reservation.cost_usd)
        usage = answers.Usage(counted[0], counted[1])
    else:
        cost_usd, usage = call.reservation.cost_usd, answers.Usage(call.given, call.made)
    await call.reservation.settle(cost_usd=cost_usd, tokens=usage.input_tokens + usage.output_tokens)
    return usage, cost_usd


# -- the budget ---------------------------------------------------------------------------------


async def _paid(
    ctx: Context, settings: ChatSettings, model: str, draft: Draft, found: list[prompt.Source], cost: Cost
) -> _Call | str:
    """Draw the most that the call can cost: shorter answers first, then fewer sources, else a code that says why."""
    budget = ctx.assignment.budget if ctx.assignment else None
    left_usd: float | None = budget.maxCostUsd if budget else None
    left_tokens: int | None = budget.maxTokens if budget else None
    if left_usd == 0 or left_tokens == 0:
        return "budget_exhausted"  # whoever gives nothing wants no model, not even one that costs nothing
    messages, kept = prompt.packed(draft.question, found, draft.turns, settings.context_tokens)
    if not kept:
        return "context_short"
    for _ in range(DRAWS):
        made = 0
        while kept:
            given = prompt.at_most(messages)
            if made := _output(settings.max_output_tokens, given, left_usd, left_tokens, cost):
                break
            messages, kept = prompt.packed(draft.question, kept[:-1], draft.turns, settings.context_tokens)
        if not kept:
            break
        try:
            drawn = await ctx.spend(cost_usd=cost(given, made, 0), tokens=given + made, model=model)
        except errors.BudgetExceeded as short:
            left = short.extra
            left_usd = None if left["left_cost_usd"] is None else float(left["left_cost_usd"])
            left_tokens = left["left_tokens"]
        else:
            return _Call(messages, kept, given, made, drawn, cost)
    return "budget_exhausted"


def _output(most: int, given: int, left_usd: float | None, left_tokens: int | None, cost: Cost) -> int:
    """Output tokens that what is left allows after the input; 0 when they are too few for an answer."""
    made = most if left_tokens is None else min(most, left_tokens - given)
    if made > 0 and left_usd is not None and (whole := cost(given, made, 0)) > left_usd:
        base = cost(given, 0, 0)
        made = int(made * (left_usd - base) / (whole - base)) - 1 if whole > base else 0
    return made if made >= min(LEAST_OUTPUT, most) else 0
