"""One HTTP/1.1 connection to an upstream (RFC 9112), as an asyncio protocol.

A connection carries one exchange at a time, in phases: IDLE, HEAD, a body (LENGTH, CHUNKED or
UNTIL_CLOSE), DONE, and IDLE again; or UPGRADED, where its bytes are somebody else's. At anything
that is not as it should be it is closed, and every exchange ends in `finish`.
"""

import asyncio
import math
import re
from collections.abc import AsyncIterator
from typing import Any, Protocol, cast

import httpx

from .._httpx.flavors import HTTPXModule
from ._parser import ParseError, ReadState, ResponseHead, parse_head
from ._serializer import OutgoingRequest

READ_BUFFER_LIMIT = 256 * 1024
"""Bytes that may wait for a slow reader before reading from the socket pauses."""

MAX_HEAD_SIZE = 64 * 1024
"""Bytes of the head of a response, with those of the interim responses before it."""

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,16})(?:;[^\n\r\0]*+|[ \t]*+)\r\n")
_TRAILERS = re.compile(
    rb"(?:[-!#$%&'*+.^_`|~0-9a-zA-Z]++:[^\0\r\n\x0b\x0c]*+\r?\n"
    rb"(?:[ \t][^\0\r\n\x0b\x0c]*+\r?\n)*+)*+\r?\n"
)


async def _empty_body() -> AsyncIterator[bytes]:
    yield b""


class ConnectionOwner(Protocol):
    """Who is told what becomes of a connection: the pool."""

    def release(self, connection: "HTTP11Connection") -> None: ...
    def discard(self, connection: "HTTP11Connection") -> None: ...


