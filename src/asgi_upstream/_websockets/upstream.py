"""The upstream's side of a relayed WebSocket: its connection, its messages and its pings.

The sans-IO protocol of the `websockets` package frames, masks and checks messages. Reading,
writing and waiting are done here, on the upgraded connection of the httpx client.
"""

from collections import deque
from contextlib import suppress

import anyio
import anyio.lowlevel
import httpx
from anyio.abc import TaskGroup

try:
    from websockets.exceptions import InvalidState, PayloadTooBig, ProtocolError
    from websockets.frames import Close, CloseCode, Frame
    from websockets.protocol import Protocol, Side, State
except ImportError as _exc:
    if (_exc.name or "").partition(".")[0] != "websockets":
        raise
    raise ImportError(
        "relaying WebSockets needs websockets: pip install websockets", name=_exc.name
    ) from _exc

from .._httpx.interfaces import HTTPXModule
from ..errors import UpstreamBodyTooLarge
from .fragments import MessageAssembler
from .stream import IO_SIZE, WebSocketStream

CLOSING_HANDSHAKE_TIMEOUT = 1.0
"""Seconds that either side may take for its part of the closing handshake (RFC 6455 7.1.1)."""

_PARSE_SIZE = 4096  # bytes that are parsed before other tasks may run
_CHECKPOINT_INTERVAL = 64  # frames that are handled before other tasks may run
_MAX_PENDING_CONTROL_FRAMES = 16  # older pongs are dropped (RFC 6455 5.5.3)
_MAX_REASON_BYTES = 123  # (RFC 6455 5.5)


