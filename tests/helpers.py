"""What tests wait with: a condition is polled until it holds or a deadline passes; nothing sleeps blindly."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

EVERY_S = 0.02


def eventually(check: Callable[[], T], timeout_s: float = 10.0, every_s: float = EVERY_S) -> T:
    """The first true value of `check()`. An AssertionError in it counts as "not yet".

    Raises AssertionError, with what came last, when `timeout_s` seconds have passed.
    """
    end = time.monotonic() + timeout_s
    while True:
        value, error = _ask(check)
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s; at the end: {error or value!r}") from error
        time.sleep(every_s)


async def eventually_async(
    check: Callable[[], T | Awaitable[T]], timeout_s: float = 10.0, every_s: float = EVERY_S
) -> T:
    """`eventually` for async tests; `check` may be a plain function or a coroutine function."""
    end = time.monotonic() + timeout_s
    while True:
        value: T | None = None
        error: AssertionError | None = None
        try:
            found = check()
            value = await found if inspect.isawaitable(found) else found
        except AssertionError as caught:
            error = caught
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s; at the end: {error or value!r}") from error
        await anyio.sleep(every_s)


def _ask(check: Callable[[], T]) -> tuple[T | None, AssertionError | None]:
    try:
        return check(), None
    except AssertionError as error:
        return None, error
