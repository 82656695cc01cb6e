"""Parses HTTP/1.1 responses without I/O (RFC 9112).

`ResponseParser` takes the bytes that an upstream sends and returns the bytes of the response body.
"""

import re
from enum import Enum, auto
from typing import cast

from .._headers import TOKEN, RawHeaders
from ._serializer import OutgoingRequest

MAX_HEAD_SIZE = 64 * 1024
"""Limit in bytes of a response head together with the interim responses before it."""

MAX_HEADERS = 128

MAX_CHUNKS_AT_ONCE = 2000
"""Chunks that are decoded without a pause. They take about a millisecond."""

_KEEP_ALIVE_TIMEOUT = re.compile(
    rb"(?:^|[,;])[ \t]*timeout[ \t]*=[ \t]*\"?([0-9]{1,9})", re.IGNORECASE
)
_STATUS_LINE = re.compile(rb"(HTTP/1\.[01]) ([1-9][0-9]{2})(?: ([^\0\r\n\x0b\x0c]*))?\r?\n")
_HEADER_LINE = re.compile(rb"^(%b+):[ \t]*+([^\0-\x08\n-\x1f\x7f]*+)\r\n" % TOKEN, re.MULTILINE)
_FOLD = re.compile(rb"\r?\n[ \t]+")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,16})(?:;[^\n\r\0]*+|[ \t]*+)\r\n")
_TRAILERS = re.compile(
    rb"(?:%b++:[^\0\r\n\x0b\x0c]*+\r?\n(?:[ \t][^\0\r\n\x0b\x0c]*+\r?\n)*+)*+\r?\n" % TOKEN
)
_FRAMING_NAME_LENGTHS = frozenset(map(len, ("connection", "content-length", "transfer-encoding")))


class ReadState(Enum):
    """The part of a response that comes next on a connection."""

    IDLE = auto()
    HEAD = auto()
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()
    UPGRADED = auto()
    DONE = auto()


class ParseError(Exception):
    """The upstream did not send valid HTTP/1.1."""


