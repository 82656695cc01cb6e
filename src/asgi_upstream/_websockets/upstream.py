"""The upstream's end of a relayed WebSocket: its connection, its messages, its pings.

httpx-ws frames and sends. Its session is never entered, though, for its own reading has no bound on
a message, answers no ping while a write waits, fails on a pong nobody asked for, and loses the
upstream's close code. So this reads by itself, in the one task that needs to.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO

import anyio
import anyio.lowlevel
import httpcore
import httpx
from anyio.abc import TaskGroup

try:
    from httpx_ws import AsyncWebSocketSession
    from wsproto.connection import ConnectionState
    from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
    from wsproto.frame_protocol import CloseReason
    from wsproto.utilities import LocalProtocolError
except ImportError as _exc:
    if _exc.name not in ("httpx_ws", "wsproto"):
        raise
    raise ImportError(
        "relaying WebSockets needs httpx-ws: pip install 'asgi-upstream[ws]'", name=_exc.name
    ) from _exc

from .._httpx.flavors import HTTPXModule, map_httpcore_error
from ..errors import UpstreamBodyTooLarge

CLOSE_TIMEOUT = 1.0
"""Seconds that either side may take for its part of the closing handshake (RFC 6455 7.1.1)."""

_IO_SIZE = 65536  # bytes in one read or write
_CHECKPOINT_EVERY = 64  # frames that are dealt with before others have their turn
_MAX_PONGS = 16  # that wait for a write to end; of more, the first are left out (RFC 6455 5.5.3)


class UpstreamWebSocket:
    """One WebSocket to the upstream, from its 101 on."""

    failure: Exception | None = None
    """What ended it while nobody read."""

    def __init__(
        self,
        library: HTTPXModule,
        upstream: httpx.Response,
        group: TaskGroup,
        write_timeout: float | None,
        max_message_bytes: int,
        ping_interval: float | None,
    ) -> None:
        self._stream = _Stream(library, upstream.extensions["network_stream"], write_timeout)
        self._library = library
        self._connection_errors = library.NetworkError, LocalProtocolError
        session = AsyncWebSocketSession(self._stream, response=upstream)
        self._session, self._connection = session, session.connection
        self.subprotocol: str | None = session.subprotocol
        self.farewell: tuple[int, str] = CloseReason.GOING_AWAY, ""  # unless it ends otherwise
        self._group, self._max_message_bytes, self._ping_interval = (
            group,
            max_message_bytes,
            ping_interval,
        )
        self._events: Iterator[Event] = iter(())
        self._event_count = 0
        self._fragments: BytesIO | None = None  # of a message
        self._size = 0  # bytes in them
        self._pongs: deque[Event] = deque(maxlen=_MAX_PONGS)
        self._control_task_running = False

    async def send(self, message: str | bytes) -> None:
        """Send a message. That the upstream is gone is for `receive` to say.

        Raises:
            httpx.WriteTimeout: it takes nothing.
        """
        event = TextMessage(message) if isinstance(message, str) else BytesMessage(message)
        await self._send(event)

    async def receive(self) -> str | bytes | bytearray | None:
        """The next message; None where the upstream has closed, with its code as `farewell`.

        Raises:
            httpx.TransportError: it is gone, or sent what is no WebSocket.
            UpstreamBodyTooLarge: a message is longer than may be.
        """
        while True:
            # No more is read before all of it is dealt with.
            for event in self._events:
                self._event_count += 1
                if (
                    self._event_count % _CHECKPOINT_EVERY == 0
                ):  # neither reading nor sending need ever wait
                    await anyio.lowlevel.checkpoint()
                if isinstance(event, Ping):
                    self._send_control(event.response())
                elif isinstance(event, CloseConnection):
                    self.farewell = event.code, event.reason or ""
                    if self._connection.state is ConnectionState.OPEN:  # it is wsproto's verdict
                        raise self._library.RemoteProtocolError(
                            event.reason or "no WebSocket frame"
                        )
                    return None
                elif isinstance(event, TextMessage | BytesMessage):
                    message = self._assemble(event)
                    if message is not None:
                        return message
            await self._read()

    def _assemble(self, event: TextMessage | BytesMessage) -> str | bytes | bytearray | None:
        self._size += byte_length(event.data)
        if self._size > self._max_message_bytes:
            self.farewell = CloseReason.MESSAGE_TOO_BIG, ""
            raise UpstreamBodyTooLarge
        if event.message_finished and self._fragments is None:
            self._size = 0
            return event.data
        # A list of them might take 30 times their bytes, and so does StringIO's.
        self._fragments = self._fragments or BytesIO()
        data = event.data
        self._fragments.write(data.encode() if isinstance(data, str) else data)
        if not event.message_finished:
            return None
        message = self._fragments.getvalue()
        self._fragments, self._size = None, 0
        return message.decode() if isinstance(data, str) else message

    async def _read(self) -> None:
        pinged = False
        while True:
            try:
                data = await self._stream.read(_IO_SIZE, self._ping_interval)
            except self._library.TimeoutException as exc:
                if pinged:
                    raise self._library.ReadTimeout("no response to ping") from exc
                pinged = True
                self._send_control(Ping())
                continue
            if not data:
                raise self._library.RemoteProtocolError("connection closed without a Close frame")
            self._connection.receive_data(data)
            self._events = self._connection.events()
            return

    async def _send(self, event: Event) -> None:
        with suppress(*self._connection_errors):  # how it ended is for whoever reads to find
            await self._session.send(event)

    def _send_control(self, event: Event) -> None:
        """Send a ping or pong, and read on: the write may wait for the upstream to be read."""
        self._pongs.append(event)
        if not self._control_task_running:
            self._control_task_running = True
            self._group.start_soon(self._send_pongs)

    async def _send_pongs(self) -> None:
        try:
            while self._pongs:
                await self._send(self._pongs.popleft())
        except self._library.TimeoutException as exc:
            self.failure = exc
            self._group.cancel_scope.cancel()
        self._control_task_running = False

    async def close_handshake(self) -> None:
        """Say farewell, and wait for the upstream's: a close with bytes unread is a reset."""
        with (
            anyio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope,
            suppress(
                *self._connection_errors,
                self._library.TimeoutException,
                self._library.RemoteProtocolError,
            ),
        ):
            for _ in self._connection.events():  # its Close may be among what was read already
                pass
            if not self._stream.in_frame:
                code, reason = self.farewell
                # wsproto knows "no code" by this very object.
                code = CloseReason.NO_STATUS_RCVD if code == 1005 else code
                await self._session.close(code, reason)
            # By the clock too, for no scope ends a loop that never has to wait.
            while (
                self._connection.state is ConnectionState.LOCAL_CLOSING
                and anyio.current_time() < scope.deadline
            ):
                self._connection.receive_data(await self._stream.read(_IO_SIZE) or None)
                for _ in self._connection.events():
                    pass

    async def aclose(self) -> None:
        """Close the connection, where that of the response has not: httpx-ws's transport for tests
        has none."""
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True), suppress(*self._connection_errors):
            await self._stream.close()


