"""Serializes HTTP/1.1 requests (RFC 9112)."""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import cast

import httpx

from .._headers import TOKEN, RawHeaders
from .._httpx.flavors import HTTPXModule

_START = re.compile(rb"%b+ [!-~]+" % TOKEN)
_LINES = re.compile(rb"(?:%b+: [^\0\r\n]*+\r\n)*+" % TOKEN)


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
    library: HTTPXModule = httpx,
) -> OutgoingRequest:
    """Return the request in the form in which it is written (RFC 9112 3, 5 and 6).

    Raises:
        httpx.LocalProtocolError: If the result would not be exactly one valid request.
    """
    try:
        lines, length, connection_close = serialize_headers(tuple(headers))
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


SerializedHeaders = tuple[bytes, int | None, bool]

_CACHEABLE_HEADERS = frozenset(
    b"accept accept-encoding accept-language connection content-length content-type host "
    b"transfer-encoding user-agent x-forwarded-for x-forwarded-host x-forwarded-prefix "
    b"x-forwarded-proto".split()
)
_MAX_CACHED_SIZE = 1024
_MAX_CACHED = 64
_MAX_CACHED_COUNT = 8  # headers, because a longer list is rarely repeated and slow to hash
_cache: dict[tuple[tuple[bytes, bytes], ...], SerializedHeaders] = {}


def serialize_headers(headers: tuple[tuple[bytes, bytes], ...]) -> SerializedHeaders:
    """Return header lines, the content length (None for chunks) and whether the request closes.

    Endpoints repeat the same few headers, so the last results are cached. The cache keeps only
    small results whose header names are known not to carry secrets.

    Raises:
        ValueError: If the headers are malformed.
    """
    cached = _cache.get(headers) if len(headers) <= _MAX_CACHED_COUNT else None
    if cached is not None:
        return cached
    names = [name.lower() for name, _ in headers]
    result = _serialize_headers(headers, names)
    if (
        len(headers) <= _MAX_CACHED_COUNT
        and _CACHEABLE_HEADERS.issuperset(names)
        and len(result[0]) <= _MAX_CACHED_SIZE
    ):
        if len(_cache) >= _MAX_CACHED:
            _cache.clear()
        _cache[headers] = result
    return result


def _serialize_headers(
    headers: tuple[tuple[bytes, bytes], ...], names: list[bytes]
) -> SerializedHeaders:
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if not _LINES.fullmatch(lines) or lines.count(b"\n") != len(headers) or b":" in b"".join(names):
        raise ValueError("malformed header")
    if b"host" not in names:
        raise ValueError("no Host header")
    length = None if b"transfer-encoding" in names else 0
    if length is None and [
        value.strip(b" \t").lower()
        for name, value in headers
        if name.lower() == b"transfer-encoding"
    ] != [b"chunked"]:
        raise ValueError("unsupported Transfer-Encoding")  # only chunks can be framed here
    if b"content-length" in names:
        values = {value for name, value in headers if name.lower() == b"content-length"}
        if length is None or len(values) > 1 or not (value := values.pop()).isdigit():
            raise ValueError("bad Content-Length")
        length = int(value)
    connection_close = b"connection" in names and any(
        b"close" in map(bytes.strip, value.lower().split(b","))
        for name, value in headers
        if name.lower() == b"connection"
    )
    return lines + b"\r\n", length, connection_close
