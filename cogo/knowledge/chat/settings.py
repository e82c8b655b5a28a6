"""`[plugins.gateway]`: which models may answer, where they are, what they cost, and how long they may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cogo import errors

if TYPE_CHECKING:
    from cogo import Assignment

OPENAI: Final = "https://api.openai.com/v1"
MILLION: Final = 1_000_000

Cost = Callable[[int, int, int], float]
"""USD for (input tokens, output tokens, how many of the input were cached)."""
_Tokens = Annotated[int, msgspec.Meta(ge=64, le=1_000_000)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=3_600)]
_Usd = Annotated[float, msgspec.Meta(ge=0)]


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """USD per million tokens."""

    input: _Usd
    output: _Usd


class ChatSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[plugins.gateway]`."""

    model: str | None = None
    """The model that answers where the assignment names none. None: answers quote."""
    models: tuple[str, ...] = ()
    """Further models that an assignment may name."""
    base_url: str = OPENAI
    """Of the server, up to where `/chat/completions` is added."""
    prices: dict[str, Price] = {}
    """For models that genai-prices doesn't know at this address; they count before it. 0 is a price, too."""
    max_output_tokens: _Tokens = 1_000
    context_tokens: _Tokens = 24_000
    """The most that a question with its spans may come to, counted as bytes: about 7,000 tokens of code."""
    history_turns: Annotated[int, msgspec.Meta(ge=0, le=50)] = 6
    """Turns of a conversation that the model sees."""
    timeout_s: _Seconds = 60.0
    """For the whole answer."""
    idle_s: _Seconds = 20.0
    """The longest silence of the server, before the first piece or between two."""


def chosen(settings: ChatSettings, assignment: Assignment | None) -> str | None:
    """The model for a request; None: the answer quotes. Raises ModelDenied for one that isn't allowed.

    An assignment without a model has no preference. Where no model is set up nothing can be asked, so none is
    denied either.
    """
    allowed = {*settings.models, *([settings.model] if settings.model else [])}
    wanted = assignment.model if assignment else None
    if wanted is None or not allowed:
        return settings.model
    if wanted not in allowed:
        raise errors.ModelDenied(
            f"{wanted!r} is not among the gateway's models {sorted(allowed)}",
            hint="Name it in `models` of [plugins.gateway], or assign one of those.",
        )
    return wanted


def cost_of(settings: ChatSettings, model: str) -> Cost | None:
    """What calls of this model cost; None when nobody knows: then it is not called, never taken for free."""
    own = settings.prices.get(model)
    if own is not None:
        return lambda given, made, _cached: (given * own.input + made * own.output) / MILLION
    try:
        from genai_prices import Usage, calc_price

        calc_price(Usage(input_tokens=1, output_tokens=1), model, provider_api_url=settings.base_url)
    except (ImportError, LookupError):
        return None

    def known(given: int, made: int, cached: int) -> float:
        usage = Usage(input_tokens=given, output_tokens=made, cache_read_tokens=cached or None)
        return float(calc_price(usage, model, provider_api_url=settings.base_url).total_price)

    return known
