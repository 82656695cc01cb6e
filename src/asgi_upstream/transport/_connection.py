"""One HTTP/1.1 connection to an upstream (RFC 9112)."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Generator
from typing import Protocol

from .._httpx.interfaces import HTTPXModule
from ._header_lines import ParseError
from ._parser import ResponseParser
from ._protocol import SocketProtocol
from ._read_buffer import ReadBuffer
from ._response_head import DONE, HEAD, IDLE, ReadState, ResponseHead
from ._serializer import BodyFramer, OutgoingRequest
from ._upload import Upload

READ_BUFFER_LIMIT = 256 * 1024
"""Bytes that may wait for a slow reader before reading from the socket pauses."""


class ConnectionOwner(Protocol):
    """The pool, which is called when a connection becomes idle or closes."""

    def release(self, connection: "HTTP11Connection") -> None: ...
    def discard(self, connection: "HTTP11Connection") -> None: ...


class HTTP11Connection(SocketProtocol):
    """Sends requests and receives responses, one exchange at a time.

    `ResponseParser.state` tells where the exchange is. After a 101 response, the bytes belong to
    another protocol. Every exchange ends with `release` or `aclose`. A protocol error closes the
    connection.

    Attributes:
        request_count: The number of requests that were sent, with the current one.
        received_data: Whether a byte has arrived in the current exchange.
        keep_alive_timeout: Seconds after which the upstream announced to close an idle connection.
        read_timeout: Longest wait for the next bytes of the response, in seconds.
        retire_at: The time after which the pool does not keep the connection.
        idle_until: The time until which the pool keeps the idle connection.
    """

    def __init__(
        self, owner: ConnectionOwner, loop: asyncio.AbstractEventLoop, library: HTTPXModule
    ) -> None:
        super().__init__(loop, library)
        self.request_count: int = 0
        self.received_data: bool = False
        self.keep_alive_timeout: float | None = None
        self.read_timeout: float | None = None
        self.retire_at: float = math.inf
        self.idle_until: float = math.inf
        self._owner = owner
        self._parser = ResponseParser()
        self._buffer = ReadBuffer()
        self._wait_count = 0
        self._upload: Upload | None = None

    # The request.

    def send(self, request: OutgoingRequest) -> None:
        """Send a request, or start to. The caller must end the exchange in any case."""
        self.request_count += 1
        self.received_data, self.read_timeout = False, request.read_timeout
        self._parser.start(request)
        if self.closed:
            self.receive_eof(None)
        elif isinstance(request.content, bytes):
            self._transport.write(
                request.head + request.content if request.content else request.head
            )
            if self._writing_paused:  # the socket does not take all of it at once
                self._start_upload(request, _empty_body(), 0)
        else:
            self._transport.write(request.head)
            self._start_upload(request, request.content, request.length)

    def _start_upload(
        self, request: OutgoingRequest, content: AsyncIterator[bytes], length: int | None
    ) -> None:
        framer = BodyFramer(length, self._library.LocalProtocolError)
        self._upload = Upload(self, self.loop, content, framer, request.write_timeout)

    def complete_upload(self) -> None:
        """Note that the request is complete. From now on, the read timeout applies."""
        self._upload = None
        if self._timeouts.reader is not None:
            self._timeouts.restart_reading(self.read_timeout)

    # The response.

    @property
    def head(self) -> ResponseHead:
        """The response head, valid if `has_head`."""
        return self._parser.head

    @property
    def has_head(self) -> bool:
        """Whether the response head has arrived. If not, wait with `wait_readable`."""
        return self._parser.state is not HEAD

    @property
    def is_upgraded(self) -> bool:
        """Whether the connection belongs to another protocol (a 101, or a 2xx to CONNECT)."""
        return self._parser.head.framing is ReadState.UPGRADED

    @property
    def was_idle_too_long(self) -> bool:
        """Whether the response is only a 408 for the time without a request (RFC 9110 15.5.9)."""
        return self.request_count > 1 and self.head.status == 408 and not self._parser.keep_alive

    async def read(self, max_bytes: int | None = None) -> bytes:
        """Return the next body bytes, at most `max_bytes`. Empty at the end of the body."""
        if self._must_yield():
            await _YIELD
        while (chunk := self.read_nowait(max_bytes)) is None:
            await self.wait_readable()
        return chunk

    def read_nowait(self, max_bytes: int | None = None) -> bytes | None:
        """Like `read`, but return None if nothing has arrived."""
        if not self._buffer.size:
            return b"" if self._parser.state is DONE else None
        chunk = self._buffer.pop(max_bytes)
        if self._reading_paused:
            self._resume_if_drained()
        return chunk

    def wait_readable(self) -> Awaitable[None]:
        """Return an awaitable that usually ends when there is something to read.

        Raises:
            httpx.TransportError: At once, or when it is awaited.
        """
        if self._failure is not None:
            raise self._failure
        if self._must_yield():
            return _YIELD
        # The upstream may be silent until it has the whole request.
        is_uploading = self._upload is not None and self._upload.in_progress
        return self._timeouts.start_reading(None if is_uploading else self.read_timeout)

    def _must_yield(self) -> bool:
        """Return whether to give way to other tasks, which is so at each 16th call.

        anyio cannot cancel a task whose future is done, which is always so while bytes arrive
        faster than they are read.
        """
        self._wait_count += 1
        return self._wait_count % 16 == 0

    def data_received(self, data: bytes) -> None:
        self.received_data = True
        parser = self._parser
        if not parser.expects_data:  # the bytes would become the next response
            self.close()
            return
        try:
            body = parser.feed(data)
        except ParseError as exc:
            self.fail(self._library.RemoteProtocolError(str(exc)))
            return
        if self._upload is not None and self.has_head and parser.head.status >= 300:
            self._upload.stop()  # refused, so that `release` finds the upload incomplete
        if body:
            self._buffer.append(body)
        if parser.has_more:  # let other tasks run
            self._pause_reading()
            self.loop.call_soon(self._parse_more)
        elif self._reading_paused:
            self._resume_if_drained()
        elif self._buffer.size > READ_BUFFER_LIMIT and parser.expects_data:
            self._pause_reading()
        self._timeouts.wake_reader()

    def _parse_more(self) -> None:
        if self._parser.has_more and not self.closed:
            self.data_received(b"")

    def _resume_if_drained(self) -> None:
        if self._parser.has_more:
            return
        # After the body, keep reading so that unexpected bytes are detected.
        if self._buffer.size <= READ_BUFFER_LIMIT // 4 or not self._parser.expects_data:
            self._resume_reading()

    # The end of the exchange, and of the connection.

    async def aclose(self) -> None:
        """End the exchange. Keep the connection if it can be used again, and close it otherwise."""
        if not self.release():
            upload, self._upload = self._upload, None
            self.close()
            if upload is not None:
                await upload.aclose()

    def release(self) -> bool:
        """End the exchange if the connection can be used again, and return whether it can."""
        parser = self._parser
        if (
            parser.state is not DONE
            or not parser.keep_alive
            or self._upload is not None
            or self.closed
        ):
            return False
        self.keep_alive_timeout = parser.head.keep_alive_timeout
        parser.state = IDLE
        if self._buffer.size:
            self._buffer.clear()
        self._owner.release(self)
        return True

    def is_reusable(self) -> bool:
        """Return whether an idle connection is open and has nothing to read."""
        return not (self.closed or self._transport.is_closing() or self._has_unread_bytes())

    def close(self) -> None:
        """Close at once, in any state, and leave the pool."""
        if not self.closed:
            super().close()
            self._owner.discard(self)

    def receive_eof(self, exc: Exception | None, *, truncated: bool = False) -> None:
        while self._parser.has_more and not self.closed:
            self._parse_more()
        state, library = self._parser.state, self._library
        closed_by_upstream = exc is None and not self.closed
        if closed_by_upstream and self._parser.feed_eof(truncated=truncated):
            pass
        elif state is HEAD and exc is None:
            self.fail(
                library.RemoteProtocolError("Server disconnected without sending a response.")
            )
        elif state not in (IDLE, DONE):
            error: Exception = library.RemoteProtocolError(
                "peer closed connection without sending complete message body"
            )
            if exc is not None:
                error = library.ReadError(str(exc))
                error.__cause__ = exc  # a TLS alert is a connect error to `map_exception`
            self.fail(error)
        self.close()
        self._wake_all()


async def _empty_body() -> AsyncIterator[bytes]:
    yield b""


class _Yield:
    """Gives way to other tasks once, like `asyncio.sleep(0)`."""

    def __await__(self) -> Generator[None]:
        yield


_YIELD = _Yield()