class _Stream(httpcore.AsyncNetworkStream):
    """The upgraded connection, with the library's own errors, which httpx-ws does not close."""

    def __init__(
        self,
        library: HTTPXModule,
        stream: httpcore.AsyncNetworkStream,
        write_timeout: float | None,
    ) -> None:
        self._library, self._stream, self._write_timeout = library, stream, write_timeout
        self.in_frame = False  # a write is under way, or was cancelled

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return await self._stream.read(max_bytes, timeout)
        except Exception as exc:
            self._raise_mapped(exc)
            raise

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """In pieces: the timeout is for an upstream that takes none, not for a long message."""
        self.in_frame = True
        try:
            if len(buffer) <= _IO_SIZE:
                await self._stream.write(buffer, self._write_timeout)
            else:
                for at in range(0, len(buffer), _IO_SIZE):
                    await self._stream.write(buffer[at : at + _IO_SIZE], self._write_timeout)
        except Exception as exc:
            self._raise_mapped(exc)
            raise
        self.in_frame = False

    def _raise_mapped(self, exc: Exception) -> None:
        kind = map_httpcore_error(type(exc), self._library)
        if kind is not None:
            raise kind(str(exc)) from exc

    async def aclose(self) -> None:
        """Nothing: what the upstream said last is still to be read."""

    async def close(self) -> None:
        try:
            await self._stream.aclose()
        except Exception as exc:
            self._raise_mapped(exc)
            raise


def byte_length(data: str | bytes | bytearray) -> int:
    """In bytes, as sent."""
    return (
        len(data) if isinstance(data, bytes | bytearray) or data.isascii() else len(data.encode())
    )
