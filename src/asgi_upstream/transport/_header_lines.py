"""Parses the header lines of responses (RFC 9112 5). Upstreams repeat most of them."""

import re
from typing import cast

from .._caching import BoundedCache
from .._headers import TOKEN, VALUE_BYTES

MAX_CACHED = 256
"""Entries in a cache."""

MAX_CACHED_LINE_SIZE = 256
MAX_CACHED_NAME_SIZE = 64

_NAME = re.compile(rb"%b+" % TOKEN)
_FOLD = re.compile(rb"\r?\n[ \t]+")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_FRAMING_HEADERS = frozenset(b"connection content-length keep-alive transfer-encoding".split())
# These headers do not carry secrets.
_CACHEABLE_HEADERS = _FRAMING_HEADERS | frozenset(
    b"accept-ranges access-control-allow-credentials access-control-allow-headers "
    b"access-control-allow-methods access-control-allow-origin access-control-expose-headers age "
    b"cache-control content-encoding content-language content-type date etag expires last-modified "
    b"pragma referrer-policy server strict-transport-security vary via x-accel-buffering "
    b"x-content-type-options x-frame-options x-powered-by".split()
)

Traits = tuple[bytes, bool]
"""The lower-case name if it is about framing or the connection, and whether it is cacheable."""

ParsedLine = tuple[tuple[bytes, bytes], bytes, bool]
"""Name and value, and the traits."""

_lines: BoundedCache[bytes, ParsedLine] = BoundedCache(MAX_CACHED)
_names: BoundedCache[bytes, Traits] = BoundedCache(MAX_CACHED)


class ParseError(Exception):
    """The upstream did not send valid HTTP/1.1."""


def parse_lines(data: bytes) -> list[ParsedLine]:
    """Parse the header lines and the empty line after them.

    Raises:
        ParseError: If a line is malformed.
    """
    if (lines := _split_lines(data)) is not None:
        return lines
    # Lines may be folded or end in a bare LF (RFC 9112 5.2, 2.2).
    lines = _split_lines(_BARE_LF.sub(b"\r\n", _FOLD.sub(b" ", data)))
    if lines is None:
        raise ParseError("malformed header")
    return lines


def _split_lines(data: bytes) -> list[ParsedLine] | None:
    lines = data.split(b"\r\n")
    if lines.pop() or lines.pop():  # no empty line at the end
        return None
    parsed = [_lines.get(line) or _parse_line(line) for line in lines]
    return None if None in parsed else cast(list[ParsedLine], parsed)


def _parse_line(line: bytes) -> ParsedLine | None:
    name, colon, value = line.partition(b":")
    traits = _names.get(name) or _find_traits(name)
    if traits is None or not colon or value.translate(None, VALUE_BYTES):
        return None
    parsed = (name, value.strip(b" \t")), *traits
    if traits[1] and len(line) <= MAX_CACHED_LINE_SIZE:
        _lines.keep(line, parsed)
    return parsed


def _find_traits(name: bytes) -> Traits | None:
    if not _NAME.fullmatch(name):
        return None
    key = name.lower()
    traits = key if key in _FRAMING_HEADERS else b"", key in _CACHEABLE_HEADERS
    if len(name) <= MAX_CACHED_NAME_SIZE:
        _names.keep(name, traits)
    return traits
