"""Pure functions over raw header lists.

A raw header list is ASGI's: pairs of a lower-case name and a value, as bytes, in order. Repeated
headers are separate pairs.
"""

import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

RawHeaders = list[tuple[bytes, bytes]]

TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]"
"""One character of a header name or a method, as a regular expression (RFC 9110 5.6.2)."""

VALUE_BYTES = bytes([*b"\t", *range(0x20, 0x7F), *range(0x80, 0x100)])
"""The bytes that a header value may have (RFC 9110 5.5)."""

# For one connection only, like the headers that Connection names (RFC 9110 7.6.1).
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_NOT_NAMED = HOP_BY_HOP | {b"content-length"}
_NAMES = re.compile(rb"(?:%b+:)*+" % TOKEN)


def end_to_end(
    raw: Iterable[tuple[bytes, bytes]], dropped: AbstractSet[bytes] = HOP_BY_HOP
) -> RawHeaders:
    """Return the headers that may cross a hop, with lower-case names (RFC 9110 7.6.1).

    Arguments:
        raw: The headers of one hop, with names in any case.
        dropped: The names to drop: the hop-by-hop headers and possibly more.
    """
    headers: RawHeaders = []
    named: set[bytes] = set()
    for name, value in raw:
        name = name.lower()
        if name not in dropped:
            headers.append((name, value))
        elif name == b"connection":
            named |= parse_connection(value)
        elif name == b"transfer-encoding":  # It overrides Content-Length (RFC 9112 6.3).
            named.add(b"content-length")
    return [header for header in headers if header[0] not in named] if named else headers


def parse_connection(value: bytes) -> AbstractSet[bytes]:
    """Return the names that a Connection header adds to the hop-by-hop headers.

    It must not name Content-Length. If it does, the length still frames the body.
    """
    if value in (b"keep-alive", b"close"):  # the usual values, which name no header
        return frozenset()
    return {token.strip().lower() for token in value.split(b",")} - _NOT_NAMED


def has_control_characters(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a value contains a control character. Some servers fail on it (RFC 9110 5.5).

    A tab is allowed.
    """
    return bool(b"".join([value for _, value in headers]).translate(None, VALUE_BYTES))


def are_names_valid(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether every header name is a token (RFC 9110 5.1)."""
    names = [name for name, _ in headers]
    joined = b":".join([*names, b""])
    return _NAMES.fullmatch(joined) is not None and joined.count(b":") == len(names)


def override(headers: RawHeaders, overrides: RawHeaders) -> RawHeaders:
    """Return `headers` with `overrides`. Each name replaces the old ones. Set-Cookie is added."""
    replaced = {name for name, _ in overrides if name != b"set-cookie"}
    return [header for header in headers if header[0] not in replaced] + overrides


def remove(headers: RawHeaders, name: bytes) -> RawHeaders:
    """Return `headers` without the headers of that name."""
    return [header for header in headers if header[0] != name]


def parse_content_length(headers: RawHeaders) -> int | None:
    """Return Content-Length in bytes, or None if it is absent or invalid (RFC 9112 6.3).

    Repeated equal values are one value. Different values are invalid.
    """
    values = {value for name, value in headers if name == b"content-length"}
    value = values.pop() if len(values) == 1 else b""
    return int(value) if value.isdigit() and len(value) < 20 else None
