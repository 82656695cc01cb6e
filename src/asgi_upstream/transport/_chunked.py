"""Decodes the chunked transfer coding without I/O (RFC 9112 7.1)."""

import re
from enum import Enum, auto
from typing import Final

from .._headers import TOKEN
from ._header_lines import ParseError
from ._response_head import MAX_HEAD_SIZE

MAX_CHUNKS_AT_ONCE = 2000
"""Chunks that are decoded without a pause. They take about a millisecond."""

_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,16})(?:;[^\n\r\0]*+|[ \t]*+)\r\n")
_TRAILERS = re.compile(
    rb"(?:%b++:[^\0\r\n\x0b\x0c]*+\r?\n(?:[ \t][^\0\r\n\x0b\x0c]*+\r?\n)*+)*+\r?\n" % TOKEN
)
_END_OF_TRAILERS = re.compile(rb"\n\r?\n")


class _ChunkState(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILERS = auto()


# Python 3.11 looks up the members of an enum slowly, and each chunk needs these.
_SIZE: Final = _ChunkState.SIZE
_DATA: Final = _ChunkState.DATA


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
        self._state: _ChunkState = _SIZE
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
            if self._state is _SIZE:
                end = self._read_chunks(data, position, body)
            elif self._state is _DATA:
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
                self._remaining, self._state = length, _DATA
                return start
            body.append(data[start:end])
            position = end + 2
            if position == len(data):
                return position

    def _read_end(self, data: bytes, position: int) -> int | None:
        """Read the end of a chunk or of the body, and return its end. None if it is incomplete."""
        if self._state is _ChunkState.TRAILERS:
            return self._read_trailers(data, position)
        line_end = data[position : position + 2]
        if not b"\r\n".startswith(line_end):
            raise ParseError("malformed chunk")
        if len(line_end) < 2:
            return None
        self._state = _SIZE
        return position + 2

    def _read_trailers(self, data: bytes, position: int) -> int | None:
        trailers = _TRAILERS.match(data, position)
        if trailers is None:
            if _END_OF_TRAILERS.search(data, position):
                raise ParseError("malformed trailer")
            return None
        self.done = True
        return trailers.end()
