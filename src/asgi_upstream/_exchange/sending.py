"""Sends the request to the upstream, up to the head of the response."""

import httpx

from .. import _headers as header_lists
from .. import errors
from .._httpx.cancellation import defer_cancellation
from .._httpx.fast_path import log_request
from .._httpx.http2 import prepare_http2_pools
from .._httpx.interfaces import HTTPXModule
from .._httpx.proxy_targets import has_exact_target, prepare_target
from .._httpx.requests import ForwardedRequest
from .._httpx.workarounds import clean_up_pool
from .options import SupportsSend
from .response_head import validate_status

_HTTP1_VERSIONS = (b"HTTP/1.1", b"HTTP/1.0")


async def send_request(
    client: SupportsSend,
    request: httpx.Request,
    library: HTTPXModule,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.Response:
    """Send the request, and return a response whose body was not read. The caller must close it.

    Arguments:
        transport: The client's transport, if the client has nothing to do for this request.

    Raises:
        RuntimeError: If the request's body was sent before and cannot be sent again.
        UpstreamProtocolError: If a redirect has a malformed Location.
        httpx.RequestError: If the upstream failed.
    """
    if isinstance(request, ForwardedRequest):
        await request.resolve_body()
    prepare_target(client, request)
    prepare_http2_pools(client)
    try:
        if transport is None:
            # The caller follows the redirects of a forwarded request.
            options = {"follow_redirects": False} if has_exact_target(request) else {}
            return await client.send(request, stream=True, **options)
        upstream = await transport.handle_async_request(request)
    except library.StreamConsumed:
        raise RuntimeError(
            "the request body is a stream that has already been consumed; build the request "
            "with bytes, or make a new request for each call"
        ) from None
    except BaseException as exc:
        await defer_cancellation(clean_up_pool(client, request.url, exc))
        if isinstance(exc, UnicodeError):  # httpx fails so on a Location that is not a URL
            raise errors.UpstreamProtocolError from exc
        raise
    upstream.request = request
    version, reason = upstream.http_version.encode(), upstream.reason_phrase.encode()
    log_request(library, request, version, upstream.status_code, reason)
    return upstream


def validate_head(upstream: httpx.Response) -> None:
    """Refuse a head that must not be relayed.

    Raises:
        UpstreamProtocolError: If the status is not final, or a header is malformed. HTTP/2 allows
            any bytes in names and values, and httpx's transport does not check them. It does not
            check the version of HTTP/1 either.
    """
    validate_status(upstream.status_code)
    extensions = upstream.extensions
    if "network_stream" in extensions and "stream_id" not in extensions:  # HTTP/1 of httpcore
        version = extensions.get("http_version")
        if version not in _HTTP1_VERSIONS:
            raise errors.protocol_error(f"HTTP version {version!r}")
    headers = upstream.headers.raw
    if header_lists.has_control_characters(headers):
        raise errors.protocol_error("a control character in a header")
    if not header_lists.are_names_valid(headers):
        raise errors.protocol_error("a malformed header name")