class HTTP11Connection(asyncio.Protocol):
    __slots__ = (
        "_buffered",
        "_chunks",
        "_data",
        "_failure",
        "_in_trailers",
        "_interim",
        "_library",
        "_owner",
        "_phase",
        "_read_count",
        "_read_deadline",
        "_reader",
        "_reading_paused",
        "_remaining",
        "_request",
        "_reusable",
        "_timer",
        "_transport",
        "_upload",
        "_uploading",
        "_write_deadline",
        "_writer",
        "_writing_paused",
        "closed",
        "head",
        "loop",
        "read_timeout",
        "received_data",
        "request_count",
    )  # fmt: skip

    def __init__(
        self, owner: ConnectionOwner, loop: asyncio.AbstractEventLoop, library: HTTPXModule = httpx
    ) -> None:
        self.request_count: int = 0
        self.received_data: bool = False  # with at least a byte, in this exchange
        self.closed: bool = False
        self._owner = owner
        self._library = library  # whose exceptions are raised
        self.loop: asyncio.AbstractEventLoop = loop
        self._transport = cast(asyncio.Transport, None)
        self._phase = ReadState.IDLE
        self._request = cast(OutgoingRequest, None)
        self.head: ResponseHead = cast(ResponseHead, None)  # of the response, once `has_head`
        self.read_timeout: float | None = None
        self._reusable = False
        self._data = b""  # received, and not yet understood
        self._interim = 0  # bytes of interim responses
        self._remaining = 0  # bytes to come of the body, or of the chunk and its CRLF
        self._in_trailers = False
        self._chunks: list[bytes] = []  # of the body, and not yet read
        self._buffered = 0  # bytes in them
        self._read_count = 0
        self._failure: BaseException | None = None
        self._upload: asyncio.Task[None] | None = None
        self._uploading = False
        self._reading_paused = self._writing_paused = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._read_deadline = self._write_deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # One exchange, as its user sees it.

    def send(self, out: OutgoingRequest) -> None:
        """Send a request, or begin to; `finish` must be called, however this goes on."""
        self.request_count += 1
        self.received_data, self._phase, self._request = False, ReadState.HEAD, out
        self._interim = 0
        self.read_timeout = out.read_timeout
        if self.closed:
            self._on_eof(None)
        elif isinstance(out.content, bytes):
            self._transport.write(out.head + out.content if out.content else out.head)
            if self._writing_paused:  # it is more than the socket takes at once
                self._start_upload(_empty_body(), 0)
        else:
            self._transport.write(out.head)
            self._start_upload(out.content, out.length)

    @property
    def has_head(self) -> bool:
        """Whether the head of the response is there; if not, wait until `readable`."""
        return self._phase is not ReadState.HEAD

    async def read(self, most: int | None = None) -> bytes:
        """The next bytes of the body, at most so many; none at its end."""
        self._read_count += 1
        if self._read_count % 16 == 0:
            # anyio cancels no task whose future is done, as it always is while bytes pour in.
            await asyncio.sleep(0)
        while (piece := self.read_nowait(most)) is None:
            await self.wait_readable()
        return piece

    def read_nowait(self, most: int | None = None) -> bytes | None:
        """What `read` returns, if that is there already."""
        pieces = self._chunks
        if not pieces:
            return b"" if self._phase is ReadState.DONE else None
        if len(pieces) == 1 or len(pieces[0]) > 32768:
            piece = pieces.pop(0)
        else:
            piece = b"".join(pieces)
            pieces.clear()
        if most is not None and len(piece) > most:
            pieces.insert(0, piece[most:])
            piece = piece[:most]
        self._buffered -= len(piece)
        if self._reading_paused and self._buffered <= READ_BUFFER_LIMIT // 4:
            self._resume_reading()
        return piece

    async def write(self, data: bytes, timeout: float | None) -> None:
        """Send bytes of an upload, or of a connection that was upgraded."""
        if self.closed:
            raise self._library.WriteError("the connection is closed")
        self._transport.write(data)
        if self._writing_paused:
            self._writer = self.loop.create_future()
            self._write_deadline = self._arm_timer(timeout)
            try:
                await self._writer
            finally:
                self._writer = None
            if self.closed:
                raise self._library.WriteError("the connection is closed")

    async def aclose(self) -> None:
        """End the exchange: keep the connection if it is clean, and close it if not."""
        if not self.release():
            upload, self._upload, self._uploading = self._upload, None, False
            self.close()
            if upload is not None:
                upload.cancel()
                await asyncio.wait([upload], timeout=1)

    def release(self) -> bool:
        """End the exchange if the connection is clean, and say whether it is."""
        if (
            self._phase is not ReadState.DONE
            or not self._reusable
            or self._upload is not None
            or self.closed
        ):
            return False
        self._phase = ReadState.IDLE
        if self._chunks:
            self._chunks.clear()
        self._data, self._buffered = b"", 0
        self._owner.release(self)
        return True

    def close(self) -> None:
        """Close at once, from any phase."""
        if not self.closed:
            self.closed = True
            if self._timer is not None:
                self._timer.cancel()
            self._transport.abort()
            self._owner.discard(self)

    def get_extra_info(self, name: str) -> Any:
        return self._transport.get_extra_info(name)

    # Waiting, with one timer for both directions.

    def wait_readable(self) -> asyncio.Future[None]:
        """Done when there is something to read.

        Raises:
            httpx.TransportError: at once, or when it is awaited.
        """
        if self._failure is not None:
            raise self._failure
        self._reader = self.loop.create_future()
        # While an upload goes on, the upstream may well be silent.
        self._read_deadline = self._arm_timer(None if self._uploading else self.read_timeout)
        return self._reader

    def _arm_timer(self, timeout: float | None) -> float:
        if timeout is None:
            return math.inf
        deadline = self.loop.time() + timeout
        if self._timer is not None and self._timer.when() > deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(deadline, self._on_timer)
        return deadline

    def _on_timer(self) -> None:
        self._timer = None
        now, first = self.loop.time(), math.inf
        if self._reader is not None and not self._reader.done():
            if self._read_deadline <= now:
                self._reader.set_exception(self._library.ReadTimeout(""))
            else:
                first = self._read_deadline
        if self._writer is not None and not self._writer.done():
            if self._write_deadline <= now:
                self._writer.set_exception(self._library.WriteTimeout(""))
            else:
                first = min(first, self._write_deadline)
        if first < math.inf:
            self._timer = self.loop.call_at(first, self._on_timer)

    def _wake(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _resume_reading(self) -> None:
        self._reading_paused = False
        if not self.closed:
            self._transport.resume_reading()

    # The upload.

    def _start_upload(self, content: AsyncIterator[bytes], left: int | None) -> None:
        self._uploading = True
        self._upload = self.loop.create_task(self._send_body(content, left))

    async def _send_body(self, content: AsyncIterator[bytes], left: int | None) -> None:
        timeout = self._request.write_timeout
        try:
            async for part in content:
                if left is None:
                    data = b"%x\r\n%b\r\n" % (len(part), part) if part else b""
                else:
                    left, data = left - len(part), part
                    if left < 0:
                        raise self._library.LocalProtocolError(
                            "more content than Content-Length says"
                        )
                await self.write(data, timeout)
            if left is None:
                await self.write(b"0\r\n\r\n", timeout)
            elif left:
                raise self._library.LocalProtocolError("less content than Content-Length says")
        except asyncio.CancelledError as exc:
            if self._uploading:  # what makes the content was cancelled, and not this
                self.fail(exc)
            raise
        except Exception as exc:
            self.fail(exc)
        else:
            self._upload, self._uploading = None, False
            if self._reader is not None:
                self._read_deadline = self._arm_timer(self.read_timeout)

    # What comes from the upstream.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received_data = True
        try:
            if self._phase is ReadState.LENGTH:
                self._read_fixed_length(data)
            elif self._phase is ReadState.CHUNKED:
                self._read_chunked(self._data + data if self._data else data)
            elif self._phase is ReadState.HEAD:
                self._read_head(self._data + data if self._data else data)
            elif self._phase in (ReadState.UNTIL_CLOSE, ReadState.UPGRADED):
                self._append_body(data)
            else:  # bytes that nobody asked for
                self.close()
                return
        except ParseError as exc:
            self.fail(self._library.RemoteProtocolError(str(exc)))
        self._wake(self._reader)

    def _read_head(self, data: bytes) -> None:
        while self._phase is ReadState.HEAD:
            end = _END_OF_HEAD.search(data)
            if self._interim + (end.end() if end else len(data)) > MAX_HEAD_SIZE:
                raise ParseError("response head exceeds 64 KiB")
            if end is None:
                if not b"HTTP/".startswith(data[:5]):
                    raise ParseError("not HTTP")
                self._data = data
                return
            head = parse_head(data[: end.end()])
            data = data[end.end() :]
            if head.status == 101 and b"\r\nupgrade:" not in self._request.head.lower():
                raise ParseError("unexpected 101 Switching Protocols")
            if head.status < 200 and head.status != 101:  # interim (RFC 9110 15.2)
                self._interim += end.end()
                continue
            self.head, self._phase = head, head.phase
            self._remaining, self._reusable = (
                head.length,
                head.keep_alive and not self._request.connection_close,
            )
            if self._request.method == "HEAD" and head.status != 101:
                self._phase, self._remaining = ReadState.LENGTH, 0
        self._data = b""
        if self._upload is not None and self.head.status >= 300:
            self._upload.cancel()  # it is refused; `finish` sees that it is not whole
            self._uploading = False
        if self._phase is ReadState.LENGTH:
            self._read_fixed_length(data)
        elif self._phase is ReadState.CHUNKED:
            self._read_chunked(data)
        elif data:
            self._append_body(data)

    def _read_fixed_length(self, data: bytes) -> None:
        if len(data) > self._remaining:
            self._reusable = False  # no byte crosses to the next exchange
            data = data[: self._remaining]
        self._remaining -= len(data)
        if not self._remaining:
            self._phase = ReadState.DONE
        if data:
            self._append_body(data)

    def _read_chunked(self, data: bytes) -> None:
        """RFC 9112 7.1."""
        at = 0
        while at < len(data):
            if self._remaining > 2:
                piece = data[at : at + self._remaining - 2]
                self._remaining -= len(piece)
                at += len(piece)
                self._append_body(piece)
            elif self._remaining:
                ending = data[at : at + self._remaining]
                if not b"\r\n"[2 - self._remaining :].startswith(ending):
                    raise ParseError("malformed chunk")
                self._remaining -= len(ending)
                at += len(ending)
            elif self._in_trailers:
                end = _TRAILERS.match(data, at)
                if end is None:
                    if _END_OF_HEAD.search(data, at):
                        raise ParseError("malformed trailer")
                    break
                self._in_trailers = False
                self._phase = ReadState.DONE
                if self._reading_paused:
                    self._resume_reading()
                self._reusable = self._reusable and end.end() == len(data)
                self._data = b""
                return
            else:
                line = _CHUNK_LINE.match(data, at)
                if line is None:
                    if b"\n" in data[at:]:
                        raise ParseError("malformed chunk size")
                    break
                size, at = int(line[1], 16), line.end()
                self._in_trailers = not size
                self._remaining = size + 2 if size else 0
        self._data = data[at:]
        if len(self._data) > MAX_HEAD_SIZE:
            raise ParseError("the chunk's head or the trailer is too large")

    def _append_body(self, piece: bytes) -> None:
        self._chunks.append(piece)
        self._buffered += len(piece)
        # After the end of the body nothing more should come, and what does is to be noticed.
        if (
            self._buffered > READ_BUFFER_LIMIT
            and self._phase is not ReadState.DONE
            and not self._reading_paused
        ):
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self._on_eof(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_eof(exc)

    def _on_eof(self, exc: Exception | None) -> None:
        clean_eof = exc is None and not self.closed  # by the upstream, not by us
        if clean_eof and self._phase in (ReadState.UNTIL_CLOSE, ReadState.UPGRADED):
            self._phase, self._reusable = ReadState.DONE, False
        elif self._phase is ReadState.HEAD and exc is None:
            self.fail(
                self._library.RemoteProtocolError("Server disconnected without sending a response.")
            )
        elif self._phase not in (ReadState.IDLE, ReadState.DONE):
            self.fail(
                self._library.ReadError(str(exc))
                if exc is not None
                else self._library.RemoteProtocolError(
                    "peer closed connection without sending complete message body"
                )
            )
        self.close()
        self._wake(self._reader)
        self._wake(self._writer)

    def fail(self, failure: BaseException) -> None:
        """Close, and tell whoever reads or writes why."""
        if self._failure is None:
            self._failure = failure
        self.close()
        self._wake(self._reader)
        self._wake(self._writer)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._wake(self._writer)
