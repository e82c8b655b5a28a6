"""A process with one role that does nothing for a price: the lane behind decisions that are enqueued."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import serving

import cogo

INTENT = "bench"
PRICE_USD = 0.002


class Work(msgspec.Struct):
    n: int = 0


async def work(task: Work, ctx: cogo.Context) -> dict[str, int]:
    """Spends, and says which one it was."""
    held = await ctx.spend(cost_usd=PRICE_USD)
    await held.settle(cost_usd=PRICE_USD)
    return {"n": task.n}


def ready(_: Any) -> None:
    print(serving.READY, flush=True)


async def main() -> None:
    role = cogo.Role("bench", "work", handle=work, concurrency=8, intents=(INTENT,))
    await cogo.serve(roles=[role], signals=True, ready=ready)


if __name__ == "__main__":
    anyio.run(main)
