"""Work on texts that others wrote, in processes of their own that may be killed.

A parser that takes hours over a hostile text holds the interpreter's lock all the time: no thread of this process
would renew a lease. So it runs elsewhere, with a bound of CPU for each item; and two cores parse at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

import anyio
from anyio import to_process

CPU_S: Final = 60.0
"""CPU-seconds of one item. Nine megabytes of dense Python, nearly the largest file that is read, took 14 of them."""
SMALL: Final = 2_000
"""Characters of a text that no parser takes long for: half a second was the worst found (`a=>` in Java, quadratic)."""
BATCH_SIZE: Final = 400_000
"""Characters that are sent at once. Smaller batches balance better, larger ones cost less."""

T = TypeVar("T")


async def run_each(
    work: Callable[[T], bytes], items: Sequence[T], sizes: Sequence[int]
) -> list[bytes | None]:
    """What `work` makes of each item, in their order; None for an item that took more than CPU_S.

    `work` is a function of a module and items can be pickled. `sizes` are in characters: when all are small, the work is done
    in a thread of this process, which saves the start of another (0.3 s, once in five minutes).
    """
    if max(sizes, default=0) <= SMALL:
        return await anyio.to_thread.run_sync(lambda: [work(item) for item in items])
    made: list[bytes | None] = [None] * len(items)
    # `python -m` looks for modules in the current folder first, which may be the one that is read: its pickle.py would
    # run. anyio starts its workers with our environment; so whatever else this process starts is as careful.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    async with anyio.create_task_group() as tasks:
        for batch in _batches(sizes):
            tasks.start_soon(_run_batch, work, items, batch, made)
    return made


def _batches(sizes: Sequence[int]) -> Iterator[range]:
    first = taken = 0
    for at, size in enumerate(sizes):
        if taken and taken + size > BATCH_SIZE:
            yield range(first, at)
            first, taken = at, 0
        taken += size
    yield range(first, len(sizes))


async def _run_batch(
    work: Callable[[T], bytes], items: Sequence[T], batch: range, made: list[bytes | None]
) -> None:
    try:
        found = await to_process.run_sync(
            partial(_bounded, work, CPU_S), [items[at] for at in batch], cancellable=True
        )
    except anyio.BrokenWorkerProcess:
        await to_process.run_sync(os.getpid)  # raises again where no process can be started at all
        if len(batch) > 1:  # one of them was too much: which, shows when each has a process for itself
            for at in batch:
                await _run_batch(work, items, range(at, at + 1), made)
        return
    for at, each in zip(batch, found, strict=True):
        made[at] = each


def _bounded(work: Callable[[T], bytes], cpu_s: float, items: Sequence[T]) -> list[bytes]:
    """In the worker. The kernel ends the process at the signal, whatever C code is running, and orphans too."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    made = []
    try:
        for item in items:
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            made.append(work(item))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return made
