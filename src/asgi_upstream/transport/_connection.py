"""One HTTP/1.1 connection to an upstream (RFC 9112), as an asyncio protocol.

A connection carries one exchange at a time. `ResponseParser.state` tells where it is. After a 101
response the bytes of the connection belong to another protocol. Any protocol error closes the
connection. Every exchange ends with `release` or `aclose`.
"""

import asyncio
import math
import select
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, cast

import httpx

from .._httpx.flavors import HTTPXModule
from ._parser import ParseError, ReadState, ResponseHead, ResponseParser
from ._serializer import BodyFramer, OutgoingRequest

READ_BUFFER_LIMIT = 256 * 1024
"""Bytes that may wait for a slow reader before reading from the socket pauses."""

CHUNK_OVERHEAD = 64
"""Bytes of memory that each chunk in the buffer takes, beside its data."""

MAX_JOINED_SIZE = 32 * 1024
"""Chunks up to this size in bytes are joined before they are returned to the reader."""


async def _empty_body() -> AsyncIterator[bytes]:
    yield b""


class ConnectionOwner(Protocol):
    """The pool, which is called when a connection becomes idle or closes."""

    def release(self, connection: "HTTP11Connection") -> None: ...
    def discard(self, connection: "HTTP11Connection") -> None: ...


def _create_poll(sock: Any) -> Callable[[], bool]:
    """Return a function that tells whether data, an end or an error waits at the socket."""
    if sock is None:  # a transport in memory
        return lambda: False
    if sock.fileno() < 0:  # already closed
        return lambda: True
    if sys.platform == "win32":  # where select has no poll
        return lambda: bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return lambda: bool(poll.poll(0))


def _lacks_close_notify(transport: asyncio.BaseTransport) -> bool:
    """Return whether TLS ended without close_notify, as in a truncation attack (RFC 9112 9.8)."""
    ssl_object: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if ssl_object is None:
        return False
    try:
        # asyncio has read all data. Now only close_notify makes this return, without a byte.
        return ssl_object.read(1) != b""
    except ssl.SSLError as exc:
        return not isinstance(exc, ssl.SSLZeroReturnError)


class ReadBuffer:
    """Body bytes that the reader has not taken yet.

    Attributes:
        size: The memory that they take, in bytes.
    """

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self.size = 0

    def append(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self.size += len(chunk) + CHUNK_OVERHEAD

    def pop(self, max_bytes: int | None = None) -> bytes:
        """Remove and return the next bytes, at most `max_bytes`. Empty if there are none."""
        chunks = self._chunks
        if not chunks:
            return b""
        if len(chunks) == 1 or len(chunks[0]) > MAX_JOINED_SIZE:
            chunk = chunks.pop(0)
            self.size -= len(chunk) + CHUNK_OVERHEAD
        else:
            chunk = b"".join(chunks)
            self.clear()
        if max_bytes is not None and len(chunk) > max_bytes:
            chunks.insert(0, chunk[max_bytes:])
            self.size += len(chunk) - max_bytes + CHUNK_OVERHEAD
            chunk = chunk[:max_bytes]
        return chunk

    def clear(self) -> None:
        self._chunks.clear()
        self.size = 0


class Timeouts:
    """Read and write timeouts of one connection, with a single timer.

    The timer is usually left running when a wait ends, because to set one costs more than to let
    it fire.
    """

    __slots__ = (
        "_library",
        "_loop",
        "_read_deadline",
        "_timer",
        "_write_deadline",
        "reader",
        "writer",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, library: HTTPXModule) -> None:
        self.reader: asyncio.Future[None] | None = None
        self.writer: asyncio.Future[None] | None = None
        self._loop = loop
        self._library = library
        self._read_deadline = self._write_deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start_reading(self, timeout: float | None) -> asyncio.Future[None]:
        """Return a future that is done when `wake` is called or `timeout` seconds have passed."""
        self.reader = self._loop.create_future()
        self.restart_reading(timeout)
        return self.reader

    def restart_reading(self, timeout: float | None) -> None:
        self._read_deadline = self._arm(timeout)

    def start_writing(self, timeout: float | None) -> asyncio.Future[None]:
        self.writer = self._loop.create_future()
        self._write_deadline = self._arm(timeout)
        return self.writer

    def wake_reader(self) -> None:
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)

    def wake_writer(self) -> None:
        if self.writer is not None and not self.writer.done():
            self.writer.set_result(None)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, timeout: float | None) -> float:
        if timeout is None:
            return math.inf
        deadline = self._loop.time() + timeout
        if self._timer is not None and self._timer.when() > deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._on_timer)
        return deadline

    def _on_timer(self) -> None:
        self._timer = None
        now, next_deadline = self._loop.time(), math.inf
        if self.reader is not None and not self.reader.done():
            if self._read_deadline <= now:
                self.reader.set_exception(self._library.ReadTimeout(""))
            else:
                next_deadline = self._read_deadline
        if self.writer is not None and not self.writer.done():
            if self._write_deadline <= now:
                self.writer.set_exception(self._library.WriteTimeout(""))
            else:
                next_deadline = min(next_deadline, self._write_deadline)
        if next_deadline < math.inf:
            self._timer = self._loop.call_at(next_deadline, self._on_timer)


