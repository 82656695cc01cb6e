"""Sends the request to the upstream and relays the response, on one of two paths.

Everything upstream is closed when a function here returns.
"""

from typing import cast

import httpx

from .._httpx.fast_path import log_request
from .._httpx.flavors import subclass_for
from .options import ExchangeOptions, SendRaw
from .relaying import ResponseRelay
from .scope import ExchangeScope
from .sending import send_request, validate_head
from .upload import UploadStream
from .upstream_body import UpstreamBody


async def relay_over_fast_path(
    send_raw: SendRaw,
    options: ExchangeOptions,
    request: httpx.Request,
    relay: ResponseRelay,
    limits: ExchangeScope,
) -> bool:
    """Relay an unmodified response over the fast path.

    Returns:
        False if this exchange does not qualify. Then nothing was sent.
    """
    library = options.library
    if not isinstance(request.stream, library.ByteStream):
        return False
    limits.start_listening()
    opening = send_raw(request)
    if opening is None:
        return False
    upstream = await opening
    del opening  # an open stream would keep it
    try:
        head = upstream.head
        log_request(library, request, head.version, head.status, head.reason)
        await relay.relay_raw(upstream)
    finally:
        if not upstream.release():
            await upstream.aclose()
    return True


async def relay_through_httpx(
    transport: httpx.AsyncBaseTransport | None,
    options: ExchangeOptions,
    request: httpx.Request,
    relay: ResponseRelay,
    limits: ExchangeScope,
) -> None:
    """Relay a response that goes through httpx.

    Arguments:
        transport: The client's transport, if the client has nothing to do for this request.
    """
    client, library, recorder = options.client, options.library, relay.recorder
    content, upload = request.stream, None
    if isinstance(content, library.ByteStream):
        limits.start_listening()
    else:  # The body may come from the caller.
        source = cast(httpx.AsyncByteStream, content)
        upload_class = subclass_for(UploadStream, library.AsyncByteStream)
        request.stream = upload = upload_class(client, request.url, source, limits, recorder)
    try:
        try:
            upstream = await send_request(client, request, library, transport)
        finally:
            request.stream = content
        body = UpstreamBody(upstream, options, request, recorder)
        try:
            if recorder is not None:
                recorder.response_received(upstream)
            if upload is None or not upload.in_progress:
                limits.start_listening(is_draining=upstream.status_code >= 300)
            validate_head(upstream)
            await relay.relay(upstream, body)
        finally:
            await body.aclose()
    finally:
        if upload is not None:
            await upload.close_body()
