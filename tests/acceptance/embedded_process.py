"""One process on an embedded Postgres, for tests that kill processes: `embedded_process.py DATA_DIR [ACCOUNT]`.

It prints `ready` when the server accepts connections, then watches until SIGTERM. With ACCOUNT (as
root) it first becomes that account, after its imports: the account may not be able to read them.
"""

from __future__ import annotations

import os
import pwd
import signal
import sys

import anyio
import platformdirs  # noqa: F401 (imported late by settings)
from anyio._backends import _asyncio  # noqa: F401 (imported late by anyio)

from cogo.core.embedded import own_or_share
from cogo.core.settings import load


def become(account: str) -> None:
    found = pwd.getpwnam(account)
    os.setgroups([])
    os.setgid(found.pw_gid)
    os.setuid(found.pw_uid)
    os.chdir("/")


async def main(data_dir: str) -> None:
    settings = load(environ={}, flags={"data_dir": data_dir}).settings
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with own_or_share(settings) as embedded, anyio.create_task_group() as group:
            group.start_soon(embedded.watch)
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            async for _ in signals:
                group.cancel_scope.cancel()
                break


if __name__ == "__main__":
    if len(sys.argv) > 2:
        become(sys.argv[2])
    anyio.run(main, sys.argv[1])
