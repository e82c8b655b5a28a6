"""Ask a process of this machine over its unix socket, with the standard library alone.

`cogo healthcheck` runs every few seconds in a container: it must not import a web framework.
"""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from typing import Any

import msgspec

from .unix import short_address


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with short_address(self.path) as address:
            self.sock.connect(address)


def probe(path: Path, address: str = "/readyz", *, timeout_s: float = 3.0) -> tuple[int, Any]:
    """Status code and decoded JSON of `GET address` on the process that listens on this socket.

    Raises OSError when nobody listens or nobody answers in time.
    """
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.request("GET", address, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, msgspec.json.decode(answer.read())
    except http.client.HTTPException as exc:
        raise ConnectionError(f"{path} answered no HTTP: {exc!r}") from exc
    finally:
        connection.close()
