"""Stands between a client and Postgres, on a unix socket, and misbehaves when a test says so."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

NOTIFICATION = b"A"
"""Type of the message by which Postgres delivers a NOTIFY."""
_ENDS = (asyncio.IncompleteReadError, ConnectionError)


class Proxy:
    """Forwards connections; `dsn` leads through it."""

    def __init__(self, dsn: str, folder: Path) -> None:
        given = conninfo_to_dict(dsn)
        self.dsn = make_conninfo(dsn, host=str(folder))
        self._target = f"{given['host']}/.s.PGSQL.{given.get('port', 5432)}"
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._open: set[StreamWriter] = set()
        self.refusing = False
        self.deaf = False
        """Swallow notifications, as a pooler in transaction mode does."""
        self.lose_answers_to = b""
        """The next statement with these bytes is executed, but its connection ends before the answer."""
        self.lost = 0
        self.refused = 0

    def freeze(self) -> None:
        """Take bytes and let none through, in either direction: a link that went dark."""
        self._flowing = asyncio.Event()

    def thaw(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        """Close every connection at once."""
        for writer in list(self._open):
            writer.transport.abort()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """The database is gone while the block lasts: connections end, new ones are refused."""
        self.refusing = True
        self.cut()
        try:
            yield
        finally:
            self.refusing = False

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        if self.refusing:
            self.refused += 1
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_unix_connection(self._target)
        ends = {writer, up_writer}
        self._open |= ends
        link = Link(self)
        forward = asyncio.ensure_future(link.forward(reader, up_writer))
        try:
            with suppress(*_ENDS):
                await link.backward(up_reader, writer)
        finally:
            self._open -= ends
            forward.cancel()
            for end in ends:
                end.transport.abort()
            await asyncio.wait([forward])

    async def flowing(self) -> None:
        await self._flowing.wait()


class Link:
    """One connection of a client through the proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._lose = False

    async def forward(self, source: StreamReader, target: StreamWriter) -> None:
        with suppress(*_ENDS):
            while data := await source.read(65_536):
                await self._proxy.flowing()
                marker = self._proxy.lose_answers_to
                if marker and marker in data:
                    self._lose, self._proxy.lose_answers_to = True, b""
                target.write(data)
                await target.drain()
        target.transport.abort()

    async def backward(self, source: StreamReader, target: StreamWriter) -> None:
        """Message by message (a byte of type, four of length), so that some can be left out."""
        held, executed = b"", False
        while True:
            head = await source.readexactly(5)
            body = await source.readexactly(int.from_bytes(head[1:]) - 4)
            await self._proxy.flowing()
            if self._proxy.deaf and head[:1] == NOTIFICATION:
                continue
            held += head + body
            executed = executed or head[:1] == b"C"
            if self._lose and head[:1] != b"Z":
                continue  # the answer is held back until it is whole
            if self._lose and executed:  # and committed; preparing a statement has executed nothing yet
                self._proxy.lost += 1
                return
            target.write(held)
            held, executed = b"", False
            await target.drain()


@asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the database of `dsn`."""
    folder = Path(tempfile.mkdtemp(prefix="cogo-proxy-"))
    proxy = Proxy(dsn, folder)
    server = await asyncio.start_unix_server(proxy.serve, folder / ".s.PGSQL.5432")
    try:
        yield proxy
    finally:
        proxy.refusing = True
        proxy.thaw()
        proxy.cut()
        server.close()
        await server.wait_closed()
        shutil.rmtree(folder)
