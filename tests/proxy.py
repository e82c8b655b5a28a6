"""Stands between a client and Postgres, on a unix socket or a TCP port, and misbehaves when a test says so."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

NOTIFICATION = b"A"
"""Type of the message by which Postgres delivers a NOTIFY."""
READY = b"Z"
_ENDS = (asyncio.IncompleteReadError, OSError)
_TRICKLE_BYTES = 16
_TRICKLE_S = 0.005


class Proxy:
    """Forwards connections; `dsn` leads through it."""

    def __init__(self, dsn: str, folder: Path | None, seed: int = 0) -> None:
        """On a unix socket in `folder`, or, without one, on the TCP port that `proxied_tcp` opens."""
        given = conninfo_to_dict(dsn)
        self.dsn = make_conninfo(dsn, host=str(folder)) if folder else dsn
        self._target = f"{given['host']}/.s.PGSQL.{given.get('port', 5432)}"
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._open: set[StreamWriter] = set()
        self._links: set[Link] = set()
        self._random = random.Random(seed)
        self.refusing = False
        self.deaf = False
        """Swallow notifications, as a pooler in transaction mode does."""
        self.lose_answers_to = b""
        """The next statement with these bytes is executed, but its connection ends before the answer."""
        self.lose_answers = 0
        """So many more connections end when the answer to what they asked last has come, and before it is
        passed on."""
        self.swallowing = False
        """A black hole: connections stay, what goes in is gone, in either direction; new ones are taken."""
        self.delay_s = 0.0
        """Up to this long, at random, before each piece that is passed on."""
        self.trickling = False
        """Pass on a few bytes at a time."""
        self.lost = 0
        self.refused = 0

    def freeze(self) -> None:
        """Take bytes and let none through, in either direction: a link that went dark."""
        if self._flowing.is_set():  # else those who wait for the old event would wait for ever
            self._flowing = asyncio.Event()

    def thaw(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        """Close every connection at once."""
        for writer in list(self._open):
            writer.transport.abort()

    def swallow(self) -> None:
        """Become a black hole, until `heal()`."""
        self.swallowing = True
        for link in self._links:
            link.mute = True

    def half_open(self) -> None:
        """Close the server's end of every connection; the clients' ends stay, and nobody tells them."""
        for link in list(self._links):
            link.mute = True
            if link.server is not None:
                link.server.transport.abort()

    def heal(self) -> None:
        """Forward as a good link does; connections that were muted meanwhile end."""
        self.refusing = self.deaf = self.swallowing = self.trickling = False
        self.lose_answers, self.lose_answers_to, self.delay_s = 0, b"", 0.0
        self.thaw()
        for link in list(self._links):
            if link.mute:
                link.client.transport.abort()

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
        link = Link(self, writer)
        self._links.add(link)
        try:
            await self._serve(link, reader)
        finally:
            self._links.discard(link)
            writer.transport.abort()

    async def _serve(self, link: Link, reader: StreamReader) -> None:
        if self.swallowing:
            link.mute = True
            await link.drained(reader)
            return
        try:
            up_reader, link.server = await asyncio.open_unix_connection(self._target)
        except OSError:  # no server there: refused, as by the server's own machine
            self.refused += 1
            return
        ends = {link.client, link.server}
        self._open |= ends
        forward = asyncio.ensure_future(link.forward(reader, link.server))
        try:
            with suppress(*_ENDS):
                await link.backward(up_reader, link.client)
            if link.mute:  # the server's end is gone; the client's end is left as it is
                await asyncio.wait([forward])
        finally:
            self._open -= ends
            forward.cancel()
            for end in ends:
                end.transport.abort()
            await asyncio.wait([forward])

    async def flowing(self) -> None:
        await self._flowing.wait()

    async def send(self, target: StreamWriter, data: bytes) -> None:
        """Pass on bytes, as slowly as the link is just now."""
        await self.flowing()
        if self.delay_s:
            await _passes(self._random.uniform(0, self.delay_s))
        step = _TRICKLE_BYTES if self.trickling else len(data)
        for start in range(0, len(data), step or 1):
            target.write(data[start : start + step])
            await target.drain()
            if self.trickling:
                await _passes(_TRICKLE_S)


async def _passes(seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await anyio.Event().wait()


class Link:
    """One connection of a client through the proxy."""

    def __init__(self, proxy: Proxy, client: StreamWriter) -> None:
        self._proxy = proxy
        self._lose = False
        self._begun = False
        self.client = client
        self.server: StreamWriter | None = None
        self.mute = False
        """What comes from either end is thrown away."""

    async def drained(self, source: StreamReader) -> None:
        with suppress(*_ENDS):
            while await source.read(65_536):
                pass

    async def forward(self, source: StreamReader, target: StreamWriter) -> None:
        with suppress(*_ENDS):
            while data := await source.read(65_536):
                await self._proxy.flowing()
                if self.mute:
                    continue
                self._mark(data)
                await self._proxy.send(target, data)
        target.transport.abort()

    def _mark(self, data: bytes) -> None:
        """Decide whether the answer to this is to be lost."""
        marker = self._proxy.lose_answers_to
        if marker and marker in data:
            self._lose, self._proxy.lose_answers_to = True, b""
        elif self._proxy.lose_answers and self._begun:
            self._lose = True
            self._proxy.lose_answers -= 1

    async def backward(self, source: StreamReader, target: StreamWriter) -> None:
        """Message by message (a byte of type, four of length), so that some can be left out."""
        held, executed = b"", False
        while True:
            head = await source.readexactly(5)
            body = await source.readexactly(int.from_bytes(head[1:]) - 4)
            await self._proxy.flowing()
            if self.mute or (self._proxy.deaf and head[:1] == NOTIFICATION):
                continue
            held += head + body
            executed = executed or head[:1] == b"C"
            if self._lose and head[:1] != READY:
                continue  # the answer is held back until it is whole
            if self._lose and executed:  # and committed; preparing a statement has executed nothing yet
                self._proxy.lost += 1
                return
            self._begun = self._begun or head[:1] == READY
            await self._proxy.send(target, held)
            held, executed = b"", False


@asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the database of `dsn`, on a unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="cogo-proxy-"))
    proxy = Proxy(dsn, folder)
    server = await asyncio.start_unix_server(proxy.serve, folder / ".s.PGSQL.5432")
    try:
        yield proxy
    finally:
        await _end(proxy, server)
        shutil.rmtree(folder)


@asynccontextmanager
async def proxied_tcp(dsn: str, seed: int = 0) -> AsyncIterator[Proxy]:
    """A proxy on a TCP port of the loopback; `seed` decides its delays."""
    proxy = Proxy(dsn, None, seed)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # Encryption is negotiated before the first message, and there is none behind the proxy.
    proxy.dsn = make_conninfo(dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
    try:
        yield proxy
    finally:
        await _end(proxy, server)


async def _end(proxy: Proxy, server: asyncio.AbstractServer) -> None:
    proxy.heal()
    proxy.refusing = True
    proxy.cut()
    server.close()
    await server.wait_closed()
