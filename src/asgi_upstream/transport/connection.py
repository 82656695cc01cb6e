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

from ..libraries import Library
from .messages import Broken, Head, Outgoing, Phase, head_of

MOST_UNREAD = 256 * 1024
"""Bytes that may wait for a slow reader before reading from the socket pauses."""

MOST_HEAD = 64 * 1024
"""Bytes of the head of a response, with those of the interim responses before it."""

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,16})(?:;[^\n\r\0]*+|[ \t]*+)\r\n")
_TRAILERS = re.compile(
    rb"(?:[-!#$%&'*+.^_`|~0-9a-zA-Z]++:[^\0\r\n\x0b\x0c]*+\r?\n"
    rb"(?:[ \t][^\0\r\n\x0b\x0c]*+\r?\n)*+)*+\r?\n"
)


async def _nothing_more() -> AsyncIterator[bytes]:
    yield b""


class Owner(Protocol):
    """Who is told what becomes of a connection: the pool."""

    def release(self, connection: "Connection") -> None: ...
    def lost(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    __slots__ = (
        "_data", "_failure", "_in_trailers", "_interim", "_left", "_library", "_out", "_owner",
        "_phase", "_pieces", "_read_by", "_reader", "_reading_paused", "_reads", "_reusable",
        "_timer", "_transport", "_unread", "_upload", "_uploading", "_write_by", "_writer",
        "_writing_paused", "answered", "closed", "exchanges", "head", "loop", "read_timeout",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, loop: asyncio.AbstractEventLoop, library: Library = httpx
    ) -> None:
        self.exchanges: int = 0
        self.answered: bool = False  # with at least a byte, in this exchange
        self.closed: bool = False
        self._owner = owner
        self._library = library  # whose exceptions are raised
        self.loop: asyncio.AbstractEventLoop = loop
        self._transport = cast(asyncio.Transport, None)
        self._phase = Phase.IDLE
        self._out = cast(Outgoing, None)
        self.head: Head = cast(Head, None)  # of the response, once `has_head`
        self.read_timeout: float | None = None
        self._reusable = False
        self._data = b""  # received, and not yet understood
        self._interim = 0  # bytes of interim responses
        self._left = 0  # bytes to come of the body, or of the chunk and its CRLF
        self._in_trailers = False
        self._pieces: list[bytes] = []  # of the body, and not yet read
        self._unread = 0  # bytes in them
        self._reads = 0
        self._failure: BaseException | None = None
        self._upload: asyncio.Task[None] | None = None
        self._uploading = False
        self._reading_paused = self._writing_paused = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._read_by = self._write_by = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # One exchange, as its user sees it.

    def send(self, out: Outgoing) -> None:
        """Send a request, or begin to; `finish` must be called, however this goes on."""
        self.exchanges += 1
        self.answered, self._phase, self._out = False, Phase.HEAD, out
        self._interim = 0
        self.read_timeout = out.read_timeout
        if self.closed:
            self._end(None)
        elif isinstance(out.content, bytes):
            self._transport.write(out.head + out.content if out.content else out.head)
            if self._writing_paused:  # it is more than the socket takes at once
                self._upload_from(_nothing_more(), 0)
        else:
            self._transport.write(out.head)
            self._upload_from(out.content, out.length)

    @property
    def has_head(self) -> bool:
        """Whether the head of the response is there; if not, wait until `readable`."""
        return self._phase is not Phase.HEAD

    async def read(self, most: int | None = None) -> bytes:
        """The next bytes of the body, at most so many; none at its end."""
        self._reads += 1
        if self._reads % 16 == 0:
            # anyio cancels no task whose future is done, as it always is while bytes pour in.
            await asyncio.sleep(0)
        while (piece := self.take(most)) is None:
            await self.readable()
        return piece

    def take(self, most: int | None = None) -> bytes | None:
        """What `read` returns, if that is there already."""
        pieces = self._pieces
        if not pieces:
            return b"" if self._phase is Phase.DONE else None
        if len(pieces) == 1 or len(pieces[0]) > 32768:
            piece = pieces.pop(0)
        else:
            piece = b"".join(pieces)
            pieces.clear()
        if most is not None and len(piece) > most:
            pieces.insert(0, piece[most:])
            piece = piece[:most]
        self._unread -= len(piece)
        if self._reading_paused and self._unread <= MOST_UNREAD // 4:
            self._resume_reading()
        return piece

    async def write(self, data: bytes, timeout: float | None) -> None:
        """Send bytes of an upload, or of a connection that was upgraded."""
        if self.closed:
            raise self._library.WriteError("the connection is closed")
        self._transport.write(data)
        if self._writing_paused:
            self._writer = self.loop.create_future()
            self._write_by = self._deadline(timeout)
            try:
                await self._writer
            finally:
                self._writer = None
            if self.closed:
                raise self._library.WriteError("the connection is closed")

    async def finish(self) -> None:
        """End the exchange: keep the connection if it is clean, and close it if not."""
        if not self.keep():
            upload, self._upload, self._uploading = self._upload, None, False
            self.close()
            if upload is not None:
                upload.cancel()
                await asyncio.wait([upload], timeout=1)

    def keep(self) -> bool:
        """End the exchange if the connection is clean, and say whether it is."""
        if (
            self._phase is not Phase.DONE
            or not self._reusable
            or self._upload is not None
            or self.closed
        ):
            return False
        self._phase = Phase.IDLE
        if self._pieces:
            self._pieces.clear()
        self._data, self._unread = b"", 0
        self._owner.release(self)
        return True

    def close(self) -> None:
        """Close at once, from any phase."""
        if not self.closed:
            self.closed = True
            if self._timer is not None:
                self._timer.cancel()
            self._transport.abort()
            self._owner.lost(self)

    def get_extra_info(self, name: str) -> Any:
        return self._transport.get_extra_info(name)

    # Waiting, with one timer for both directions.

    def readable(self) -> asyncio.Future[None]:
        """Done when there is something to read.

        Raises:
            httpx.TransportError: at once, or when it is awaited.
        """
        if self._failure is not None:
            raise self._failure
        self._reader = self.loop.create_future()
        # While an upload goes on, the upstream may well be silent.
        self._read_by = self._deadline(None if self._uploading else self.read_timeout)
        return self._reader

    def _deadline(self, timeout: float | None) -> float:
        if timeout is None:
            return math.inf
        deadline = self.loop.time() + timeout
        if self._timer is not None and self._timer.when() > deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(deadline, self._look_at_the_time)
        return deadline

    def _look_at_the_time(self) -> None:
        self._timer = None
        now, first = self.loop.time(), math.inf
        if self._reader is not None and not self._reader.done():
            if self._read_by <= now:
                self._reader.set_exception(self._library.ReadTimeout(""))
            else:
                first = self._read_by
        if self._writer is not None and not self._writer.done():
            if self._write_by <= now:
                self._writer.set_exception(self._library.WriteTimeout(""))
            else:
                first = min(first, self._write_by)
        if first < math.inf:
            self._timer = self.loop.call_at(first, self._look_at_the_time)

    def _wake(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _resume_reading(self) -> None:
        self._reading_paused = False
        if not self.closed:
            self._transport.resume_reading()

    # The upload.

    def _upload_from(self, content: AsyncIterator[bytes], left: int | None) -> None:
        self._uploading = True
        self._upload = self.loop.create_task(self._send(content, left))

    async def _send(self, content: AsyncIterator[bytes], left: int | None) -> None:
        timeout = self._out.write_timeout
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
                self._read_by = self._deadline(self.read_timeout)

    # What comes from the upstream.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.answered = True
        try:
            if self._phase is Phase.LENGTH:
                self._read_length(data)
            elif self._phase is Phase.CHUNKED:
                self._read_chunks(self._data + data if self._data else data)
            elif self._phase is Phase.HEAD:
                self._read_head(self._data + data if self._data else data)
            elif self._phase in (Phase.UNTIL_CLOSE, Phase.UPGRADED):
                self._deliver(data)
            else:  # bytes that nobody asked for
                self.close()
                return
        except Broken as exc:
            self.fail(self._library.RemoteProtocolError(str(exc)))
        self._wake(self._reader)

    def _read_head(self, data: bytes) -> None:
        while self._phase is Phase.HEAD:
            end = _END_OF_HEAD.search(data)
            if self._interim + (end.end() if end else len(data)) > MOST_HEAD:
                raise Broken("the head is too large")
            if end is None:
                if not b"HTTP/".startswith(data[:5]):
                    raise Broken("not HTTP")
                self._data = data
                return
            head = head_of(data[: end.end()])
            data = data[end.end() :]
            if head.status == 101 and b"\r\nupgrade:" not in self._out.head.lower():
                raise Broken("it switched protocols, and nobody had asked for that")
            if head.status < 200 and head.status != 101:  # interim (RFC 9110 15.2)
                self._interim += end.end()
                continue
            self.head, self._phase = head, head.phase
            self._left, self._reusable = head.length, head.keeps and not self._out.closes
            if self._out.method == "HEAD" and head.status != 101:
                self._phase, self._left = Phase.LENGTH, 0
        self._data = b""
        if self._upload is not None and self.head.status >= 300:
            self._upload.cancel()  # it is refused; `finish` sees that it is not whole
            self._uploading = False
        if self._phase is Phase.LENGTH:
            self._read_length(data)
        elif self._phase is Phase.CHUNKED:
            self._read_chunks(data)
        elif data:
            self._deliver(data)

    def _read_length(self, data: bytes) -> None:
        if len(data) > self._left:
            self._reusable = False  # no byte crosses to the next exchange
            data = data[: self._left]
        self._left -= len(data)
        if not self._left:
            self._phase = Phase.DONE
        if data:
            self._deliver(data)

    def _read_chunks(self, data: bytes) -> None:
        """RFC 9112 7.1."""
        at = 0
        while at < len(data):
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                self._left -= len(piece)
                at += len(piece)
                self._deliver(piece)
            elif self._left:
                ending = data[at : at + self._left]
                if not b"\r\n"[2 - self._left :].startswith(ending):
                    raise Broken("malformed chunk")
                self._left -= len(ending)
                at += len(ending)
            elif self._in_trailers:
                end = _TRAILERS.match(data, at)
                if end is None:
                    if _END_OF_HEAD.search(data, at):
                        raise Broken("malformed trailer")
                    break
                self._in_trailers = False
                self._phase = Phase.DONE
                if self._reading_paused:
                    self._resume_reading()
                self._reusable = self._reusable and end.end() == len(data)
                self._data = b""
                return
            else:
                line = _CHUNK_LINE.match(data, at)
                if line is None:
                    if b"\n" in data[at:]:
                        raise Broken("malformed chunk size")
                    break
                size, at = int(line[1], 16), line.end()
                self._in_trailers = not size
                self._left = size + 2 if size else 0
        self._data = data[at:]
        if len(self._data) > MOST_HEAD:
            raise Broken("the chunk's head or the trailer is too large")

    def _deliver(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._unread += len(piece)
        # After the end of the body nothing more should come, and what does is to be noticed.
        if (
            self._unread > MOST_UNREAD
            and self._phase is not Phase.DONE
            and not self._reading_paused
        ):
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def _end(self, exc: Exception | None) -> None:
        whole = exc is None and not self.closed  # by the upstream, not by us
        if whole and self._phase in (Phase.UNTIL_CLOSE, Phase.UPGRADED):
            self._phase, self._reusable = Phase.DONE, False
        elif self._phase is Phase.HEAD and exc is None:
            self.fail(
                self._library.RemoteProtocolError("Server disconnected without sending a response.")
            )
        elif self._phase not in (Phase.IDLE, Phase.DONE):
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
