"""Serializes requests for HTTP/1.1 (RFC 9112)."""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import httpx

from .._headers import RawHeaders
from .._httpx.flavors import HTTPXModule

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]"
_START = re.compile(rb"%b+ [!-~]+" % _TOKEN)
_LINES = re.compile(rb"(?:%b+: [^\0\r\n]*+\r\n)*+" % _TOKEN)


@dataclass(slots=True)
class OutgoingRequest:
    """A request as it is written, and how long its exchange may wait, in seconds."""

    method: str
    head: bytes
    content: bytes | AsyncIterator[bytes]
    length: int | None  # of the content; None where it is chunked
    read_timeout: float | None
    write_timeout: float | None
    connection_close: bool = False  # the connection is not to be used again, as it says itself


def serialize_request(
    method: str,
    target: bytes,
    fields: RawHeaders,
    stream: object,
    timeouts: Mapping[str, float | None],
    library: HTTPXModule = httpx,
) -> OutgoingRequest:
    """The request as it is written (RFC 9112 3, 5, 6).

    Raises:
        httpx.LocalProtocolError: for what would not be one request, or not this one.
    """
    try:  # few fields are an author's own, and the same again and again
        lines, length, closes = (
            _serialize_headers_cached if len(fields) <= 8 else _serialize_headers
        )(tuple(fields))
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
            content = (b"%x\r\n%b\r\n" % (len(content), content) if content else b"") + b"0\r\n\r\n"
        elif len(content) != length:
            raise library.LocalProtocolError("the content is not as long as Content-Length says")
    else:
        content = aiter(cast(httpx.AsyncByteStream, stream))
    return OutgoingRequest(
        method, head, content, length, timeouts.get("read"), timeouts.get("write"), closes
    )


def _serialize_headers(fields: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, int | None, bool]:
    """The lines of a request's fields, the length of its content (None where it is chunked), and
    whether it says that the connection closes (RFC 9112 9.6)."""
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    names = [name.lower() for name, _ in fields]
    if not _LINES.fullmatch(lines) or lines.count(b"\n") != len(fields) or b":" in b"".join(names):
        raise ValueError("malformed field")
    if b"host" not in names:
        raise ValueError("no Host field")
    length = None if b"transfer-encoding" in names else 0
    if b"content-length" in names:
        values = {value for name, value in fields if name.lower() == b"content-length"}
        if length is None or len(values) > 1 or not (value := values.pop()).isdigit():
            raise ValueError("bad Content-Length")
        length = int(value)
    closes = b"connection" in names and any(
        b"close" in map(bytes.strip, value.lower().split(b","))
        for name, value in fields
        if name.lower() == b"connection"
    )
    return lines + b"\r\n", length, closes


_serialize_headers_cached = lru_cache(64)(_serialize_headers)
