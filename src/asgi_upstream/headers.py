"""Which header fields cross, as pure functions over raw header lists.

A raw header list is ASGI's: pairs of lower-case name and value, as bytes, repeated fields one by
one and in order.
"""

from collections.abc import Iterable

RawHeaders = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields for one connection only (RFC 9110 7.6.1); those that Connection names go with them."""

_SERVERS_OWN = frozenset({b"date", b"server"})
"""Single-valued fields that every ASGI server adds to a response by itself."""

_OF_THE_EXACT_BYTES = frozenset(
    {
        b"accept-ranges",
        b"content-digest",
        b"content-encoding",
        b"content-length",
        b"content-md5",
        b"digest",
        b"repr-digest",
    }
)
"""Fields that are true only of the very bytes the upstream sent (RFC 9110 8, RFC 9530)."""


def end_to_end(raw: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The fields of `raw` that may cross a hop, their names in lower case (RFC 9110 7.6.1)."""
    fields = [(name.lower(), value) for name, value in raw]
    dropped: set[bytes] | frozenset[bytes] = HOP_BY_HOP
    for name, value in fields:
        if name == b"connection":
            dropped = dropped.union(token.strip().lower() for token in value.split(b","))
        elif name == b"transfer-encoding":
            # RFC 9112 6.3: the coding overrides the length, and a relay removes the length.
            dropped = dropped | {b"content-length"}
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
    if not own:
        return fields
    replaced = {name for name, _ in own if name != b"set-cookie"}
    return [field for field in fields if field[0] not in replaced] + own


def without(fields: RawHeaders, *names: bytes) -> RawHeaders:
    """`fields` less those named."""
    return [field for field in fields if field[0] not in names]


def find(fields: RawHeaders, name: bytes) -> bytes | None:
    """The value of the first field of that name, or None."""
    return next((value for key, value in fields if key == name), None)


def with_nosniff(fields: RawHeaders) -> RawHeaders:
    """`fields` with `x-content-type-options: nosniff` where browsers would hold a stream back.

    Browsers collect the first bytes of `text/plain` to guess its type before they show any of it
    (WHATWG MIME Sniffing 7.2).
    """
    content_type = find(fields, b"content-type") or b""
    if content_type.split(b";")[0].strip().lower() != b"text/plain":
        return fields
    if find(fields, b"x-content-type-options") is not None:
        return fields
    return [*fields, (b"x-content-type-options", b"nosniff")]


def content_length(fields: RawHeaders) -> int | None:
    """Content-Length in bytes; None where it is absent or not a number (RFC 9110 8.6)."""
    value = find(fields, b"content-length")
    return int(value) if value is not None and value.isdigit() else None
