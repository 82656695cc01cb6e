"""Parses response heads without I/O (RFC 9112 4, 5 and 6.3)."""

import re
from enum import Enum, auto
from typing import Any, Final

from .._caching import BoundedCache
from .._headers import RawHeaders
from ._header_lines import MAX_CACHED, ParsedLine, ParseError, parse_lines

MAX_HEAD_SIZE = 64 * 1024
"""Limit in bytes of a response head together with the interim responses before it."""

MAX_HEADERS = 128

MAX_CACHED_HEAD_SIZE = 1024

_STATUS_LINE = re.compile(rb"(HTTP/1\.[01]) ([1-9][0-9]{2})(?: ([^\0\r\n\x0b\x0c]*))?\r?\n")
_KEEP_ALIVE_TIMEOUT = re.compile(
    rb"(?:^|[,;])[ \t]*timeout[ \t]*=[ \t]*\"?([0-9]{1,9})", re.IGNORECASE
)


class ReadState(Enum):
    """The part of a response that comes next on a connection."""

    IDLE = auto()
    HEAD = auto()
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()
    UPGRADED = auto()
    DONE = auto()


# Python 3.11 looks up the members of an enum slowly, and each response needs these several times.
IDLE: Final = ReadState.IDLE
HEAD: Final = ReadState.HEAD
LENGTH: Final = ReadState.LENGTH
CHUNKED: Final = ReadState.CHUNKED
DONE: Final = ReadState.DONE


class ResponseHead:
    """Status and headers of a response, and how its body ends.

    Attributes:
        framing: The state of the parser while it reads the body.
        length: The length of the body in bytes if `framing` is LENGTH.
        keep_alive: Whether the connection may be used again after the body.
        keep_alive_timeout: Seconds after which the upstream announced to close an idle connection.
        is_cacheable: Whether the head is short and known not to carry a secret.
        derived: Results that an exchange has derived from the head. None if the head is not shared.

    Raises:
        ParseError: If `data` is not a valid head.
    """

    __slots__ = (
        "derived",
        "framing",
        "headers",
        "is_cacheable",
        "keep_alive",
        "keep_alive_timeout",
        "length",
        "reason",
        "status",
        "version",
    )

    def __init__(self, data: bytes, *, to_connect: bool = False) -> None:
        status_line = _STATUS_LINE.match(data)
        if status_line is None:
            raise ParseError("malformed status line")
        version, status, reason = status_line.groups()
        self.version: bytes = version
        self.status: int = int(status)
        self.reason: bytes = reason or b""
        self.framing: ReadState = ReadState.UNTIL_CLOSE
        self.length: int = 0
        self.keep_alive: bool = version == b"HTTP/1.1"
        self.keep_alive_timeout: float | None = None
        self.derived: dict[object, Any] | None = None
        self.headers: RawHeaders = []
        self.is_cacheable: bool = len(data) <= MAX_CACHED_HEAD_SIZE
        self._add_headers(
            parse_lines(data[status_line.end() :]),
            is_tunnel=to_connect and 200 <= self.status < 300,  # RFC 9110 9.3.6
        )

    def _add_headers(self, lines: list[ParsedLine], *, is_tunnel: bool) -> None:
        if len(lines) > MAX_HEADERS:
            raise ParseError("too many headers")
        lengths: list[bytes] = []
        codings: list[bytes] = []
        for header, name, is_cacheable in lines:
            self.headers.append(header)
            if not is_cacheable:
                self.is_cacheable = False
            elif name == b"content-length":
                lengths.append(header[1])
            elif name == b"transfer-encoding":
                codings.append(header[1])
            elif name:
                self._read_connection_header(name, header[1])
        if is_tunnel:
            self.framing, self.keep_alive = ReadState.UPGRADED, False
        else:
            self._choose_framing(lengths, codings)

    def _read_connection_header(self, name: bytes, value: bytes) -> None:
        if name == b"connection":
            closes = b"close" in map(bytes.strip, value.lower().split(b","))
            self.keep_alive = self.keep_alive and not closes
        elif timeout := _KEEP_ALIVE_TIMEOUT.search(value):
            self.keep_alive_timeout = float(timeout[1])

    def _choose_framing(self, lengths: list[bytes], codings: list[bytes]) -> None:
        if codings and (lengths or [coding.lower() for coding in codings] != [b"chunked"]):
            raise ParseError(
                "unsupported Transfer-Encoding, or both Transfer-Encoding and Content-Length"
            )
        length = self._parse_length(lengths) if lengths else None
        if self.status == 101:
            self.framing = ReadState.UPGRADED
        elif self.status in (204, 304):
            self.framing = ReadState.LENGTH
        elif codings:
            self.framing = ReadState.CHUNKED
        elif length is not None:
            self.framing, self.length = ReadState.LENGTH, length

    def _parse_length(self, values: list[bytes]) -> int:
        """Return the length in bytes. Several equal values become one (RFC 9110 8.6)."""
        if len(values) > 1 or b"," in values[0]:
            values = list({part.strip(b" \t") for value in values for part in value.split(b",")})
            if len(values) > 1:
                raise ParseError("conflicting Content-Length")
            names = [name.lower() for name, _ in self.headers]
            first = names.index(b"content-length")
            rest = zip(names[first + 1 :], self.headers[first + 1 :], strict=True)
            self.headers[first:] = [
                (self.headers[first][0], values[0]),
                *(header for name, header in rest if name != b"content-length"),
            ]
        if not (values[0].isdigit() and len(values[0]) < 20):
            raise ParseError("bad Content-Length")
        return int(values[0])


_heads: BoundedCache[bytes, ResponseHead] = BoundedCache(MAX_CACHED)


def parse_head(data: bytes) -> ResponseHead:
    """Parse a response head. The result is shared and must not be changed.

    A busy upstream repeats its heads until Date changes, so the last ones are cached.

    Raises:
        ParseError: If `data` is not a valid head.
    """
    head = _heads.get(data)
    if head is None:
        head = ResponseHead(data)
        if head.is_cacheable:
            head.derived = {}
            _heads.keep(data, head)
    return head
