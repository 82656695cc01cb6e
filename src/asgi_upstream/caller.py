"""The caller's side of an exchange: what is sent to it, and how it is noticed to have left."""

import asyncio
import logging
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc
import httpx
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .headers import RawHeaders

logger = logging.getLogger("asgi_upstream")

WATCH_AFTER = 0.2
"""Seconds until a caller is watched on asyncio. Most exchanges end before, and save the task."""

CLOSE_TIMEOUT = 5.0
"""Seconds that closing may take once nobody waits for its result."""

CALLER_LEFT = 499
"""Status sent after a caller who left: nginx's, for access logs; the caller never sees it."""


class CallerLeft(Exception):
    """The server could not send, for the caller is gone."""


class Caller:
    """Who asked. Sends one response, and knows whether it was started."""

    __slots__ = ("_prefix", "_receive", "_send", "has_body", "method", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        # A refused WebSocket handshake is answered by the denial response extension's messages.
        self._prefix = "websocket." if scope["type"] == "websocket" else ""
        self.method: str = scope.get("method", "GET")
        self.has_body = any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in scope["headers"]
        )
        self.started = False

    async def start(self, status: int, headers: RawHeaders) -> None:
        """Send status and headers."""
        self.started = True
        await self._message("http.response.start", status=status, headers=headers)

    async def body(self, chunk: bytes, *, more: bool) -> None:
        """Send a part of the body; returns when the server wants the next (back-pressure)."""
        await self._message("http.response.body", body=chunk, more_body=more)

    async def abort(self) -> None:
        """Make sure that the exception that leaves the app next cuts the connection.

        Starlette's BaseHTTPMiddleware ends the body properly when the app under it raises, which
        hides the truncation. It fails, as it should, on a message it does not know; and a server
        that does not know the message either says so here, where it changes nothing.
        """
        try:
            await self._message("http.response.abort", reason="the upstream's body broke off")
        except Exception:
            logger.debug("the server refused to be told of an abort", exc_info=True)

    async def dismiss(self) -> None:
        """End the ASGI call for a caller who left, so that middleware sees a response."""
        if self.started:
            return
        try:
            await self.start(CALLER_LEFT, [(b"content-length", b"0")])
            await self.body(b"", more=False)
        except Exception:
            logger.debug("the server takes nothing for a caller who left", exc_info=True)

    def watch(self, scope: anyio.CancelScope) -> "Watch":
        """Watch the caller; `scope` is cancelled when it leaves."""
        return Watch(self._receive, scope)

    async def _message(self, kind: str, **content: Any) -> None:
        try:
            await self._send({"type": self._prefix + kind, **content})
        except (OSError, ClientDisconnect) as exc:
            raise CallerLeft from exc


class Watch:
    """Reads `receive` until the caller has left, then cancels a scope.

    Servers tell of a disconnect to whoever waits in `receive`; few fail a `send`, and none while
    nothing is sent. So somebody must wait there, in a task of its own. On asyncio that task is
    started late, by a timer, since a timer costs a tenth of a task. On trio it is a child task.

    The body of the caller's request comes through the same `receive`. While it is being sent
    upstream the watch holds back: whoever reads the body learns of the disconnect.
    """

    __slots__ = ("_group", "_loop", "_receive", "_scope", "_task", "_timer", "left")

    def __init__(self, receive: Receive, scope: anyio.CancelScope) -> None:
        self._receive = receive
        self._scope = scope
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._group: anyio.abc.TaskGroup | None = None
        self.left = False

    async def __aenter__(self) -> Self:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # trio
            self._group = anyio.create_task_group()
            await self._group.__aenter__()
        return self

    def begin(self) -> None:
        """Start to read `receive`, which from here on nobody else does."""
        if self._group is not None:
            self._group.start_soon(self._listen)
        elif self._loop is not None and self._timer is None:
            self._timer = self._loop.call_later(WATCH_AFTER, self._spawn)

    def _spawn(self) -> None:
        assert self._loop is not None
        self._task = self._loop.create_task(self._listen())

    async def _listen(self) -> None:
        try:
            while (await self._receive())["type"] not in (
                "http.disconnect",
                "websocket.disconnect",
            ):
                pass
        except OSError:
            pass  # a connection that cannot be read is one that is gone
        except Exception:
            logger.debug("the caller cannot be watched", exc_info=True)
            return
        self.left = True
        self._scope.cancel()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if self._group is not None:
            self._group.cancel_scope.cancel()
            return await self._group.__aexit__(exc_type, exc, traceback)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await asyncio.wait([self._task])
        return None


class Upload(httpx.AsyncByteStream):
    """The body of a request on its way up; begins the watch when its last byte was read."""

    def __init__(self, body: httpx.AsyncByteStream, watch: Watch) -> None:
        self._body = body
        self._watch = watch

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:
            yield chunk
        self._watch.begin()

    async def aclose(self) -> None:
        await self._body.aclose()