class HTTP11Connection(asyncio.Protocol):
    """Sends requests, receives responses and applies flow control in both directions.

    Attributes:
        request_count: The number of requests that were sent, with the current one.
        received_data: Whether a byte has arrived in the current exchange.
        keep_alive_timeout: Seconds after which the upstream closes an idle connection, if it told.
    """

    __slots__ = (
        "_buffer",
        "_failure",
        "_library",
        "_owner",
        "_parser",
        "_poll",
        "_read_count",
        "_reading_paused",
        "_request",
        "_timeouts",
        "_transport",
        "_upload",
        "_uploading",
        "_writing_paused",
        "closed",
        "keep_alive_timeout",
        "loop",
        "read_timeout",
        "received_data",
        "request_count",
    )  # fmt: skip

    def __init__(
        self, owner: ConnectionOwner, loop: asyncio.AbstractEventLoop, library: HTTPXModule = httpx
    ) -> None:
        self.request_count: int = 0
        self.received_data: bool = False
        self.closed: bool = False
        self.keep_alive_timeout: float | None = None
        self.loop: asyncio.AbstractEventLoop = loop
        self.read_timeout: float | None = None
        self._owner = owner
        self._library = library  # whose exceptions are raised
        self._transport = cast(asyncio.Transport, None)
        self._parser = ResponseParser()
        self._buffer = ReadBuffer()
        self._timeouts = Timeouts(loop, library)
        self._request = cast(OutgoingRequest, None)
        self._read_count = 0
        self._poll: Callable[[], bool] | None = None
        self._failure: BaseException | None = None
        self._upload: asyncio.Task[None] | None = None
        self._uploading = False
        self._reading_paused = self._writing_paused = False

    # The interface of one exchange.

    def send(self, request: OutgoingRequest) -> None:
        """Send a request, or start to. The caller must end the exchange in any case."""
        self.request_count += 1
        self.received_data, self._request = False, request
        self.read_timeout = request.read_timeout
        self._parser.start(request)
        if self.closed:
            self._on_eof(None)
        elif isinstance(request.content, bytes):
            self._transport.write(
                request.head + request.content if request.content else request.head
            )
            if self._writing_paused:  # the socket does not take all of it at once
                self._start_upload(_empty_body(), 0)
        else:
            self._transport.write(request.head)
            self._start_upload(request.content, request.length)

    @property
    def head(self) -> ResponseHead:
        """The response head, valid if `has_head`."""
        return self._parser.head

    @property
    def has_head(self) -> bool:
        """Whether the response head has arrived. If not, wait with `wait_readable`."""
        return self._parser.state is not ReadState.HEAD

    @property
    def is_upgraded(self) -> bool:
        """Whether the connection belongs to another protocol (a 101, or a 2xx to CONNECT)."""
        return self._parser.head.framing is ReadState.UPGRADED

    async def read(self, max_bytes: int | None = None) -> bytes:
        """Return the next body bytes, at most `max_bytes`. Empty at the end of the body."""
        self._read_count += 1
        if self._read_count % 16 == 0:
            # anyio cannot cancel a task whose future is done, which is always so while bytes
            # arrive faster than they are read.
            await asyncio.sleep(0)
        while (chunk := self.read_nowait(max_bytes)) is None:
            await self.wait_readable()
        return chunk

    def read_nowait(self, max_bytes: int | None = None) -> bytes | None:
        """Like `read`, but return None if nothing has arrived."""
        chunk = self._buffer.pop(max_bytes)
        if not chunk:
            return b"" if self._parser.state is ReadState.DONE else None
        if self._reading_paused:
            self._resume_if_drained()
        return chunk

    async def write(self, data: bytes, timeout: float | None) -> None:
        """Send bytes of a request body or of an upgraded connection."""
        if self.closed:
            raise self._library.WriteError("the connection is closed")
        self._transport.write(data)
        if self._writing_paused:
            try:
                await self._timeouts.start_writing(timeout)
            finally:
                self._timeouts.writer = None
            if self.closed:
                raise self._library.WriteError("the connection is closed")

    async def aclose(self) -> None:
        """End the exchange. Keep the connection if it can be used again, and close it otherwise."""
        if not self.release():
            upload, self._upload, self._uploading = self._upload, None, False
            self.close()
            if upload is not None:
                upload.cancel()
                await asyncio.wait([upload], timeout=1)

    def release(self) -> bool:
        """End the exchange if the connection can be used again, and return whether it can."""
        parser = self._parser
        if (
            parser.state is not ReadState.DONE
            or not parser.keep_alive
            or self._upload is not None
            or self.closed
        ):
            return False
        self.keep_alive_timeout = parser.head.keep_alive_timeout
        parser.state = ReadState.IDLE
        self._buffer.clear()
        self._owner.release(self)
        return True

    def is_reusable(self) -> bool:
        """Return whether an idle connection is open and has nothing to read.

        A busy event loop has not read what the upstream sent: the end of the connection, or bytes
        that would become the next response. With TLS, any unread byte counts. It is usually the end
        of the connection, and only the loop could decrypt it.
        """
        if self.closed or self._transport.is_closing():
            return False
        if self._poll is None:
            self._poll = _create_poll(self._transport.get_extra_info("socket"))
        return not self._poll()

    @property
    def was_idle_too_long(self) -> bool:
        """Whether the response only tells that the connection was idle (RFC 9110 15.5.9)."""
        return self.request_count > 1 and self.head.status == 408 and not self._parser.keep_alive

    def close(self) -> None:
        """Close at once, in any state."""
        if not self.closed:
            self.closed = True
            self._timeouts.cancel()
            self._transport.abort()
            self._owner.discard(self)

    def fail(self, failure: BaseException) -> None:
        """Close, and raise `failure` in the reader and the writer."""
        if self._failure is None:
            self._failure = failure
        self.close()
        self._timeouts.wake_reader()
        self._timeouts.wake_writer()

    def get_extra_info(self, name: str) -> Any:
        return self._transport.get_extra_info(name)

    def wait_readable(self) -> asyncio.Future[None]:
        """Return a future that is done when there is something to read.

        Raises:
            httpx.TransportError: At once, or when the future is awaited.
        """
        if self._failure is not None:
            raise self._failure
        # The upstream may be silent until it has the whole request.
        return self._timeouts.start_reading(None if self._uploading else self.read_timeout)

    def _resume_if_drained(self) -> None:
        if self._parser.has_more:
            return
        # After the body, keep reading so that unexpected bytes are detected.
        if self._buffer.size <= READ_BUFFER_LIMIT // 4 or not self._parser.expects_data:
            self._reading_paused = False
            if not self.closed:
                self._transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    # The upload.

    def _start_upload(self, content: AsyncIterator[bytes], length: int | None) -> None:
        self._uploading = True
        framer = BodyFramer(length, self._library.LocalProtocolError)
        self._upload = self.loop.create_task(self._send_body(content, framer))

    async def _send_body(self, content: AsyncIterator[bytes], framer: BodyFramer) -> None:
        timeout = self._request.write_timeout
        try:
            async for chunk in content:
                await self.write(framer.frame(chunk), timeout)
            if end := framer.finish():
                await self.write(end, timeout)
        except asyncio.CancelledError as exc:
            if self._uploading:  # the iterator was cancelled, and not this task
                self.fail(exc)
            raise
        except Exception as exc:
            self.fail(exc)
        else:
            self._upload, self._uploading = None, False
            if self._timeouts.reader is not None:
                self._timeouts.restart_reading(self.read_timeout)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

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
            self._upload.cancel()  # refused, so that `release` finds the upload incomplete
            self._uploading = False
        if body:
            self._buffer.append(body)
        if parser.has_more:  # give way to other tasks
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

    def eof_received(self) -> None:
        self._on_eof(None, truncated=_lacks_close_notify(self._transport))

    def connection_lost(self, exc: Exception | None) -> None:
        # uvloop does not call `eof_received` first if TLS ends without close_notify.
        self._on_eof(exc, truncated=True)

    def _on_eof(self, exc: Exception | None, *, truncated: bool = False) -> None:
        while self._parser.has_more and not self.closed:
            self._parse_more()
        closed_by_upstream = exc is None and not self.closed
        if closed_by_upstream and self._parser.feed_eof(truncated=truncated):
            pass
        elif self._parser.state is ReadState.HEAD and exc is None:
            self.fail(
                self._library.RemoteProtocolError("Server disconnected without sending a response.")
            )
        elif self._parser.state not in (ReadState.IDLE, ReadState.DONE):
            error: Exception = self._library.RemoteProtocolError(
                "peer closed connection without sending complete message body"
            )
            if exc is not None:
                error = self._library.ReadError(str(exc))
                error.__cause__ = exc  # a TLS alert is a connect error to `map_exception`
            self.fail(error)
        self.close()
        self._timeouts.wake_reader()
        self._timeouts.wake_writer()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._timeouts.wake_writer()