class UpstreamWebSocket:
    """A WebSocket to the upstream, from its 101 response on.

    Attributes:
        close_code, close_reason: How the WebSocket ends: sent to the upstream, or received from it.
        failure: The error that ended the connection while nothing was reading.
    """

    failure: Exception | None = None

    def __init__(
        self,
        library: HTTPXModule,
        response: httpx.Response,
        group: TaskGroup,
        *,
        write_timeout: float | None,
        max_message_bytes: int,
        ping_interval: float | None,
    ) -> None:
        network_stream = response.extensions["network_stream"]
        self._stream = WebSocketStream(library, network_stream, write_timeout)
        self._protocol = Protocol(Side.CLIENT, max_size=max_message_bytes)
        self._library = library
        self._connection_errors = (
            library.NetworkError,
            library.TimeoutException,
            library.RemoteProtocolError,
        )
        self._group = group
        self._ping_interval = ping_interval
        self.close_code: int = CloseCode.GOING_AWAY
        self.close_reason: str = ""
        self._unparsed = memoryview(b"")
        self._frames: deque[Frame] = deque()
        self._frame_count = 0
        self._assembler = MessageAssembler()
        self._control_frames: deque[bytes] = deque(maxlen=_MAX_PENDING_CONTROL_FRAMES)
        self._control_task_running = False
        self._close_frame = b""
        self._ping_pending = False
        self._ping_sent_at: float | None = None

    async def send(self, message: str | bytes) -> None:
        """Send a message. If the connection is gone, `receive` reports it.

        Raises:
            httpx.WriteTimeout: If the upstream does not read.
        """
        with suppress(InvalidState, self._library.NetworkError):
            if isinstance(message, str):
                self._protocol.send_text(message.encode())
            else:
                self._protocol.send_binary(message)
            await self._stream.write(b"".join(self._protocol.data_to_send()))

    async def receive(self) -> str | bytes | None:
        """Return the next message, or None after the upstream's Close frame.

        Raises:
            httpx.TransportError: If the connection ended without a Close frame, or the upstream
                sent something that is not a WebSocket message.
            UpstreamBodyTooLarge: If a message is longer than `max_message_bytes`.
        """
        while True:
            while self._frames:
                self._frame_count += 1
                if self._frame_count % _CHECKPOINT_INTERVAL == 0:
                    await anyio.lowlevel.checkpoint()
                try:
                    message = self._assembler.add(self._frames.popleft())
                except UnicodeDecodeError as exc:
                    self.close_code = CloseCode.INVALID_DATA
                    raise self._library.RemoteProtocolError("text message is not UTF-8") from exc
                if message is not None:
                    return message
            if (close := self._protocol.close_rcvd) is not None:
                self.close_code, self.close_reason = close.code, close.reason
                return None
            if self._protocol.parser_exc is not None:
                self._raise_parser_error(self._protocol.parser_exc)
            if not self._unparsed:
                self._unparsed = memoryview(await self._read())
            self._parse()

    def _raise_parser_error(self, exc: Exception) -> None:
        if isinstance(exc, PayloadTooBig):
            raise UpstreamBodyTooLarge from exc
        if isinstance(exc, EOFError):
            raise self._library.RemoteProtocolError(
                "connection closed without a Close frame"
            ) from exc
        raise self._library.RemoteProtocolError(str(exc)) from exc

    async def _read(self) -> bytes:
        """Read from the connection. Ping a silent upstream, and give up if it stays silent.

        While a long message is on its way, the upstream proves that it is alive by reading it. So
        only silence after the ping and after that message counts.
        """
        timeout, self._ping_pending, self._ping_sent_at = self._ping_interval, False, None
        while True:
            try:
                data = await self._stream.read(IO_SIZE, timeout)
                break
            except self._library.TimeoutException as exc:
                assert self._ping_interval is not None
                timeout = self._ping_interval
                if not self._ping_pending:
                    self._ping_pending = True
                    self._protocol.send_ping(b"")
                    self._queue_control_frames()
                elif self._ping_sent_at is not None and not self._stream.is_writing:
                    silent_since = max(self._ping_sent_at, self._stream.last_long_write)
                    timeout = silent_since + self._ping_interval - anyio.current_time()
                    if timeout <= 0:
                        raise self._library.ReadTimeout("no response to ping") from exc
        return data

    def _parse(self) -> None:
        """Parse some of the unparsed bytes, or the end of the connection if there are none."""
        if not self._unparsed:
            self._protocol.receive_eof()
        else:
            data, self._unparsed = self._unparsed[:_PARSE_SIZE], self._unparsed[_PARSE_SIZE:]
            self._protocol.receive_data(bytes(data))
        received = self._protocol.events_received()
        self._frames.extend(event for event in received if isinstance(event, Frame))
        if self._protocol.state is State.OPEN:
            self._queue_control_frames()
        else:  # The reply is the Close frame, which `close` sends.
            self._close_frame = b"".join(self._protocol.data_to_send())

    def _queue_control_frames(self) -> None:
        """Send pings and pongs in a task, because a write may wait until we read."""
        self._control_frames.extend(self._protocol.data_to_send())
        if self._control_frames and not self._control_task_running:
            self._control_task_running = True
            self._group.start_soon(self._send_control_frames)

    async def _send_control_frames(self) -> None:
        try:
            with suppress(self._library.NetworkError):
                while self._control_frames:
                    await self._stream.write(self._control_frames.popleft())
                    if self._ping_pending and self._ping_sent_at is None:
                        self._ping_sent_at = anyio.current_time()
        except self._library.TimeoutException as exc:
            self.failure = exc
            self._group.cancel_scope.cancel()
        self._control_task_running = False

    async def close(self) -> None:
        """Perform the closing handshake with `close_code`, in at most a second.

        Reads until the upstream closes. A connection that is closed with unread bytes is reset, and
        the upstream would lose the Close frame.
        """
        with (
            anyio.move_on_after(CLOSING_HANDSHAKE_TIMEOUT, shield=True) as scope,
            suppress(*self._connection_errors, ProtocolError),
        ):
            while self._unparsed and self._protocol.state is State.OPEN:
                self._parse()
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(*_valid_close(self.close_code, self.close_reason))
                self._close_frame = b"".join(self._protocol.data_to_send())
            if not self._stream.is_mid_frame:
                await self._stream.write(self._close_frame)
            # The clock is checked too, because a scope does not end a loop that never waits.
            while self._protocol.close_rcvd is None and anyio.current_time() < scope.deadline:
                if not (data := await self._stream.read(IO_SIZE)):
                    break
                self._protocol.receive_data(data)
                self._protocol.events_received()

    async def aclose(self) -> None:
        """Close the connection, if closing the response did not. A test transport may not do so."""
        timeout = anyio.move_on_after(CLOSING_HANDSHAKE_TIMEOUT, shield=True)
        with timeout, suppress(*self._connection_errors):
            await self._stream.aclose()


def _valid_close(code: int, reason: str) -> tuple[int | None, str]:
    """Return a code and reason that may be sent (RFC 6455 7.4)."""
    if code == CloseCode.NO_STATUS_RCVD:
        return None, ""
    try:
        Close(code, "").check()
    except ProtocolError:
        code = CloseCode.NORMAL_CLOSURE
    return code, reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")


def byte_length(message: str | bytes) -> int:
    """Return the length of a message as sent, in bytes."""
    return (
        len(message) if isinstance(message, bytes) or message.isascii() else len(message.encode())
    )
