"""Calls of the app's own: fetch a response, or cancel a block when the caller disconnects."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, cast, overload

import httpx
from starlette.requests import HTTPConnection

from ._exchange.block import CancellableBlock
from ._exchange.call import Call
from ._exchange.options import SupportsSend
from ._exchange.validation import validate_request, validate_seconds, validate_size, validate_values
from ._httpx.flavors import describe_type, match_library
from ._httpx.interfaces import AnyClient, RequestT, ResponseT
from .records import Observer


@overload
async def fetch(
    client: httpx.AsyncClient,
    request: httpx.Request,
    *,
    max_bytes: int = ...,
    deadline: float | None = ...,
    observers: Sequence[Observer] = ...,
) -> httpx.Response: ...
@overload
async def fetch(
    client: AnyClient[RequestT, ResponseT],
    request: RequestT,
    *,
    max_bytes: int = ...,
    deadline: float | None = ...,
    observers: Sequence[Observer] = ...,
) -> ResponseT: ...
async def fetch(
    client: AnyClient[Any, Any],
    request: Any = None,  # the default is only for the error that says what is missing
    *,
    max_bytes: int = 10 * 1024 * 1024,
    deadline: float | None = None,
    observers: Sequence[Observer] = (),
) -> Any:
    """Send a request, read the whole body, and return the response.

        response = await fetch(client, client.build_request("GET", "/item"), deadline=2)

    The call is counted and recorded like any other exchange. The response is read and closed, and
    its body is decoded. An error status is not an exception: call `raise_for_status()` yourself.

    Arguments:
        client: The shared client. Its auth, event hooks, mounts and proxies apply.
        request: The request, from `client.build_request(...)`.
        max_bytes: Maximum body size, after decoding.
        deadline: Seconds for the whole call.
        observers: Functions that get the `ExchangeRecord` of the call, besides those of the client.

    Returns:
        httpx's response, or httpx2's if the client is from httpx2.

    Raises:
        UpstreamError: If the upstream failed. It is an `HTTPException` with the status 502, 503 or
            504. A deadline that passes is `UpstreamTimeout`, a large body `UpstreamBodyTooLarge`.
            Causes and fixes: [docs/errors.md][what-callers-get].
        TypeError, ValueError: If an argument is invalid.
        RuntimeError: If the request's body was sent before and cannot be sent again.
    """
    validate_request("fetch", client, request)
    validate_values(None, deadline, None, observers)
    validate_size("max_bytes", max_bytes)
    library = match_library(type(client), type(request))  # pyright: ignore
    call = Call(cast(SupportsSend, client), request, library, max_bytes, deadline, observers)
    return await call.run()


def cancel_on_disconnect(
    request: HTTPConnection, *, deadline: float | None = None
) -> AbstractAsyncContextManager[None]:
    """Cancel the block if the caller disconnects, or if the deadline passes.

        async with cancel_on_disconnect(request, deadline=5):
            user, orders = await asyncio.gather(fetch(...), fetch(...))

    Everything in the block is cancelled, including child tasks. A disconnect ends the request with
    the status 499, which only logs and middleware see. Nothing is logged as an error.

    The block reads the caller's messages ahead to notice the disconnect, and keeps them: use
    `request` in the block and after it as usual, for example `await request.body()` or
    `websocket.receive_text()`. It keeps at most 1 MiB. While more than that is unread, a disconnect
    is noticed only when the endpoint reads on.

    Arguments:
        request: The caller's `Request`, or a `WebSocket`.
        deadline: Seconds for the block.

    Raises:
        UpstreamTimeout: If the deadline passes. It is an `HTTPException` with the status 504, see
            [docs/errors.md][what-callers-get].
        HTTPException: With the status 499, if the caller disconnects.
        TypeError, ValueError: At once, if an argument is invalid.
    """
    if not hasattr(request, "_receive"):
        raise TypeError(
            f"cancel_on_disconnect needs the caller's Request or WebSocket, not "
            f"{describe_type(request)}"
        )
    validate_seconds("deadline", deadline)
    return CancellableBlock(request, deadline)
