"""Proves that a slow, huge or silent client is let go at its deadline, on real sockets."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from anyio.abc import SocketStream

from cogo.http.guarded import Limits
from cogo.http.server import Server, _config, bind_tcp
from cogo.http.unix import bind_unix, short_address

FAST = Limits(headers_s=0.3, body_s=0.5, write_s=0.4, header_bytes=2048, connections=4, spare=2)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of body bytes; /big with 64 MB, piece by piece."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/big":
        for _ in range(1024):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops: their transports differ in how they close."""
    return "asyncio", {"use_uvloop": request.param}


@contextlib.asynccontextmanager
async def serving(app: Any = echo, limits: Limits = FAST) -> AsyncIterator[tuple[int, Server]]:
    stop = anyio.Event()
    server = Server(_config(app, 2, limits), stop)
    with contextlib.closing(bind_tcp("127.0.0.1", 0)) as sock:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [sock])
            yield sock.getsockname()[1], server
            stop.set()


async def talk(port: int, *parts: bytes) -> SocketStream:
    stream = await anyio.connect_tcp("127.0.0.1", port)
    for part in parts:
        await stream.send(part)
    return stream


async def rest(stream: SocketStream) -> bytes:
    """All that comes until the server closes."""
    got = b""
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            got += await stream.receive()
    await stream.aclose()
    return got


def code(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    return int(head.split()[1]), msgspec.json.decode(body)["code"]


async def test_a_plain_request_and_keep_alive_work():
    """Two requests on one connection, a chunked body among them."""
    async with serving() as (port, _):
        stream = await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in await stream.receive()
        await stream.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n")
        await stream.send(b"Connection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert (await rest(stream)).endswith(b"1\r\n3\r\n0\r\n\r\n")


async def test_answers_do_not_wait_for_acknowledgements():
    """Nagle's algorithm is off on every connection: with it a small answer took 40 ms more."""
    async with serving() as (port, server):
        stream = await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in await stream.receive()
        (connection,) = server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await stream.aclose()


@pytest.mark.parametrize(
    ("parts", "least", "most"),
    [
        ((), 0.25, 2),
        ((b"GET / HT",), 0.25, 2),
        ((b"\r\n",), 0.25, 2),
        ((b"GET / HTTP/1.1\r\nHost: x\r\nX: ",), 0.25, 2),
        ((b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",), 0.45, 2),
        ((b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",), 0.45, 2),
    ],
    ids=["silent", "half a line", "blank line", "half a header", "half a body", "half a chunked body"],
)
async def test_a_client_that_stops_sending_is_closed(parts: tuple[bytes, ...], least: float, most: float):
    """It gets 408 if it had begun to ask, and the socket is closed at the deadline, not later."""
    async with serving() as (port, server):
        started = time.monotonic()
        answer = await rest(await talk(port, *parts))
        assert least < time.monotonic() - started < most
        assert not answer if not parts else code(answer) == (408, "request_timeout")
        assert not server.server_state.connections


async def test_a_blank_line_after_a_request_does_not_end_its_answer():
    """A pipelined beginning is not timed while the request before it is at work (a long poll, say)."""
    go = anyio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await echo(scope, receive, send)

    async with serving(slow) as (port, _):
        stream = await talk(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na\r\n")
        with anyio.move_on_after(3 * FAST.headers_s) as early:
            await stream.receive()
        assert early.cancelled_caught, "nothing came, and the connection is open"
        go.set()
        assert b"200 OK" in await rest(stream)


async def test_a_client_that_trickles_headers_is_closed():
    """A byte now and then does not move the deadline."""
    async with serving() as (port, _):
        stream = await talk(port, b"GET / HTTP/1.1\r\n")
        sent = 0
        with contextlib.suppress(anyio.BrokenResourceError), anyio.fail_after(3):
            while True:
                await stream.send(b"X: y\r\n")
                sent += 1
                with anyio.move_on_after(0.05):
                    assert code(await stream.receive()) == (408, "request_timeout")
                    break
        assert 2 <= sent < 20
        await stream.aclose()


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"y" * 4096 + b"\r\n\r\n",
        b"X: " + b"y" * 4096,
        b"".join(b"X%d: y\r\n" % n for n in range(500)) + b"\r\n",
    ],
    ids=["one large header", "one without an end", "many small ones"],
)
async def test_large_headers_are_refused(head: bytes):
    """Over the cap: 431, whether or not they ever end."""
    async with serving() as (port, _):
        answer = await rest(await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\n" + head))
        assert code(answer) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "noise", [b"\x00\x01\x02\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"]
)
async def test_what_is_not_http_is_a_problem(noise: bytes):
    """Bytes that no parser takes get 400 problem+json."""
    async with serving() as (port, _):
        assert code(await rest(await talk(port, noise))) == (400, "bad_request")


async def test_a_client_that_never_reads_is_dropped():
    """An answer that nobody reads is given up after the write deadline."""
    async with serving() as (port, server):
        stream = await talk(port, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        first = await stream.receive(1)
        assert first
        with anyio.fail_after(5):
            while server.server_state.connections:
                await anyio.lowlevel.checkpoint()
        await stream.aclose()


async def test_probes_are_answered_above_the_connection_limit():
    """Idle sockets can't keep a probe out: above the limit only probes pass, far above nothing does."""
    async with contextlib.AsyncExitStack() as stack:
        port, _ = await stack.enter_async_context(serving(limits=msgspec.structs.replace(FAST, headers_s=5)))
        for _ in range(4):
            await stack.enter_async_context(await talk(port))
        asked = [
            await talk(port, b"GET %s HTTP/1.1\r\nConnection: close\r\n\r\n" % p) for p in (b"/", b"/livez")
        ]
        plain, probe = [await rest(stream) for stream in asked]
        assert code(plain) == (503, "overloaded")
        assert b"retry-after: 2" in plain
        assert b"200 OK" in probe
        for _ in range(2):
            await stack.enter_async_context(await talk(port))
        assert code(await rest(await talk(port, b"GET /livez HTTP/1.1\r\n\r\n"))) == (503, "overloaded")


async def test_a_running_request_ends_before_the_server_does():
    """Stop lets the request in progress answer; the idle connection is closed at once."""
    inside, go = anyio.Event(), anyio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        inside.set()
        await go.wait()
        await echo(scope, receive, send)

    stop = anyio.Event()
    server = Server(_config(slow, 5, FAST), stop)
    with contextlib.closing(bind_tcp("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [sock])
            stream = await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await inside.wait()
            stop.set()
            with pytest.raises(OSError, match="connect"):  # noqa: PT012 (until the listener is closed)
                while True:
                    await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
            go.set()
            assert b"200 OK" in await rest(stream)


async def test_a_unix_socket_with_a_long_path_serves(tmp_path: Any):
    """A data home deeper than a socket address can say is reached through its descriptor."""
    folder = tmp_path / ("d" * 120)
    sock = bind_unix(folder / "1.sock")
    assert (folder / "1.sock").stat().st_mode & 0o777 == 0o600
    stop = anyio.Event()
    server = Server(_config(echo, 2, FAST), stop)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [sock])
        with short_address(folder / "1.sock") as address:
            stream = await anyio.connect_unix(address)
        await stream.send(b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in await stream.receive()
        await stream.aclose()
        stop.set()
