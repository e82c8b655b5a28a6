"""Proves the dashboard in a real browser: it signs in, breaks no policy, keeps itself fresh, and can be paused."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from helpers import eventually_async
from http_hands import serving

from cogo.http.tokens import mint_token

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets"),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium here"),
]

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--remote-debugging-port=0")  # fmt: skip
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", e => violations.push(e.violatedDirective + " " + e.blockedURI));
window.addEventListener("error", e => violations.push("error " + e.message));
"""


class Tab:
    """One tab of the browser, by the DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.numbers = itertools.count(1)

    async def do(self, method: str, **params: Any) -> Any:
        """Send a command and give its result; events in between are passed over."""
        number = next(self.numbers)
        await self.socket.send(
            msgspec.json.encode({"id": number, "method": method, "params": params}).decode()
        )
        with anyio.fail_after(20):
            while True:
                answer = msgspec.json.decode(await self.socket.recv())
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    return answer["result"]

    async def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = await self.do(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def open(self, url: str) -> None:
        """Go there and wait until it has been read."""
        await self.do("Page.navigate", url=url)

        async def read() -> bool:
            return await self.js("document.readyState === 'complete' && location.href !== 'about:blank'")

        assert await eventually_async(read, 15)


@asynccontextmanager
async def browser(home: Path) -> AsyncIterator[Tab]:
    from websockets.asyncio.client import connect

    command = ["chromium", *FLAGS, f"--user-data-dir={home}", "about:blank"]
    running = await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = home / "DevToolsActivePort"
        assert await eventually_async(lambda: port_file.exists() and port_file.read_text().count("\n"), 20)
        port = port_file.read_text().split("\n")[0]
        async with httpx.AsyncClient() as client:
            pages = (await client.get(f"http://127.0.0.1:{port}/json/list")).json()
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        async with connect(address, max_size=None) as socket:
            tab = Tab(socket)
            await tab.do("Page.enable")
            await tab.do("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
            yield tab
    finally:
        running.terminate()
        await running.aclose()


COUNT = "document.querySelector('#counts .queued b').textContent"


async def test_an_operator_signs_in_and_watches(dsn: str, tmp_path: Path):
    """From the printed address to a page that follows the bus, pauses, and works by keyboard."""
    async with (
        serving(dsn, tmp_path / "home", ["ingress", "metrics"]) as served,
        browser(tmp_path / "tab") as tab,
    ):
        bus = served.runtime.bus
        id = await bus.enqueue("work/do/0@acme", {"evil": "<script>window.hacked = 1</script>"})
        token = mint_token(served.tokens, ["acme"], "viewer")

        await tab.open(f"{served.url}/dashboard/local")
        assert await tab.js("document.querySelector('h1').textContent") == "Sign in"
        await tab.js(f"document.querySelector('[name=token]').value = '{token}'")
        await tab.js("document.querySelector('form').requestSubmit()")

        async def inside() -> bool:
            return await tab.js("location.pathname + location.search") == "/dashboard/local"

        assert await eventually_async(inside)
        assert await eventually_async(lambda: tab.js(f"{COUNT} === '1'"))
        assert await tab.js("document.cookie") == "", "no script can read the session"

        await bus.enqueue("work/do/0@acme", {})
        assert await eventually_async(lambda: tab.js(f"{COUNT} === '2'"), 15), "the page follows by itself"

        await tab.js("document.querySelector('#live').focus()")
        await tab.do("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r")
        assert await tab.js("document.querySelector('#live').getAttribute('aria-pressed')") == "false"
        assert await tab.js("violations") == []

        await tab.open(f"{served.url}/dashboard/messages/{id}")
        assert await tab.js("document.querySelector('#live').textContent") == "Paused", "it is remembered"
        assert "<script>" in await tab.js("document.querySelector('#payload pre').textContent")
        assert await tab.js("window.hacked") is None
        assert await tab.js("violations") == []
        await tab.js(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 2\">')"
        )
        assert await eventually_async(lambda: tab.js("violations.length > 0")), "the policy is in force"
        assert await tab.js("window.hacked") is None

        await tab.do(
            "Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=True
        )
        for page in ("local", "messages", f"messages/{id}"):
            await tab.open(f"{served.url}/dashboard/{page}")
            wide = await tab.js("document.documentElement.scrollWidth")
            assert wide <= 360, f"{page} scrolls sideways on a phone: {wide}"
