"""Names the role that blocks the event loop. One rude handler delays every role of the process.

A thread looks whether the loop's heartbeat is late; when it is, the loop's own thread is in the
middle of whatever blocks, so its stack says who.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import anyio

from . import telemetry

BEAT_S = 0.25
BLOCKED_S = 1.0
REPEAT_S = 10.0


class Watchdog:
    """`beat` runs in the loop; `watching` runs the thread beside it."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules
        """Role name by the module (or package) that its handler is defined in."""
        self._beat_at = time.monotonic()
        self._loop_thread = threading.get_ident()
        self._stop = threading.Event()
        self._told_at = 0.0
        self.lag_ms = 0.0
        """How late the loop's last wakeup was."""

    async def beat(self) -> None:
        """Note that the loop turns, for ever."""
        while True:
            due = time.monotonic() + BEAT_S
            await anyio.sleep(BEAT_S)
            self._beat_at = time.monotonic()
            self.lag_ms = max(0.0, self._beat_at - due) * 1000

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The thread, for as long as the block lasts."""
        self._beat_at = time.monotonic()
        thread = threading.Thread(target=self._watch, name="cogo-watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(BLOCKED_S / 2):
            late_s = time.monotonic() - self._beat_at - BEAT_S
            if late_s > BLOCKED_S and time.monotonic() - self._told_at > REPEAT_S:
                self._told_at = time.monotonic()
                stacks = sys._current_frames()  # noqa: SLF001 (the only way to see another thread's stack)
                role, place = self._culprit(stacks.get(self._loop_thread))
                hint = "make the handler a plain def (it then runs in a thread), or await"
                telemetry.log.warning(
                    telemetry.line("loop.blocked", role=role, at=place, late_ms=late_s * 1000, hint=hint)
                )

    def _culprit(self, frame: FrameType | None) -> tuple[str | None, str]:
        """The role whose module stands on the stack, innermost first, and where it stands."""
        place = "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        while frame is not None:
            name = frame.f_globals.get("__name__", "")
            for module, role in self._modules.items():
                if name == module or name.startswith(f"{module}."):
                    return role, f"{frame.f_code.co_filename}:{frame.f_lineno}"
            frame = frame.f_back
        return None, place
