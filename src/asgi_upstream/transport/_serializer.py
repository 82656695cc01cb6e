"""Serializes HTTP/1.1 requests (RFC 9112)."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import httpx

from .._caching import BoundedCache
from .._headers import TOKEN, RawHeaders
from .._httpx.interfaces import HTTPXModule

_START = re.compile(rb"%b+ [!-~]+" % TOKEN)
_NAME = re.compile(rb"%b+" % TOKEN)


@dataclass(slots=True)
class OutgoingRequest:
    """A serialized request and its timeouts in seconds.

    Attributes:
        length: The length of the content in bytes. None if the content is sent in chunks.
        connection_close: Whether the request itself closes the connection (RFC 9112 9.6).
    """

    method: str
    head: bytes
    content: bytes | AsyncIterator[bytes]
    length: int | None
    read_timeout: float | None
    write_timeout: float | None
    connection_close: bool = False


@dataclass(slots=True)
class BodyFramer:
    """Frames the chunks of a request body.

    Attributes:
        remaining: Bytes to come. None if the body is sent in chunks.
        error: Raised if the body is longer or shorter than its Content-Length.
    """

    remaining: int | None
    error: type[Exception]

    def frame(self, chunk: bytes) -> bytes:
        """Return `chunk` as it is written to the socket."""
        if self.remaining is None:
            return b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunk else b""
        self.remaining -= len(chunk)
        if self.remaining < 0:
            raise self.error("more content than Content-Length says")
        return chunk

    def finish(self) -> bytes:
        """Return the bytes that end the body."""
        if self.remaining:
            raise self.error("less content than Content-Length says")
        return b"" if self.remaining == 0 else b"0\r\n\r\n"


def serialize_request(
    method: str,
    target: bytes,
    headers: RawHeaders,
    stream: object,
    timeouts: Mapping[str, float | None],
    library: HTTPXModule,
) -> OutgoingRequest:
    """Return the request in the form in which it is written (RFC 9112 3, 5 and 6).

    Raises:
        httpx.LocalProtocolError: If the result would not be exactly one valid request.
    """
    try:
        lines, length, connection_close = serialize_headers(headers)
    except ValueError as exc:
        raise library.LocalProtocolError(str(exc)) from None
    start = b"%b %b" % (method.encode("ascii", "replace"), target)
    if not _START.fullmatch(start):
        raise library.LocalProtocolError("malformed method or target")
    head = b"%b HTTP/1.1\r\n%b" % (start, lines)
    content: bytes | AsyncIterator[bytes]
    if isinstance(stream, library.ByteStream):
        content = b"".join(stream)
        if length is None:
            framer = BodyFramer(None, library.LocalProtocolError)
            content = framer.frame(content) + framer.finish()
        elif len(content) != length:
            raise library.LocalProtocolError("the content is not as long as Content-Length says")
    else:
        content = aiter(cast(httpx.AsyncByteStream, stream))
    return OutgoingRequest(
        method,
        head,
        content,
        length,
        timeouts.get("read"),
        timeouts.get("write"),
        connection_close,
    )


MAX_CACHED = 256
"""Entries in the cache of lines."""

MAX_CACHED_SIZE = 256

_FRAMING_HEADERS = frozenset(b"connection content-length host transfer-encoding".split())
# Endpoints and callers repeat these headers, and they do not carry secrets.
_CACHEABLE_HEADERS = _FRAMING_HEADERS | frozenset(
    b"accept accept-encoding accept-language cache-control content-type dnt pragma priority "
    b"sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site "
    b"sec-fetch-user te upgrade-insecure-requests user-agent x-forwarded-for x-forwarded-host "
    b"x-forwarded-prefix x-forwarded-proto".split()
)

SerializedHeader = tuple[bytes, bytes]
"""A line, and the lower-case name if it is Host, about framing, or closes the connection."""

_lines: BoundedCache[tuple[bytes, bytes], SerializedHeader] = BoundedCache(MAX_CACHED)


def serialize_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, int | None, bool]:
    """Return header lines, the content length (None for chunks) and whether the request closes.

    Raises:
        ValueError: If the headers are malformed.
    """
    lines: list[bytes] = []
    framing: list[tuple[bytes, bytes]] = []
    has_host = False
    for header in headers:
        line, framing_name = _lines.get(header) or _serialize_header(header)
        lines.append(line)
        if framing_name == b"host":
            has_host = True
        elif framing_name:
            framing.append((framing_name, header[1]))
    if not has_host:
        raise ValueError("no Host header")
    lines.append(b"\r\n")
    length, connection_close = _choose_framing(framing) if framing else (0, False)
    return b"".join(lines), length, connection_close


def _serialize_header(header: tuple[bytes, bytes]) -> SerializedHeader:
    name, value = header
    if not _NAME.fullmatch(name) or b"\r" in value or b"\n" in value or b"\0" in value:
        raise ValueError("malformed header")
    key = name.lower()
    framing_name = key if key in _FRAMING_HEADERS else b""
    if key == b"connection" and b"close" not in map(bytes.strip, value.lower().split(b",")):
        framing_name = b""
    result = b"%b: %b\r\n" % header, framing_name
    if key in _CACHEABLE_HEADERS and len(result[0]) <= MAX_CACHED_SIZE:
        _lines.keep(header, result)
    return result


def _choose_framing(headers: list[tuple[bytes, bytes]]) -> tuple[int | None, bool]:
    """Return the content length (None for chunks) and whether the request closes."""
    length: int | None = 0
    names = [name for name, _ in headers]
    if b"transfer-encoding" in names:
        length = None
        codings = [value for name, value in headers if name == b"transfer-encoding"]
        if [coding.strip(b" \t").lower() for coding in codings] != [b"chunked"]:
            raise ValueError("unsupported Transfer-Encoding")  # only chunks can be framed here
    if b"content-length" in names:
        values = {value for name, value in headers if name == b"content-length"}
        if length is None or len(values) > 1 or not (value := values.pop()).isdigit():
            raise ValueError("bad Content-Length")
        length = int(value)
    return length, b"connection" in names
