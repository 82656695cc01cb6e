"""The caller's side of an exchange: what is sent to it, and read of it until it leaves."""

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .._headers import RawHeaders
from .._logging import logger
from ..records import Outcome

CLIENT_CLOSED_REQUEST = 499
"""Status that middleware and access logs see for a caller who left before the start: nginx's."""


CLIENT_CLOSED_TIMEOUT = 1.0
"""Seconds that the server may take to accept the 499."""


class CallerDisconnected(Exception):
    """The server could not send, for the caller is gone."""


class TruncatedBody(dict[str, object]):
    """A part of a body that no server takes; its name stands in the server's error."""

    def __bytes__(self) -> bytes:
        raise TypeError("TruncatedBody")


class Caller:
    """Who asked. Sends one response, and knows whether it was started."""

    __slots__ = ("_body", "_prefix", "_receive", "_scope", "_send", "_start", "method", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        # A refused WebSocket handshake is answered in the denial response extension's messages.
        self._prefix = "websocket." if scope["type"] == "websocket" else ""
        self._start = self._prefix + "http.response.start"
        self._body = self._prefix + "http.response.body"
        self.method: str = scope.get("method", "GET")
        self.started: bool = False

    @property
    def disconnect_outcome(self) -> Outcome:
        left_before, left_in = (
            Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS,
            Outcome.CALLER_DISCONNECTED_MID_BODY,
        )
        return left_in if self.started else left_before

    async def send_head(self, status: int, headers: RawHeaders) -> None:
        """Send status and headers."""
        self.started = True
        try:
            await self._send({"type": self._start, "status": status, "headers": headers})
        except (OSError, ClientDisconnect) as exc:
            raise CallerDisconnected from exc

    async def send_body(self, chunk: bytes, *, more: bool) -> None:
        """Send a part of the body; returns when the server wants the next (back-pressure)."""
        try:
            await self._send({"type": self._body, "body": chunk, "more_body": more})
        except (OSError, ClientDisconnect) as exc:
            raise CallerDisconnected from exc

    async def send_last_chunk_and_drain(self, chunk: bytes) -> None:
        """Send the last part, and meanwhile read what is left of the request.

        On hypercorn the end waits for a place in the queue of an upload, and so for its reader.
        """
        disconnected: CallerDisconnected | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(wait_for_disconnect, self._receive)
            try:
                await self.send_body(chunk, more=False)
            except CallerDisconnected as exc:  # in a group it would become one
                disconnected = exc
            group.cancel_scope.cancel()
        if disconnected is not None:
            raise disconnected

    async def abort(self) -> None:
        """Make sure that the exception which leaves the app next cuts the connection.

        Under Starlette's BaseHTTPMiddleware it would not: that ends the body properly when the app
        below it raises, and so hides the truncation. But it fails, as it should, when what it sends
        on is refused. A server refuses an unknown message here too, to no effect.
        """
        try:
            if getattr(self._receive, "__module__", "") == "starlette.middleware.base":
                await self._abort_through_base_middleware()
            else:
                kind = self._prefix + "http.response.abort"
                await self._send({"type": kind, "reason": "broken off"})
        except Exception:
            logger.debug("the server refused the abort message", exc_info=True)

    async def _abort_through_base_middleware(self) -> None:
        """Send what each of several such middlewares passes on, and no server takes.

        Each refuses an unknown message itself, and then the next one hides that. But a part which
        is a message is passed on as it is, so this one holds itself. GZipMiddleware fails to
        compress it; it passes on a file's path, which a server that did not announce it refuses.
        """
        part = TruncatedBody(type=self._body, more_body=True)
        part["body"] = part
        try:
            await self._send(part)
        except Exception:
            if "http.response.pathsend" in (self._scope.get("extensions") or ()):
                raise
            await self._send({"type": "http.response.pathsend", "path": ""})

    async def send_client_closed(self) -> None:
        """Send an empty 499 response. Middleware treats an app that sends nothing as an error.

        hypercorn may never accept it if the connection is gone, so this gives up after a second.
        """
        if self.started:
            return
        with anyio.move_on_after(CLIENT_CLOSED_TIMEOUT):
            try:
                await self.send_head(CLIENT_CLOSED_REQUEST, [(b"content-length", b"0")])
                await self.send_body(b"", more=False)
            except Exception:
                logger.debug("the server accepts no response after a disconnect", exc_info=True)


async def wait_for_disconnect(receive: Receive, pause: float = 0) -> bool:
    """Read on until the caller leaves, with so many seconds between two parts; False where that
    cannot be known."""
    more = True
    try:
        while not (message := await receive())["type"].endswith(".disconnect"):
            if not more:
                return False  # it says the same for ever, and has no disconnect to tell
            more = message.get("more_body", message["type"] != "http.request")
            if pause:
                await anyio.sleep(pause)
    except OSError:
        pass  # a connection that cannot be read is one that is gone
    except Exception:
        logger.debug("the caller cannot be watched", exc_info=True)
        return False
    return True
