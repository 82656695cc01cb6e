"""Sends the response to the caller, or aborts it."""

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .._headers import RawHeaders
from .._logging import logger
from ..records import Outcome
from .disconnect import wait_for_disconnect

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a disconnect before the response. Only middleware and access logs see it."""

CLIENT_CLOSED_TIMEOUT = 1.0
"""Seconds that the server may take to accept the 499."""


class CallerDisconnected(Exception):
    """The caller has disconnected."""


class TruncatedBody(dict[str, object]):
    """A body that every server rejects. Its name appears in the server's error."""

    def __bytes__(self) -> bytes:
        raise TypeError("TruncatedBody")


class Caller:
    """The client of this app. It is called the caller, because *client* is httpx's."""

    __slots__ = ("_body", "_prefix", "_receive", "_scope", "_send", "_start", "method", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        # A WebSocket handshake is refused with the messages of the denial response extension.
        self._prefix = "websocket." if scope["type"] == "websocket" else ""
        self._start = self._prefix + "http.response.start"
        self._body = self._prefix + "http.response.body"
        self.method: str = scope.get("method", "GET")
        self.started: bool = False

    @property
    def disconnect_outcome(self) -> Outcome:
        """The outcome of the exchange if the caller disconnects now."""
        if self.started:
            return Outcome.CALLER_DISCONNECTED_MID_BODY
        return Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS

    async def send_head(self, status: int, headers: RawHeaders) -> None:
        """Send status and headers."""
        self.started = True
        try:
            await self._send({"type": self._start, "status": status, "headers": headers})
        except (OSError, ClientDisconnect) as exc:
            raise CallerDisconnected from exc

    async def send_body(self, chunk: bytes, *, more: bool) -> None:
        """Send a chunk. Returns when the server is ready for the next one (back-pressure)."""
        try:
            await self._send({"type": self._body, "body": chunk, "more_body": more})
        except (OSError, ClientDisconnect) as exc:
            raise CallerDisconnected from exc

    async def send_last_chunk_and_drain(self, chunk: bytes) -> None:
        """Send the last chunk while discarding the rest of the request.

        hypercorn does not finish the response while its queue is full of unread request chunks.
        """
        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(wait_for_disconnect, self._receive)
            try:
                await self.send_body(chunk, more=False)
            except Exception as exc:  # If it left the group, it would become an ExceptionGroup.
                failure = exc
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def abort(self) -> None:
        """Ensure that the exception raised next closes the connection.

        Starlette's `BaseHTTPMiddleware` would complete the body instead and hide the truncation,
        unless one of the messages that it passes on is rejected. Without that middleware, the
        server ignores the unknown message.
        """
        try:
            if getattr(self._receive, "__module__", "") == "starlette.middleware.base":
                await self._abort_through_base_middleware()
            else:
                message_type = self._prefix + "http.response.abort"
                await self._send({"type": message_type, "reason": "truncated"})
        except Exception:
            logger.debug("the server refused the abort message", exc_info=True)

    async def _abort_through_base_middleware(self) -> None:
        """Send a message that several such middlewares pass on and most servers reject.

        The middleware itself rejects an unknown message, and the next one would hide that. It
        passes on a body that is a message, so this one contains itself. `GZipMiddleware` fails to
        compress it, but passes on a file path, which a server without that extension rejects.
        """
        message = TruncatedBody(type=self._body, more_body=True)
        message["body"] = message
        try:
            await self._send(message)
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
