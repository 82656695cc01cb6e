"""The caller's side of a relayed WebSocket."""

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
import httpx
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from .._exchange.downstream import CallerDisconnected
from .handshake import handshake_response_headers, send_denial_response
from .upstream import CLOSING_HANDSHAKE_TIMEOUT


class CallerWebSocket:
    """The caller's WebSocket, from its handshake on. Any error of the server is a disconnect.

    Attributes:
        subprotocols: The subprotocols that the caller offers.
        is_closed: Whether the caller has disconnected or was refused.
        close_code, close_reason: How the WebSocket ends: sent to the caller, or received from it.
    """

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self.subprotocols: Sequence[str] = websocket.scope.get("subprotocols") or ()
        self.is_closed: bool = False
        self.close_code: int = 1011
        self.close_reason: str = ""

    async def receive_connect(self) -> None:
        """Receive the message that begins the handshake, if the app has not received it.

        Raises:
            CallerDisconnected: If the caller has disconnected.
        """
        if self._websocket.client_state is WebSocketState.CONNECTING:
            try:
                await self._websocket.receive()
            except OSError as exc:
                self.is_closed = True
                raise CallerDisconnected from exc

    async def accept(self, response: httpx.Response) -> None:
        """Accept the handshake as the upstream did.

        Raises:
            CallerDisconnected: If the caller has disconnected.
        """
        subprotocol = response.headers.get("sec-websocket-protocol")
        headers = handshake_response_headers(response)
        await self._send(self._websocket.accept(subprotocol, headers))

    async def refuse(self, response: Response) -> None:
        """Refuse the handshake with a response.

        Raises:
            CallerDisconnected: If the caller has disconnected.
        """
        self.is_closed = True
        await self._send(send_denial_response(self._websocket, response))

    async def receive(self) -> str | bytes | None:
        """Return the next message, or None after the caller's Close frame.

        Raises:
            CallerDisconnected: If the connection ended without a Close frame.
        """
        try:
            message: Mapping[str, Any] = await self._websocket.receive()
        except OSError as exc:
            self.is_closed = True
            raise CallerDisconnected from exc
        if message["type"] != "websocket.disconnect":
            text: str | None = message.get("text")
            data: str | bytes = message["bytes"] if text is None else text
            return data
        self.is_closed = True
        code, reason = message.get("code", 1005), message.get("reason")
        # A missing Close frame. uvicorn reports it as 1005 without a reason.
        if code == 1006 or (code == 1005 and reason is None):
            raise CallerDisconnected
        self.close_code, self.close_reason = code, reason or ""
        return None

    def send(self, message: str | bytes) -> Awaitable[None]:
        """Send a message.

        Raises:
            CallerDisconnected: If the caller has disconnected.
        """
        key = "text" if isinstance(message, str) else "bytes"
        return self._send(self._websocket.send({"type": "websocket.send", key: message}))

    async def _send(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except (OSError, RuntimeError, WebSocketDisconnect) as exc:  # Servers differ in the error.
            self.is_closed = True
            raise CallerDisconnected from exc

    async def close(self) -> None:
        """Close with `close_code`, and wait at most a second for the caller's Close frame."""
        code = 1000 if self.close_code == 1005 else self.close_code
        with (
            anyio.move_on_after(CLOSING_HANDSHAKE_TIMEOUT),
            suppress(CallerDisconnected, OSError, RuntimeError),
        ):
            await self._send(self._websocket.close(code, self.close_reason))
            # Read the remaining messages. hypercorn waits forever otherwise.
            while (await self._websocket.receive())["type"] != "websocket.disconnect":
                pass
