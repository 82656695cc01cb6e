"""The caller's side of an exchange: what is sent to it, and how it is noticed to have left."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .headers import RawHeaders

logger = logging.getLogger("asgi_upstream")

WATCH_AFTER = 0.2
"""Seconds until a caller is watched on asyncio. Most exchanges end before, and save the task."""

CALLER_LEFT = 499
"""Status that middleware and access logs see for a caller who left before the start: nginx's."""


class CallerLeft(Exception):
    """The server could not send, for the caller is gone."""


class Caller:
    """Who asked. Sends one response, and knows whether it was started."""

    __slots__ = ("_prefix", "_send", "method", "started")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        # A refused WebSocket handshake is answered in the denial response extension's messages.
        self._prefix = "websocket." if scope["type"] == "websocket" else ""
        self.method: str = scope.get("method", "GET")
        self.started = False

    async def start(self, status: int, headers: RawHeaders) -> None:
        """Send status and headers."""
        self.started = True
        await self._message("http.response.start", status=status, headers=headers)

    async def body(self, chunk: bytes, *, more: bool) -> None:
        """Send a part of the body; returns when the server wants the next (back-pressure)."""
        await self._message("http.response.body", body=chunk, more_body=more)

    async def abort(self) -> None:
        """Make sure that the exception which leaves the app next cuts the connection.

        Under Starlette's BaseHTTPMiddleware it would not: that ends the body properly when the app
        below it raises, and so hides the truncation. But it fails, as it should, on a message that
        it does not know. A server does not know it either, and says so here, to no effect.
        """
        try:
            await self._message("http.response.abort", reason="the upstream's body broke off")
        except Exception:
            logger.debug("the server refused the abort message", exc_info=True)

    async def dismiss(self) -> None:
        """Answer a caller who left, for middleware takes an app that answers nothing for broken."""
        if self.started:
            return
        try:
            await self.start(CALLER_LEFT, [(b"content-length", b"0")])
            await self.body(b"", more=False)
        except Exception:
            logger.debug("the server takes nothing for a caller who left", exc_info=True)

    async def _message(self, kind: str, **content: Any) -> None:
        try:
            await self._send({"type": self._prefix + kind, **content})
        except (OSError, ClientDisconnect) as exc:
            raise CallerLeft from exc


class Watch:
    """Reads `receive` until the caller has left, then cancels a scope.

    Servers tell of a disconnect to whoever waits in `receive`; few fail a `send`, and none while
    nothing is sent. So somebody must wait there, in a task of its own. On asyncio a timer starts
    that task late, for a timer costs a tenth of a task. On trio it is a child task.

    The body of the caller's request comes through the same `receive`. The watch begins when it has
    gone upstream; until then whoever reads it learns of the disconnect.
    """

    __slots__ = ("_begun", "_group", "_receive", "_scope", "_task", "_ticks", "_timer", "left")

    def __init__(self, receive: Receive, scope: anyio.CancelScope) -> None:
        self._receive = receive
        self._scope = scope
        self._group: TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ticks: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._begun = False
        self.left = False

    async def __aenter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # trio
            self._group = await anyio.create_task_group().__aenter__()
        return self

    def begin(self) -> None:
        """Start to read `receive`, which from here on nobody else may."""
        if self._begun:
            return
        self._begun = True
        if self._group is not None:
            self._group.start_soon(self._listen)
        else:
            self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._spawn)

    def every(self, seconds: float, look: Callable[[], bool]) -> None:
        """Call `look` so often, as long as it says True and the watch is not over."""

        async def repeat() -> None:
            while look():  # noqa: ASYNC110  a socket has no event for this
                await anyio.sleep(seconds)

        def tick() -> None:
            if look():
                self._ticks = asyncio.get_running_loop().call_later(seconds, tick)

        if self._group is not None:
            self._group.start_soon(repeat)
        else:
            tick()

    def _spawn(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        more = True
        try:
            while not (message := await self._receive())["type"].endswith(".disconnect"):
                if not more:
                    return  # it says the same for ever, and has no disconnect to tell
                more = message.get("more_body", message["type"] != "http.request")
        except OSError:
            pass  # a connection that cannot be read is one that is gone
        except Exception:
            logger.debug("the caller cannot be watched", exc_info=True)
            return
        self.left = True
        self._scope.cancel()

    async def __aexit__(self, *exc: Any) -> bool | None:  # noqa: PYI036  passed on as they are
        if self._group is not None:
            self._group.cancel_scope.cancel()
            return await self._group.__aexit__(*exc)
        for timer in (self._timer, self._ticks):
            if timer is not None:
                timer.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._task], timeout=1)
        return None
