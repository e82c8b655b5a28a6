"""The servers of this data home, and a small HTTP client for them.

`cogo serve` writes `servers/<pid>.json` into the data home; whoever wants to talk to it looks there.
The client is http.client in a worker thread: httpx costs ten times as much at import, and the
health probe of a container runs every few seconds.
"""

from __future__ import annotations

import errno
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from cogo.core import errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from http.client import HTTPResponse
    from pathlib import Path

    from cogo.core.settings import Settings

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (where to reach what listens everywhere)
BODY_MAX = 32 * 1024 * 1024


class Server(msgspec.Struct, frozen=True):
    """A live `cogo serve` of this data home, as it describes itself."""

    pid: int
    holder: str
    roles: list[str]
    host: str | None = None
    port: int | None = None
    """None: it has no TCP port, since none of its roles brings routes."""
    started_at: datetime | None = None

    @property
    def url(self) -> str | None:
        """Its base URL as reached from this machine."""
        if self.port is None or self.host is None:
            return None
        host = ANY_ADDRESS.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class Answer(msgspec.Struct, frozen=True):
    """An HTTP answer: status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        """The body decoded from JSON. Raises Bug when it is something else."""
        try:
            return msgspec.json.decode(self.content)
        except msgspec.DecodeError as exc:
            raise errors.Bug(
                f"an answer of status {self.status} is not JSON: {self.content[:200]!r}"
            ) from exc

    def raise_for_problem(self) -> Answer:
        """Raise the CogoError that a problem+json answer stands for; return self when it is none."""
        if self.status < 400:
            return self
        problem = self.json() if "json" in self.headers.get("content-type", "") else {}
        kind = errors.CODES.get(str(problem.get("code")), errors.CogoError)
        detail = problem.get("detail") or f"the server answered with status {self.status}"
        raise kind(str(detail), hint=problem.get("hint"))


def servers(settings: Settings) -> list[Server]:
    """The live servers of the data home, newest first; files of dead processes are skipped."""
    found: list[tuple[float, Server]] = []
    folder = settings.data_dir / "servers"
    for path in folder.glob("*.json") if folder.is_dir() else ():
        server = read(path)
        if server and alive(server.pid):
            found.append((path.stat().st_mtime, server))
    return [server for _, server in sorted(found, key=lambda pair: -pair[0])]


def read(path: Path) -> Server | None:
    """The server that a file describes; None when it is gone or half written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Server, strict=False)
    except (OSError, msgspec.DecodeError):
        return None


def alive(pid: int) -> bool:
    """Whether a process of this id exists (perhaps of another user)."""
    try:
        os.kill(pid, 0)
    except OSError as exc:
        return exc.errno == errno.EPERM
    return True


def with_route(settings: Settings, role: str) -> Server | None:
    """The newest live server that serves HTTP with this role enabled."""
    return next((s for s in servers(settings) if s.url is not None and role in s.roles), None)


def database_dsn(settings: Settings) -> str:
    """DATABASE_URL, or the DSN of the running embedded server. Raises NoServer."""
    if settings.database_url is not None:
        return settings.database_url.reveal()
    from cogo.core.embedded import running_dsn

    return running_dsn(settings)


def call(
    url: str,
    method: str,
    path: str,
    *,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> Answer:
    """One request on a connection of its own; it blocks. Raises OSError when nobody answers."""
    from http.client import HTTPConnection, HTTPException
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    sent = None if body is None else msgspec.json.encode(body)
    head = {"Accept": "application/json", **(headers or {})}
    if sent is not None:
        head["Content-Type"] = "application/json"
    connection = HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_s)
    try:
        connection.request(method, path, body=sent, headers=head)
        response: HTTPResponse = connection.getresponse()
        content = response.read(BODY_MAX)
    except HTTPException as exc:
        # A server that dies in the middle of an answer is as good as one that does not answer.
        raise ConnectionResetError(f"{type(exc).__name__}: {exc}") from exc
    finally:
        connection.close()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, content)


class Client:
    """Requests to one server with a token and, for the ingress, an API key."""

    def __init__(self, url: str, *, token: str, apikey: str) -> None:
        self.url = url
        self.token = token
        self.apikey = apikey

    async def get(self, path: str, *, timeout_s: float = 30.0) -> Answer:
        """GET as the token's principal. Raises OSError and what the problem stands for."""
        return await self._call(
            "GET", path, timeout_s=timeout_s, headers={"Authorization": f"Bearer {self.token}"}
        )

    async def post_ingress(self, body: object, *, idempotency_key: str) -> Answer:
        """POST to the ingress with the API key; the same key and body give the same id."""
        return await self._call(
            "POST",
            "/functions/v1/orchestrator-chat",
            body=body,
            headers={"apikey": self.apikey, "Idempotency-Key": idempotency_key},
        )

    async def _call(self, method: str, path: str, **more: Any) -> Answer:
        from anyio import to_thread

        def run() -> Answer:
            return call(self.url, method, path, **more)

        return (await to_thread.run_sync(run, abandon_on_cancel=True)).raise_for_problem()


def client_of(settings: Settings, server: Server, tenant: str) -> Client:
    """A client with keys of this data home: a viewer's token of that tenant, and a key for the ingress.

    On the embedded database the demo's tenant is public, so the publishable key is enough, as for a
    browser; elsewhere it takes a secret key.
    """
    from cogo.core.settings import local_keys
    from cogo.http.tokens import mint_token

    assert server.url is not None
    keys = local_keys(settings)
    public = tenant in settings.public_tenants
    apikey = keys.publishable_key if public else keys.secret_key.reveal()
    return Client(server.url, token=mint_token(settings, [tenant], "viewer"), apikey=apikey)
