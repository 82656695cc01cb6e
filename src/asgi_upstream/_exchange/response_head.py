"""Decides which status and headers the caller gets. Pure functions."""

from collections.abc import Iterable, Mapping

from .. import _headers as header_lists
from .._headers import HOP_BY_HOP, RawHeaders
from ..errors import protocol_error
from .options import ResponseHead

# Each ASGI server adds its own Date and Server, and each may occur only once. Alt-Svc describes the
# upstream's endpoint: a caller would leave the app for it (RFC 7838 3).
_NOT_RELAYED = HOP_BY_HOP | {b"date", b"server", b"alt-svc"}
# These describe the exact bytes that the upstream sent (RFC 9110 8, RFC 9530).
_DEPENDS_ON_BODY = frozenset(
    b"accept-ranges content-digest content-encoding content-length content-md5 digest "
    b"repr-digest".split()
)
NOSNIFF = (b"x-content-type-options", b"nosniff")
UNBUFFERED = (b"x-accel-buffering", b"no")
EVENT_STREAM = b"text/event-stream"


def build_response_head(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    request_method: str,
    caller_method: str,
    status_override: int | None = None,
    body_modified: bool = False,
) -> tuple[int, RawHeaders]:
    """Return the status and the headers for the caller.

    Arguments:
        status: The upstream's status.
        headers: The upstream's headers.
        request_method: The method that the upstream got.
        caller_method: The method that the caller used. It may be another one.
        status_override: The status that the endpoint chose.
        body_modified: Whether the body is decoded or transformed.

    Raises:
        UpstreamProtocolError: If `status` is not a final status.
    """
    validate_status(status)
    relayed = end_to_end_response_headers(headers)
    without_content = has_no_content(request_method, status)
    if status_override is not None:
        status = status_override
    # A 204 and a 205 have no Content-Length (RFC 9110 8.6), and uvicorn with httptools fails on the
    # one of a 304. The length in a response to HEAD does not describe the content of a GET.
    if (
        status in (204, 205)
        or (status == 304 and caller_method != "HEAD")
        or (without_content and not has_no_content(caller_method, status))
    ):
        relayed = header_lists.remove(relayed, b"content-length")
    return status, headers_for_modified_body(relayed) if body_modified else relayed


def build_plain_head(head: ResponseHead, *, forwarded: bool) -> tuple[RawHeaders, int | None]:
    """Return the headers for the caller, and the body length if known, of an unchanged response.

    A head that many responses share keeps the result. The list is a copy, because middleware adds
    headers to it. The methods of both requests must not be HEAD.

    Arguments:
        head: The upstream's head.
        forwarded: Whether the request came from `forward_request`.

    Raises:
        UpstreamProtocolError: If the status is not a final status.
    """
    derived = head.derived
    result = None if derived is None else derived.get(forwarded)
    if result is None:
        status, headers = build_response_head(
            head.status, head.headers, request_method="GET", caller_method="GET"
        )
        headers = add_stream_headers(headers, forwarded=forwarded)
        has_body = not has_no_content("GET", status)
        length = header_lists.parse_content_length(headers) if has_body else 0
        result = headers, length
        if derived is not None:
            derived[forwarded] = result
    return [*result[0]], result[1]


def end_to_end_response_headers(raw: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """Return the headers of the upstream's response that the caller gets."""
    return header_lists.end_to_end(raw, _NOT_RELAYED)


def headers_for_modified_body(headers: RawHeaders) -> RawHeaders:
    """Return `headers` for a body that is decoded or transformed.

    Headers that describe the exact bytes are dropped. A strong ETag becomes a weak one (RFC 9110
    8.8.1).
    """
    return [
        (name, b"W/" + value if name == b"etag" and not value.startswith(b"W/") else value)
        for name, value in headers
        if name not in _DEPENDS_ON_BODY
    ]


def add_stream_headers(headers: RawHeaders, *, forwarded: bool) -> RawHeaders:
    """Return `headers` with those that make browsers and nginx show a stream at once.

    A browser holds back the first bytes of `text/plain` to guess the real type (WHATWG MIME
    Sniffing 7.2). But without guessing it refuses a script with that label, so the response to a
    `forwarded` request is left alone. nginx collects an event stream in its buffer.
    """
    values = dict(headers)
    media_type = get_media_type(values)
    if media_type == b"text/plain":
        if not forwarded and NOSNIFF[0] not in values:
            return [*headers, NOSNIFF]
    elif media_type == EVENT_STREAM and UNBUFFERED[0] not in values:
        return [*headers, UNBUFFERED]
    return headers


def get_media_type(values: Mapping[bytes, bytes]) -> bytes:
    """Return the media type in lower case, without its parameters."""
    return values.get(b"content-type", b"").partition(b";")[0].strip().lower()


def validate_status(status: int) -> None:
    """Refuse an unexpected 101 and numbers that are not a status (RFC 9110 15).

    Raises:
        UpstreamProtocolError: If `status` is not between 200 and 599.
    """
    if not 200 <= status < 600:
        raise protocol_error(f"status {status}")


def has_no_content(method: str, status: int) -> bool:
    """Return whether the response has no content, by method or status (RFC 9110 6.4.1, 15.3.6)."""
    return method == "HEAD" or status in (204, 205, 304)
