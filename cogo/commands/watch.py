"""`cogo watch`: a working tree whose index follows it, while the command runs or by git's hooks."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click

from cogo.commands import work
from cogo.commands.base import command, duration, emit, note, say, tenant_option
from cogo.core import errors

if TYPE_CHECKING:
    from cogo.core.bus import Bus
    from cogo.knowledge.watching import Batch

BATCH = 40
"""Files per message, as a scan sends them."""
SHOWN = 3
HOOKS = ("post-commit", "post-checkout", "post-merge", "post-rewrite")
REBASING = '[ -e "$(git rev-parse --git-path rebase-merge)" ] || '
"""A rebase commits many times; it ends with post-rewrite."""
MARK = "# Written by `cogo watch --install-hook`: the index follows this repository."


@command(example="cogo watch .\ncogo watch ~/src/project --json\ncogo watch . --install-hook")
@click.argument("path", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", help="What to call it (the folder's name).")
@click.option(
    "--install-hook", is_flag=True, help="Have git index it after commit, checkout and merge instead."
)
@tenant_option
async def watch(path: Path, *, name: str | None, install_hook: bool, tenant: str, as_json: bool) -> int:
    """Keep the index of a folder up to date as files change.

    It indexes the folder, then sends what changes to rag/embed and kg/build as `cogo index` would, once it
    was quiet for a moment; Ctrl-C ends it. With --json each batch is one line. A process that serves those
    roles must run.
    """
    import cogo

    folder = path.resolve()
    if install_hook:
        return install_hooks(folder, name, tenant, as_json=as_json)
    async with cogo.connect() as bus, anyio.create_task_group() as tasks:
        tasks.start_soon(until_told, tasks.cancel_scope)
        await work.need_lanes(bus, tuple(work.LANES.values()))
        repo = name or await work.repo_name(bus, folder, tenant)
        await Follower(bus, folder, repo, tenant, as_json=as_json).follow()
        tasks.cancel_scope.cancel()
    return 0


async def until_told(scope: anyio.CancelScope) -> None:
    """End the command at SIGINT or SIGTERM; what was sent goes on without it."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


class Follower:
    """Sends what changes below a folder, one batch after the other, and says how each ended."""

    def __init__(self, bus: Bus, folder: Path, repo: str, tenant: str, *, as_json: bool) -> None:
        self._bus = bus
        self._folder = folder
        self._repo = repo
        self._tenant = tenant
        self._as_json = as_json

    async def follow(self) -> None:
        """Index the folder, then each batch of changes. While one is worked off, the next one gathers."""
        from cogo.knowledge import watching

        async with watching.watched(self._folder) as found:  # first: nothing falls between scan and watch
            await self._work_off(watching.Batch(None))
            if not self._as_json:
                note(f"Watching {self._folder} (Ctrl-C ends it)")
            async for batch in found.batches():
                await self._work_off(batch)

    async def _work_off(self, batch: Batch) -> None:
        began, failed = time.monotonic(), None
        try:
            await work.send_all(self._bus, self._tasks(batch), tenant=self._tenant, update=lambda *_: None)
        except errors.WorkFailed as error:  # of one file, perhaps; the next change finds it again
            failed = error.detail
        elapsed_ms = round((time.monotonic() - began) * 1000, 1)
        if self._as_json:
            emit({"repo": self._repo, "paths": batch.paths, "failed": failed, "elapsed_ms": elapsed_ms})
        elif failed:
            note(f"{self._repo}: {failed}")
        else:
            say(f"{self._repo}: {described(batch)} indexed in {duration(elapsed_ms)}")

    def _tasks(self, batch: Batch) -> list[tuple[str, dict[str, Any]]]:
        whole: dict[str, Any] = {"root": str(self._folder), "repo": self._repo}
        paths = batch.paths
        if paths is None:
            return [(lane, whole) for lane in work.LANES.values()]
        tasks = [
            (work.LANES["rag"], whole | {"paths": paths[i : i + BATCH]}) for i in range(0, len(paths), BATCH)
        ]
        return [*tasks, (work.LANES["kg"], whole | {"paths": paths})]


def described(batch: Batch) -> str:
    """`a.py, b.py and 3 others`."""
    if batch.paths is None:
        return "all that changed"
    more = len(batch.paths) - SHOWN
    return ", ".join(batch.paths[:SHOWN]) + (f" and {more} others" if more > 0 else "")


# -- git's hooks ------------------------------------------------------------------------------


def install_hooks(folder: Path, name: str | None, tenant: str, *, as_json: bool) -> int:
    """Write the hooks that aren't there; of one that is somebody else's say what to add. 1 if there was any."""
    from cogo.knowledge import scan

    where = scan.git(folder, "rev-parse", "--git-path", "hooks")
    if where is None:
        raise click.UsageError(f"{folder} is no git checkout (or git is not installed).")
    hooks = folder / os.fsdecode(where.rstrip(b"\n"))
    line = hook_line(folder, name, tenant)
    written: list[str] = []
    foreign: list[str] = []
    for hook in HOOKS:
        file = hooks / hook
        # Several trees may share a folder of hooks (worktrees, core.hooksPath): what another one wrote stays, too.
        there = file.read_text("utf-8", "replace") if file.exists() else ""
        if file.is_symlink() or (there and not (MARK in there and f" {shlex.quote(str(folder))} " in there)):
            foreign.append(str(file))
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        unless = "" if hook == "post-rewrite" else REBASING
        file.write_text(f"#!/bin/sh\n{MARK}\n{unless}{line}\n", encoding="utf-8")
        file.chmod(file.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        written.append(str(file))
    if as_json:
        emit({"written": written, "left_alone": foreign, "line": line})
        return int(bool(foreign))
    for hook in written:
        say(f"{hook} written")
    for hook in foreign:
        note(
            f"{hook} is somebody else's, or another folder's, and was left alone. Add this line to it:\n  {line}"
        )
    return int(bool(foreign))


def hook_line(folder: Path, name: str | None, tenant: str) -> str:
    """Index in the background: git waits for nothing, and a failure disturbs no commit."""
    words = [
        sys.executable,
        "-m",
        "cogo",
        "index",
        str(folder),
        "--tenant",
        tenant,
        *(["--name", name] if name else []),
    ]
    return f"({shlex.join(words)} </dev/null >/dev/null 2>&1 &)"
