"""Addresses of unix sockets: where a process of this data home can be probed."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

PATH_MAX = 100
"""Bytes that the address of a unix socket may have, with some to spare (Linux 108, macOS 104)."""
BACKLOG = 64


def socket_path(data_dir: Path, pid: int) -> Path:
    """The probe socket of the process with this id."""
    return data_dir / "servers" / f"{pid}.sock"


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """An address of this path that fits a unix socket: long ones go through the folder's descriptor."""
    if len(os.fsencode(path)) <= PATH_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def bind_unix(path: Path) -> socket.socket:
    """A listening unix socket that only this user may open; what a dead process left is replaced.

    Raises OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_address(path) as address:
            sock.bind(address)
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
