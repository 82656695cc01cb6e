"""Status and headers for the caller, as pure functions."""

from collections.abc import Iterable, Mapping

from .._headers import HOP_BY_HOP, RawHeaders, end_to_end

# Single-valued, and every ASGI server adds its own.
_NOT_RELAYED = HOP_BY_HOP | {b"date", b"server"}
# True only of the very bytes that the upstream sent (RFC 9110 8, RFC 9530).
_DEPENDS_ON_BODY = frozenset(
    b"accept-ranges content-digest content-encoding content-length content-md5 digest "
    b"repr-digest".split()
)
NOSNIFF = (b"x-content-type-options", b"nosniff")


def end_to_end_response_headers(raw: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The fields of an upstream's response that its caller gets."""
    return end_to_end(raw, _NOT_RELAYED)


def headers_for_modified_body(fields: RawHeaders) -> RawHeaders:
    """`fields` for a body that was decoded or transformed on the way.

    What held for the exact bytes goes, and a strong ETag becomes a weak one (RFC 9110 8.8.1).
    """
    return [
        (name, b"W/" + value if name == b"etag" and not value.startswith(b"W/") else value)
        for name, value in fields
        if name not in _DEPENDS_ON_BODY
    ]


def needs_nosniff(values: Mapping[bytes, bytes]) -> bool:
    """Whether a response of these fields is plain text without `NOSNIFF`.

    A browser holds back the first bytes of `text/plain` to guess what they truly are, and so a
    stream (WHATWG MIME Sniffing 7.2).
    """
    media_type = values.get(b"content-type", b"")
    return (
        media_type[:10].lower() == b"text/plain"
        and media_type.split(b";")[0].strip().lower() == b"text/plain"
        and NOSNIFF[0] not in values
    )
