"""The dashboard in a browser: each page that is opened is one ``corral top`` on this machine, shown by textual-serve.

Whoever reaches such a page acts with the rights of the person who started it, so the address is a secret: everything
is served below a random path, and any process of this host that merely finds the port gets nothing. Requests with
another host's name (DNS rebinding) or from another site's page are refused.
"""

from __future__ import annotations

import asyncio
import html
import ipaddress
import secrets
import shlex
import signal
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, web
from aiohttp.typedefs import Handler
from textual_serve.app_service import AppService
from textual_serve.server import Server, to_int

MAX_PAGES: Final = 8  # open at once: each is a process of about 70 MB
MAX_CELLS: Final = 1000  # of a page, each way: what is larger is no screen
PATIENCE: Final = 3.0  # seconds for a page's process to end by itself
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address is the secret
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # nobody frames it to have a user click "kill"
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "font-src 'self' data:; img-src 'self' data: blob:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
}
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>corral top</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{static}/css/xterm.css">
<style>
@font-face {{ font-family: "Roboto Mono"; src: url("{static}/fonts/RobotoMono-VariableFont_wght.ttf"); }}
body {{ background: #121212; color: #e0e0e0; font: 16px "Roboto Mono", monospace; margin: 0; }}
.textual-terminal {{ position: absolute; inset: 0; }}
.ended {{ display: none; position: absolute; inset: 0; z-index: 10; background: #121212; padding: 4em; }}
body.-closed .ended {{ display: block; }}
.ended a {{ color: #7fb3ff; }}
</style>
<script src="{static}/js/textual.js"></script>
</head>
<body>
<div class="ended">The dashboard has ended. <a href="{again}">Open it again</a></div>
<div id="terminal" class="textual-terminal" data-session-websocket-url="{socket}" data-font-size="{size}"></div>
</body>
</html>
"""


class WebError(Exception):
    """The dashboard cannot be served: the address, the cause and the remedy."""


class WebDashboard(Server):
    """``command``: the dashboard's own command line, run anew for each page. ``public``: the address that browsers use
    (a proxy's), where it differs from the one that is listened on. ``said``: where the address is told."""

    def __init__(
        self, command: Sequence[str], *, host: str, port: int, public: str = "", said: Callable[[str], None] = print
    ) -> None:
        self._listening = _listen(host, port)
        bound = self._listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.origin = public.rstrip("/") or f"http://{shown}:{bound}"
        self.secret = secrets.token_urlsafe(24)
        super().__init__(f"exec {shlex.join(command)}", host, bound, "corral top", public_url=self.origin)
        self._hosts = {urlsplit(self.origin).netloc, *(f"{name}:{bound}" for name in _names_of(host))}
        self._origins = {self.origin, *(f"http://{name}" for name in self._hosts)}
        self._said = said
        self.open_pages = 0
        self.all_closed = asyncio.Event()
        self.all_closed.set()
        self._browsers: set[web.WebSocketResponse] = set()

    @property
    def address(self) -> str:
        return f"{self.origin}/{self.secret}/"

    async def serve_forever(self, ready: asyncio.Event | None = None) -> None:
        """Until SIGINT or SIGTERM, or until cancelled; every page's process has ended then."""
        runner = web.AppRunner(self.application(), shutdown_timeout=2.0, access_log=None)
        await runner.setup()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        try:
            await web.SockSite(runner, self._listening).start()
            self._said(self.address)
            if ready is not None:
                ready.set()
            await stop.wait()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            await runner.cleanup()
            self.close()

    def close(self) -> None:
        """Gives the port back, where it was never served."""
        self._listening.close()

    def application(self) -> web.Application:
        pages = web.Application()
        pages.add_routes(
            [
                web.get("/", self.page, name="index"),
                web.get("/ws", self.handle_websocket, name="websocket"),
                web.static("/static", self.statics_path, name="static"),
            ]
        )
        whole = web.Application(middlewares=[self._guarded])
        # The page's script asks for downloads at the root; their keys are random, and good for once.
        whole.add_routes([web.get("/download/{key}", self.handle_download)])
        whole.add_subapp(f"/{self.secret}", pages)
        whole.on_shutdown.append(self._close_pages)
        return whole

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.host not in self._hosts:
            return _refused(HTTPStatus.MISDIRECTED_REQUEST, f"this is {self.origin}, not {request.host}")
        if request.headers.get("Origin", self.origin) not in self._origins:
            return _refused(HTTPStatus.FORBIDDEN, "a page of another site asked")
        try:
            response = await handler(request)
        except web.HTTPException as err:  # aiohttp answers with these
            return _refused(HTTPStatus(err.status), err.reason)
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    async def page(self, request: web.Request) -> web.Response:
        base = f"{self.origin}/{self.secret}"
        values = {
            "static": f"{base}/static",
            "socket": f"ws{base.removeprefix('http')}/ws",
            "again": f"{base}/",
            "size": str(min(40, max(8, to_int(request.query.get("fontsize", ""), 16)))),
        }
        text = _PAGE.format(**{name: html.escape(value) for name, value in values.items()})
        return web.Response(text=text, content_type="text/html")

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        if self.open_pages >= MAX_PAGES:
            raise web.HTTPServiceUnavailable(reason=f"{MAX_PAGES} pages are open, which is the most; close one")
        self.open_pages += 1
        self.all_closed.clear()
        try:
            return await self._show(request)
        finally:
            self.open_pages -= 1
            if not self.open_pages:
                self.all_closed.set()

    async def _show(self, request: web.Request) -> web.WebSocketResponse:
        width, height = (
            min(MAX_CELLS, max(1, to_int(request.query.get(name, ""), usual)))
            for name, usual in (("width", 80), ("height", 24))
        )
        browser = web.WebSocketResponse(heartbeat=15.0, max_msg_size=1 << 20)
        await browser.prepare(request)
        page = _Page(
            self.command,
            write_bytes=browser.send_bytes,
            write_str=browser.send_str,
            close=lambda: _hang_up(browser),
            download_manager=self.download_manager,
        )
        self._browsers.add(browser)
        try:
            await page.start(width, height)
            await self._process_messages(browser, page)
        except (ValueError, TypeError, KeyError, IndexError, AssertionError):
            # textual-serve takes what its own script sends; another sender's nonsense ends that sender's page
            await browser.close(code=WSCloseCode.UNSUPPORTED_DATA)
        finally:
            self._browsers.discard(browser)
            await page.stop()
        return browser

    async def _close_pages(self, _: web.Application) -> None:
        for browser in tuple(self._browsers):
            await browser.close(code=WSCloseCode.GOING_AWAY)
        await self.all_closed.wait()


class _Page(AppService):
    """One dashboard and its process, which never outlives the page."""

    async def stop(self) -> None:
        process = self._process
        if process is None:
            return
        # not asyncio.timeout: AppService swallows the cancellation
        timer = asyncio.get_running_loop().call_later(PATIENCE, process.send_signal, signal.SIGKILL)
        try:
            await super().stop()
            await process.communicate()
        finally:
            timer.cancel()


async def _hang_up(browser: web.WebSocketResponse) -> None:
    await browser.close()


def _refused(status: HTTPStatus, why: str) -> web.Response:
    return web.Response(status=status, text=f"{status.value} {why}\n", headers=_HEADERS)


def _listen(host: str, port: int) -> socket.socket:
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listening = socket.socket(family, kind, protocol)
    except OSError as err:
        raise WebError(f"{host}:{port}: {err.strerror or err}; give an address of this machine") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(64)
    except OSError as err:
        listening.close()
        raise WebError(f"{host}:{port}: {err.strerror}; choose another port, or 0 for any that is free") from None
    return listening


def _names_of(host: str) -> set[str]:
    """What a browser may call this machine in its Host header."""
    if is_loopback(host):
        return {"localhost", "127.0.0.1", "[::1]"}
    return {f"[{host}]" if ":" in host else host}


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(command: Sequence[str], *, host: str, port: int, public: str = "") -> int:
    """Serves until SIGINT or SIGTERM. Raises WebError where the address cannot be had."""
    dashboard = WebDashboard(command, host=host, port=port, public=public)
    asyncio.run(dashboard.serve_forever())
    return 0
