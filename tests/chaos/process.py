"""One process under test: `process.py DSN HOLDER FOLDER [--without sweep] [--loose-effects]`, until SIGTERM.

Its clocks come by environment, as for any process of COGO. The bus, the runtime and its settings are the
product's own; only the roles are ours. What `--without` leaves out is a planted bug.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import anyio
import msgspec
from chaos.recorder import Lines
from chaos.roles import all_roles
from psycopg.conninfo import make_conninfo

from cogo.core import telemetry
from cogo.core.listener import Listener
from cogo.core.runtime import Runtime, run
from cogo.core.settings import Secret, load

REREAD_S = 0.1


def patch_clock(file: Path) -> None:
    """Let time.time() and time_ns() be off by the seconds in this file; the monotonic clock stays right."""
    real, offset, read_at = time.time, 0.0, 0.0

    def jumped() -> float:
        nonlocal offset, read_at
        if time.monotonic() - read_at > REREAD_S:
            read_at = time.monotonic()
            offset = float(file.read_text()) if file.exists() else 0.0
        return real() + offset

    time.time = jumped
    time.time_ns = lambda: int(jumped() * 1_000_000_000)


def without_sweep() -> None:
    """A planted bug: nobody looks at the lanes when the listener comes back."""
    Listener._wake_everybody = lambda self: None  # type: ignore[method-assign]


def without_looks() -> None:
    """A planted bug: claims never look behind the watermark."""
    from cogo.core.watermark import Watermark

    Watermark.after = lambda self: self._front  # type: ignore[method-assign]


PLANTS = {"sweep": without_sweep, "looks": without_looks}


def arguments(given: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("dsn")
    parser.add_argument("holder")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without", choices=sorted(PLANTS))
    parser.add_argument("--loose-effects", action="store_true")
    parser.add_argument("--clock", type=Path)
    return parser.parse_args(given)


async def main(given: Any) -> None:
    log = Lines(given.folder / "events" / f"{given.holder}.jsonl", given.holder)
    loaded = load(flags={"holder": given.holder, "data_dir": given.folder / "home"})
    telemetry.configure(loaded.settings.log_level)
    # The holder as application name: the record then says which process made a change.
    dsn = make_conninfo(given.dsn, application_name=given.holder)
    settings = msgspec.structs.replace(loaded.settings, database_url=Secret(dsn), roles=())

    def ready(runtime: Runtime) -> None:
        log.write("process", stage="ready", holder=given.holder, pid=os.getpid(), epoch=runtime.epoch)

    await run(settings, inline=all_roles(log, loose_effects=given.loose_effects), signals=True, ready=ready)


if __name__ == "__main__":
    asked = arguments(sys.argv[1:])
    if asked.clock is not None:
        patch_clock(asked.clock)
    if asked.without is not None:
        PLANTS[asked.without]()
    anyio.run(functools.partial(main, asked), backend_options={"use_uvloop": True})
