"""Sends comments in an event stream that is silent, so that proxies and callers keep it open."""

import re
from collections.abc import AsyncIterator
from typing import Self

import anyio

from .body import ensure_bytes

COMMENT = b": heartbeat\n\n"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class EventBoundaries:
    """Knows whether an event stream is between two events (WHATWG HTML 9.2.6).

    An event begins with its first line that is not a comment, and ends with an empty line. Lines
    end with LF, CR or CRLF. A chunk may end anywhere.
    """

    def __init__(self) -> None:
        self._in_event = False
        self._line = b""  # the start of the line that has not ended yet
        self._first_line = True
        self._after_cr = False

    @property
    def between_events(self) -> bool:
        return not self._in_event and not self._strip_bom(self._line)

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the stream."""
        if self._after_cr and chunk.startswith(b"\n"):  # a CRLF that was cut
            self._after_cr, chunk = False, chunk[1:]
        if not chunk:
            return
        self._after_cr = chunk.endswith(b"\r")
        *lines, rest = _LINE_END.split(chunk)
        for line in lines:
            line = self._strip_bom(self._line + line)
            self._line, self._first_line = b"", False
            if not line:
                self._in_event = False
            elif not line.startswith(b":"):
                self._in_event = True
        self._line = (self._line + rest)[: len(_BOM) + 1]

    def _strip_bom(self, line: bytes) -> bytes:
        return line.removeprefix(_BOM) if self._first_line else line


class HeartbeatBody(AsyncIterator[bytes]):
    """Adds a comment to an event stream after each `interval` seconds of silence.

    A comment is added only between events, so that it never splits one.

    Arguments:
        body: The event stream. A cancelled read must not lose data.
        interval: Seconds.
    """

    def __init__(self, body: AsyncIterator[bytes], interval: float) -> None:
        self._body = body
        self._interval = interval
        self._boundaries = EventBoundaries()
        self._bom: bytes | None = None  # the start of a possible BOM, after a first comment
        self._started = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            with anyio.move_on_after(self._interval):
                chunk = await self._read()
                self._boundaries.feed(chunk)
                return chunk
            if self._boundaries.between_events and not self._bom:
                if not self._started:
                    self._started, self._bom = True, b""
                return COMMENT

    async def _read(self) -> bytes:
        """Read a chunk that is not empty. Drop a byte order mark if a comment was sent before it.

        It is one only at the very start of a stream.
        """
        while True:
            try:
                chunk = ensure_bytes(await anext(self._body))
            except StopAsyncIteration:
                if not self._bom:
                    raise
                chunk, self._bom = self._bom, None
                return chunk
            self._started = self._started or bool(chunk)
            if self._bom is not None:
                chunk = self._bom + chunk
                if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                    self._bom = chunk
                    continue
                self._bom, chunk = None, chunk.removeprefix(_BOM)
            if chunk:
                return chunk