class ResponseHead:
    """Status and headers of a response (RFC 9112 4 and 5), and how its body ends (RFC 9112 6.3).

    Attributes:
        framing: The state of the parser while it reads the body.
        length: The length of the body in bytes if `framing` is LENGTH.
        keep_alive: Whether the connection may be used again after the body.
        keep_alive_timeout: Seconds after which the upstream closes an idle connection, if it tells.

    Raises:
        ParseError: If `data` is not a valid head.
    """

    __slots__ = (
        "framing",
        "headers",
        "keep_alive",
        "keep_alive_timeout",
        "length",
        "reason",
        "status",
        "version",
    )

    def __init__(self, data: bytes, *, to_connect: bool = False) -> None:
        line = _STATUS_LINE.match(data)
        if line is None:
            raise ParseError("malformed status line")
        self.version: bytes = line[1]
        self.status: int = int(line[2])
        self.reason: bytes = line[3] or b""
        self.headers: RawHeaders = _HEADER_LINE.findall(data)
        # Usually every line is a header without blanks at its end. Other heads need normalizing.
        if len(self.headers) + 2 != data.count(b"\n") or b" \r" in data or b"\t\r" in data:
            self.headers = _parse_unusual_headers(data[line.end() :])
        if len(self.headers) > MAX_HEADERS:
            raise ParseError("too many headers")
        self.framing: ReadState = ReadState.UNTIL_CLOSE
        self.length: int = 0
        self.keep_alive: bool = self.version == b"HTTP/1.1"
        self.keep_alive_timeout: float | None = None
        if to_connect and 200 <= self.status < 300:  # a tunnel (RFC 9110 9.3.6)
            self.framing, self.keep_alive = ReadState.UPGRADED, False
        else:
            self._choose_framing(*self._scan_framing_headers())

    def _scan_framing_headers(self) -> tuple[bytes, bytes]:
        """Return the values of Content-Length and Transfer-Encoding, empty if absent."""
        length = codings = b""
        repeated = False
        for name, value in self.headers:
            if len(name) in _FRAMING_NAME_LENGTHS:  # a cheap test that most names fail
                key = name.lower()
                if key == b"content-length":
                    repeated = repeated or bool(length) or b"," in value
                    length = length + b"," + value if length else value or b"-"
                elif key == b"transfer-encoding":
                    codings = codings + b"," + value if codings else value or b"-"
                elif key == b"connection" and value != b"keep-alive":
                    closes = b"close" in map(bytes.strip, value.lower().split(b","))
                    self.keep_alive = self.keep_alive and not closes
                elif key == b"keep-alive" and (timeout := _KEEP_ALIVE_TIMEOUT.search(value)):
                    self.keep_alive_timeout = float(timeout[1])
        if repeated and not codings:
            length = self._merge_lengths(length)
        return length, codings

    def _choose_framing(self, length: bytes, codings: bytes) -> None:
        if codings and (length or codings.lower() != b"chunked"):
            raise ParseError(
                "unsupported Transfer-Encoding, or both Transfer-Encoding and Content-Length"
            )
        if length and not (length.isdigit() and len(length) < 20):
            raise ParseError("bad Content-Length")
        if self.status == 101:
            self.framing = ReadState.UPGRADED
        elif self.status in (204, 304):
            self.framing = ReadState.LENGTH
        elif codings:
            self.framing = ReadState.CHUNKED
        elif length:
            self.framing, self.length = ReadState.LENGTH, int(length)

    def _merge_lengths(self, lengths: bytes) -> bytes:
        """Replace several equal Content-Lengths with one (RFC 9110 8.6)."""
        values = {value.strip(b" \t") for value in lengths.split(b",")}
        if len(values) > 1:
            raise ParseError("conflicting Content-Length")
        length = values.pop()
        names = [name.lower() for name, _ in self.headers]
        first = names.index(b"content-length")
        self.headers[first] = (self.headers[first][0], length)
        rest = zip(names[first + 1 :], self.headers[first + 1 :], strict=True)
        self.headers[first + 1 :] = [h for name, h in rest if name != b"content-length"]
        return length


def _parse_unusual_headers(lines: bytes) -> RawHeaders:
    """Parse headers that are folded, end in a bare LF or have blanks at their end."""
    if lines[:1] in b" \t":
        raise ParseError("whitespace before the first header")
    lines = _FOLD.sub(b" ", lines)  # RFC 9112 5.2
    lines = _BARE_LF.sub(b"\r\n", lines)  # RFC 9112 2.2
    headers: RawHeaders = _HEADER_LINE.findall(lines)
    if len(headers) + 1 != lines.count(b"\n"):
        raise ParseError("malformed header")
    return [(name, value.rstrip(b" \t")) for name, value in headers]


