"""Which header fields cross, as pure functions over raw header lists.

A raw header list is ASGI's: pairs of a name in lower case and a value, as bytes, in order, repeated
fields one by one.
"""

import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

RawHeaders = list[tuple[bytes, bytes]]

TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]"
"""One character of a header name or a method, as a regular expression (RFC 9110 5.6.2)."""

# For one connection only, with those that Connection names (RFC 9110 7.6.1).
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_CONTROL_CHARACTERS = re.compile(rb"[\0-\x08\n-\x1f\x7f]")


def end_to_end(
    raw: Iterable[tuple[bytes, bytes]], dropped: AbstractSet[bytes] = HOP_BY_HOP
) -> RawHeaders:
    """The fields of `raw` that may cross a hop, their names in lower case (RFC 9110 7.6.1).

    Without those in `dropped`, which holds the hop-by-hop fields and may hold more.
    """
    fields: RawHeaders = []
    named: set[bytes] = set()
    for name, value in raw:
        name = name.lower()
        if name not in dropped:
            fields.append((name, value))
        elif name == b"connection":
            if value != b"keep-alive" and value != b"close":  # as it mostly is
                # A length that it names, as it must not, frames the body nevertheless.
                tokens = {token.strip().lower() for token in value.split(b",")}
                named |= tokens - HOP_BY_HOP - {b"content-length"}
        elif name == b"transfer-encoding":  # it overrides the length (RFC 9112 6.3)
            named.add(b"content-length")
    return [field for field in fields if field[0] not in named] if named else fields


def has_control_characters(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a value has a byte that none may, and that some servers fail on (RFC 9110 5.5)."""
    return _CONTROL_CHARACTERS.search(b"".join([value for _, value in fields])) is not None


def override(fields: RawHeaders, own: RawHeaders) -> RawHeaders:
    """`fields` with `own` on top: each name in `own` replaces, but Set-Cookie is added."""
    replaced = {name for name, _ in own if name != b"set-cookie"}
    return [field for field in fields if field[0] not in replaced] + own


def remove(fields: RawHeaders, name: bytes) -> RawHeaders:
    """`fields` less those of that name."""
    return [field for field in fields if field[0] != name]


def content_length(fields: RawHeaders) -> int | None:
    """Content-Length in bytes; None where it is absent or not a number (RFC 9110 8.6)."""
    value = dict(fields).get(b"content-length", b"")
    return int(value) if value.isdigit() else None
