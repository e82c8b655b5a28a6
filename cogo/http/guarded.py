"""uvicorn's httptools protocol with what it lacks: deadlines for headers, body and slow readers, caps.

Everything here works on bytes and timers, before any application code runs, so that a client which
trickles, floods or never reads costs one socket for some seconds and nothing else.
"""

from __future__ import annotations

import asyncio
import http
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from cogo.core.errors import BadRequest, CogoError, HeadersTooLarge, Overloaded, RequestTimeout

from .problems import raw_response

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

PROBES = frozenset({"/livez", "/readyz", "/health"})


class Limits(msgspec.Struct, frozen=True):
    """Deadlines in seconds, sizes in bytes."""

    headers_s: float = 5.0
    body_s: float = 10.0
    write_s: float = 30.0
    """How long a client may leave our answer unread once its buffers are full."""
    header_bytes: int = 32 * 1024
    connections: int = 512
    spare: int = 64
    """Connections above the limit that still get probes answered, everything else 503."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `limits` is set on a subclass per server (`guarded`)."""

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._awaiting_headers = True
        self._header_bytes = 0
        self._refused = False

    # -- the connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse above the cap, serve only probes just below it, else wait for headers."""
        super().connection_made(transport)
        held = len(self.connections)
        if held > self.limits.connections + self.limits.spare:
            self._refuse(Overloaded())
        elif held > self.limits.connections:
            self.app = _only_probes(self.app)
        self._arm(self.limits.headers_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._disarm()
        self._resume_stalled()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count header bytes as they come: a name without an end is kept in memory by the parser.

        Deadlines are set only for what has not come as a whole: most requests need no timer.
        """
        if self._refused:
            return
        if self._awaiting_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._awaiting_headers:
            self._arm(self.limits.body_s)
        elif self._header_bytes > self.limits.header_bytes:
            self._refuse(HeadersTooLarge())
        elif self._header_bytes:
            self._arm(self.limits.headers_s)

    # -- the parser's callbacks

    def on_headers_complete(self) -> None:
        """Judge the exact size, then give the body its own deadline."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.header_bytes:
            self._refuse(HeadersTooLarge())
        if self._refused:
            return
        self._disarm()
        self._awaiting_headers = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Drop what follows a refusal."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here: from now on the time is the application's."""
        self._disarm()
        self._awaiting_headers = True
        self._header_bytes = 0
        if not self._refused:
            super().on_message_complete()

    # -- the client's reading

    def pause_writing(self) -> None:
        """Our answer is not being read: allow that for a while."""
        super().pause_writing()
        self._stall = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._resume_stalled()
        super().resume_writing()

    def _resume_stalled(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # -- refusing

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP with a problem."""
        self._refuse(BadRequest(msg))

    def _refuse(self, error: CogoError) -> None:
        """Answer in the application's place where the client waits for just that, and close."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self._may_answer():
            headers, body = raw_response(error)
            phrase = http.HTTPStatus(error.status).phrase
            lines = [f"HTTP/1.1 {error.status} {phrase}".encode(), *(n + b": " + v for n, v in headers)]
            self.transport.write(b"\r\n".join([*lines, b"connection: close", b"", body]))
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # the application's own answer would come after ours
            cycle.message_event.set()
        self.transport.close()
        # A client that does not read its refusal must not keep the socket.
        self._stall = self._stall or self.loop.call_later(self.limits.headers_s, self.transport.abort)

    def _may_answer(self) -> bool:
        """Whether the next bytes that the client expects are the answer to the request it is sending."""
        cycle: RequestResponseCycle | None = self.cycle
        if self._awaiting_headers or cycle is None:
            return cycle is None or cycle.response_complete
        return not cycle.response_started and not self.pipeline

    def _arm(self, seconds: float) -> None:
        """Start the deadline, unless it runs: what trickles does not move it."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._awaiting_headers and not self._may_answer():
            self._arm(self.limits.headers_s)  # the one before is being answered: that has no deadline
        elif self._awaiting_headers and not self._header_bytes:
            self.transport.close()  # nothing was asked, so nothing is answered
        else:
            self._refuse(RequestTimeout())


def guarded(limits: Limits) -> type[GuardedProtocol]:
    """The protocol class with these limits."""
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits})


def _only_probes(app: ASGI3Application) -> ASGI3Application:
    async def overloaded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await app(scope, receive, send)
            return
        headers, body = raw_response(Overloaded())
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return overloaded
