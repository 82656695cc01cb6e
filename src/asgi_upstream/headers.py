"""Which header fields cross, as pure functions over raw header lists.

A raw header list is ASGI's: pairs of a name in lower case and a value, as bytes, in order, repeated
fields one by one.
"""

from collections.abc import Iterable

RawHeaders = list[tuple[bytes, bytes]]

# For one connection only, with those that Connection names (RFC 9110 7.6.1).
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
# Single-valued, and every ASGI server adds its own.
_SERVERS_OWN = frozenset((b"date", b"server"))
# True only of the very bytes that the upstream sent (RFC 9110 8, RFC 9530).
_OF_THE_EXACT_BYTES = frozenset(
    b"accept-ranges content-digest content-encoding content-length content-md5 digest "
    b"repr-digest".split()
)


def end_to_end(raw: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The fields of `raw` that may cross a hop, their names in lower case (RFC 9110 7.6.1)."""
    fields = [(name.lower(), value) for name, value in raw]
    dropped = HOP_BY_HOP
    for name, value in fields:
        if name == b"connection":
            dropped |= {token.strip().lower() for token in value.split(b",")}
        elif name == b"transfer-encoding":  # it overrides the length (RFC 9112 6.3)
            dropped |= {b"content-length"}
    return [field for field in fields if field[0] not in dropped]


def relayed_response_headers(raw: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The fields of an upstream's response that its caller gets."""
    return [field for field in end_to_end(raw) if field[0] not in _SERVERS_OWN]


def of_a_changed_body(fields: RawHeaders) -> RawHeaders:
    """`fields` for a body that was decoded or transformed on the way.

    What held for the exact bytes goes, and a strong ETag becomes a weak one (RFC 9110 8.8.1).
    """
    return [
        (name, b"W/" + value if name == b"etag" and not value.startswith(b"W/") else value)
        for name, value in fields
        if name not in _OF_THE_EXACT_BYTES
    ]


def overlaid(fields: RawHeaders, own: RawHeaders) -> RawHeaders:
    """`fields` with `own` on top: each name in `own` replaces, but Set-Cookie is added."""
    replaced = {name for name, _ in own if name != b"set-cookie"}
    return [field for field in fields if field[0] not in replaced] + own


def without(fields: RawHeaders, name: bytes) -> RawHeaders:
    """`fields` less those of that name."""
    return [field for field in fields if field[0] != name]


def with_nosniff(fields: RawHeaders) -> RawHeaders:
    """`fields` with `x-content-type-options: nosniff`, if they are of plain text.

    A browser holds back the first bytes of `text/plain` to guess what they truly are, and so a
    stream (WHATWG MIME Sniffing 7.2).
    """
    values = dict(fields)
    media_type = values.get(b"content-type", b"").split(b";")[0].strip().lower()
    if media_type != b"text/plain" or b"x-content-type-options" in values:
        return fields
    return [*fields, (b"x-content-type-options", b"nosniff")]


def content_length(fields: RawHeaders) -> int | None:
    """Content-Length in bytes; None where it is absent or not a number (RFC 9110 8.6)."""
    value = dict(fields).get(b"content-length", b"")
    return int(value) if value.isdigit() else None
