"""What changes below a folder, as batches of paths that the index should look at again.

Which files count is `scan.list_files`' to say, each time anew: so what an ignore file hides or shows again, and
what came or went with its whole folder, is noticed although no event names it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from cogo import errors

from . import scan

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

SETTLED_MS: Final = 300
"""Changes are one batch until it was quiet for so long,"""
SETTLED_MAX_MS: Final = 2_000
"""or for so long at most."""
FIRST_MS: Final = 500
"""Within so long the system says that it watches."""
MANY: Final = 400
"""More paths than this (another branch, say) are cheaper to find by one scan."""


class Batch(msgspec.Struct, frozen=True):
    """Paths that changed, came or went; None: so many that the folder is to be scanned."""

    paths: list[str] | None


class Watched:
    """A folder with the files that it had when it was looked at last, and what was touched since."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known = set(scan.list_files(root))
        self._touched: set[str] = set()
        self._changed = anyio.Event()
        self._ended = False

    def touch(self, paths: Iterable[str]) -> None:
        """Note that these paths below the root changed; a folder stands for all that is in it."""
        self._touched.update(paths)
        self._changed.set()

    def end(self) -> None:
        """No more changes come."""
        self._ended = True
        self._changed.set()

    async def batches(self) -> AsyncIterator[Batch]:
        """What changed since the last one; what changes while a batch is worked off is gathered in the next."""
        while not self._ended:
            await self._changed.wait()
            self._changed = anyio.Event()
            touched, self._touched = self._touched, set()
            found = await anyio.to_thread.run_sync(self._look, touched)
            if found:
                yield Batch(found if len(found) <= MANY else None)

    def _look(self, touched: set[str]) -> list[str]:
        before, self._known = self._known, set(scan.list_files(self.root))
        files = before | self._known
        if folders := touched - files:
            touched |= {path for path in files if not folders.isdisjoint(_folders_of(path))}
        return sorted((touched & files) | (before ^ self._known))


def _folders_of(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


@asynccontextmanager
async def watched(root: Path) -> AsyncIterator[Watched]:
    """Watch the folder while the block runs. Raises WorkFailed when the system can't watch so many folders."""
    found, stop = await anyio.to_thread.run_sync(Watched, root), anyio.Event()
    async with anyio.create_task_group() as tasks:
        await tasks.start(_follow, found, stop)
        try:
            yield found
        finally:
            stop.set()


async def _follow(found: Watched, stop: anyio.Event, *, task_status: TaskStatus[None]) -> None:
    from watchfiles import DefaultFilter, awatch  # its filter knows the swap files of editors

    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    try:
        changes = awatch(
            found.root, watch_filter=DefaultFilter(), debounce=SETTLED_MAX_MS, step=SETTLED_MS, stop_event=stop,
            rust_timeout=FIRST_MS, yield_on_timeout=True, ignore_permission_denied=True,
        )  # fmt: skip
        ready = False
        async for batch in changes:
            if not ready:  # the first answer, if only that nothing changed: from now on nothing is missed
                ready = True
                task_status.started()
            if batch:
                found.touch(Path(path).relative_to(found.root).as_posix() for _, path in batch)
    except (OSError, RuntimeError) as error:  # the library's own is a RuntimeError
        raise errors.WorkFailed(
            f"{found.root} can't be watched: {error}",
            hint="On Linux raise fs.inotify.max_user_watches, or set WATCHFILES_FORCE_POLLING=1.",
        ) from None
    finally:
        found.end()