class _ChunkState(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILERS = auto()


class ChunkedDecoder:
    """Decodes the chunked transfer coding (RFC 9112 7.1).

    Attributes:
        done: Whether the trailers have ended.
        excess: Bytes after the end, which do not belong to the body.
        has_more: Whether `feed` stopped early and must be called again, with or without data.
    """

    __slots__ = ("_pending", "_remaining", "_state", "done", "excess", "has_more")

    def __init__(self) -> None:
        self.done = False
        self.excess = b""
        self.has_more = False
        self._state = _ChunkState.SIZE
        self._pending = b""  # an incomplete line
        self._remaining = 0  # bytes to come of the chunk

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes in `data`, of `MAX_CHUNKS_AT_ONCE` chunks at most.

        Body bytes before an error are returned first.

        Raises:
            ParseError: If the coding is malformed.
        """
        self.has_more = False
        if self._pending:
            data, self._pending = self._pending + data, b""
        body: list[bytes] = []
        position, size = 0, len(data)
        end: int | None
        while position < size and not self.done:
            if self._state is _ChunkState.SIZE:
                end = self._read_chunks(data, position, body)
            elif self._state is _ChunkState.DATA:
                chunk = data[position : position + self._remaining]
                body.append(chunk)
                self._remaining -= len(chunk)
                if not self._remaining:
                    self._state = _ChunkState.DATA_END
                end = position + len(chunk)
            else:
                try:
                    end = self._read_end(data, position)
                except ParseError:
                    if not body:
                        raise
                    self.has_more, end = True, None
            if end is None:
                self._pending = data[position:]
                break
            position = end
        if len(self._pending) > MAX_HEAD_SIZE and not self.has_more:
            raise ParseError("the chunk's head or the trailer is too large")
        self.excess = data[position:] if self.done else b""
        return body[0] if len(body) == 1 else b"".join(body)

    def _read_chunks(self, data: bytes, position: int, body: list[bytes]) -> int:
        """Read whole chunks and the size of an incomplete one, and return the end."""
        while True:
            line = _CHUNK_LINE.match(data, position)
            if line is None or len(body) >= MAX_CHUNKS_AT_ONCE:
                malformed = line is None and data.find(b"\n", position) >= 0
                if malformed and not body:
                    raise ParseError("malformed chunk size")
                self.has_more = malformed or line is not None
                self._pending = data[position:]
                return len(data)
            start = line.end()
            length = int(line[1], 16)
            if not length:
                self._state = _ChunkState.TRAILERS
                return start
            end = start + length
            if data[end : end + 2] != b"\r\n":
                self._remaining, self._state = length, _ChunkState.DATA
                return start
            body.append(data[start:end])
            position = end + 2

    def _read_end(self, data: bytes, position: int) -> int | None:
        """Read the end of a chunk or of the body, and return its end. None if it is incomplete."""
        if self._state is _ChunkState.TRAILERS:
            return self._read_trailers(data, position)
        line_end = data[position : position + 2]
        if not b"\r\n".startswith(line_end):
            raise ParseError("malformed chunk")
        if len(line_end) < 2:
            return None
        self._state = _ChunkState.SIZE
        return position + 2

    def _read_trailers(self, data: bytes, position: int) -> int | None:
        trailers = _TRAILERS.match(data, position)
        if trailers is None:
            if _END_OF_HEAD.search(data, position):
                raise ParseError("malformed trailer")
            return None
        self.done = True
        return trailers.end()


class ResponseParser:
    """Parses the responses of one connection, one after the other.

    Attributes:
        state: The part of the response that comes next.
        head: The head of the response, valid if `state` is past HEAD.
        keep_alive: Whether the connection may be used again after this response.
    """

    __slots__ = (
        "_chunked",
        "_head_data",
        "_interim_size",
        "_remaining",
        "_request",
        "head",
        "keep_alive",
        "state",
    )

    def __init__(self) -> None:
        self.state: ReadState = ReadState.IDLE
        self.head: ResponseHead = cast(ResponseHead, None)
        self.keep_alive: bool = False
        self._request = cast(OutgoingRequest, None)
        self._head_data = b""  # an incomplete head
        self._interim_size = 0  # bytes of interim responses
        self._remaining = 0  # bytes to come of a body with a length
        self._chunked = cast(ChunkedDecoder, None)

    @property
    def expects_data(self) -> bool:
        """Whether the upstream may send bytes now."""
        return self.state not in (ReadState.IDLE, ReadState.DONE)

    @property
    def has_more(self) -> bool:
        """Whether `feed` stopped early and must be called again, with or without data."""
        return self.state is ReadState.CHUNKED and self._chunked.has_more

    def start(self, request: OutgoingRequest) -> None:
        """Expect the response to `request`."""
        self.state, self._request = ReadState.HEAD, request
        self._head_data, self._interim_size = b"", 0

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes in `data`.

        Raises:
            ParseError: If the response is malformed.
        """
        if self.state is ReadState.HEAD:
            rest = self._feed_head(self._head_data + data if self._head_data else data)
            if rest is None:
                return b""
            data = rest
        if self.state is ReadState.LENGTH:
            return self._feed_fixed_length(data)
        if self.state is ReadState.CHUNKED:
            return self._feed_chunked(data)
        return data

    def feed_eof(self, *, truncated: bool = False) -> bool:
        """Return whether the response may end here, and end it if so.

        Arguments:
            truncated: Whether TLS did not confirm the end, so that bytes may be missing
                (RFC 9112 9.8).
        """
        if self.state is ReadState.UPGRADED or (
            self.state is ReadState.UNTIL_CLOSE and not truncated
        ):
            self.state, self.keep_alive = ReadState.DONE, False
        return self.state in (ReadState.IDLE, ReadState.DONE)

    def _feed_head(self, data: bytes) -> bytes | None:
        """Return the bytes after the head. None if the head is incomplete."""
        while True:
            end = _END_OF_HEAD.search(data)
            if self._interim_size + (end.end() if end else len(data)) > MAX_HEAD_SIZE:
                raise ParseError("response head exceeds 64 KiB")
            if end is None:
                if not b"HTTP/".startswith(data[:5]):
                    raise ParseError("not HTTP")
                self._head_data = data
                return None
            if self._request.method == "CONNECT":
                head = ResponseHead(data[: end.end()], to_connect=True)
            else:
                head = parse_head(data[: end.end()])
            data = data[end.end() :]
            if head.status == 101 and b"\r\nupgrade:" not in self._request.head.lower():
                raise ParseError("unexpected 101 Switching Protocols")
            if head.status >= 200 or head.status == 101:
                break
            self._interim_size += end.end()  # an interim response (RFC 9110 15.2)
        self._head_data = b""
        self.head, self.state, self._remaining = head, head.framing, head.length
        self.keep_alive = head.keep_alive and not self._request.connection_close
        if self._request.method == "HEAD" and head.status != 101:
            self.state, self._remaining = ReadState.LENGTH, 0
        elif self.state is ReadState.CHUNKED:
            self._chunked = ChunkedDecoder()
        return data

    def _feed_fixed_length(self, data: bytes) -> bytes:
        if len(data) > self._remaining:
            self.keep_alive = False  # unexpected bytes must not become the next response
            data = data[: self._remaining]
        self._remaining -= len(data)
        if not self._remaining:
            self.state = ReadState.DONE
        return data

    def _feed_chunked(self, data: bytes) -> bytes:
        body = self._chunked.feed(data)
        if self._chunked.done:
            self.state = ReadState.DONE
            self.keep_alive = self.keep_alive and not self._chunked.excess
        return body


_CACHEABLE_HEADERS = frozenset(
    b"accept-ranges age cache-control connection content-encoding content-language content-length "
    b"content-type date etag expires keep-alive last-modified pragma server transfer-encoding vary "
    b"via x-accel-buffering x-content-type-options".split()
)
_MAX_CACHED_HEADS = 64
_MAX_CACHED_HEAD_SIZE = 1024
_heads: dict[bytes, ResponseHead] = {}


def parse_head(data: bytes) -> ResponseHead:
    """Parse a response head. The result is shared and must not be changed.

    A busy upstream repeats its heads until Date changes, so the last ones are cached. The cache
    keeps only small heads whose header names are known not to carry secrets.

    Raises:
        ParseError: If `data` is not a valid head.
    """
    head = _heads.get(data)
    if head is None:
        head = ResponseHead(data)
        if len(data) <= _MAX_CACHED_HEAD_SIZE and _CACHEABLE_HEADERS.issuperset(
            [name.lower() for name, _ in head.headers]
        ):
            if len(_heads) >= _MAX_CACHED_HEADS:
                _heads.clear()
            _heads[data] = head
    return head
