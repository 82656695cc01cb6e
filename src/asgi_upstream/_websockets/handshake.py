"""Builds, sends, validates and refuses WebSocket handshakes (RFC 6455 4)."""

import base64
import hashlib
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.websockets import WebSocket

from .._exchange.response_head import end_to_end_response_headers
from .._forwarding.request import forward_request
from .._headers import RawHeaders
from .._httpx.cancellation import defer_cancellation
from .._httpx.proxy_tunnels import prepare_handshake
from .._httpx.workarounds import clean_up_pool
from .._logging import logger
from ..errors import protocol_error
from ..records import Observer
from ..responses import BufferedResponse

_HANDSHAKE_PREFIX = b"sec-websocket-"
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # (RFC 6455 1.3)
_FRAMING_HEADERS = (b"content-length", b"transfer-encoding")
_HTTP_SCHEMES = {"ws": "http", "wss": "https"}
_DENIAL_EXTENSION = "websocket.http.response"  # ASGI's extension to refuse with any response


def build_handshake(
    client: httpx.AsyncClient, websocket: HTTPConnection, **options: Any
) -> httpx.Request:
    """Return the caller's handshake as a request to the upstream.

    Arguments:
        websocket: The caller's WebSocket. ASGI's optional scope keys may be missing.
        options: Options of `forward_request`.
    """
    scope = websocket.scope
    scheme = scope.get("scheme") or "ws"
    connection = HTTPConnection(
        {
            **scope,
            "method": "GET",
            "scheme": _HTTP_SCHEMES.get(scheme, scheme),
            "query_string": scope.get("query_string") or b"",
            "headers": [(name, value) for name, value in scope["headers"] if _crosses(name)],
            "http_version": scope.get("http_version", "1.1"),
        }
    )
    request = forward_request(client, connection, **options)
    set_upgrade_headers(request, scope.get("subprotocols") or ())
    return request


def _crosses(name: bytes) -> bool:
    name = name.replace(b"_", b"-").lower()
    return not name.startswith((_HANDSHAKE_PREFIX, *_FRAMING_HEADERS))


def set_upgrade_headers(request: httpx.Request, subprotocols: Sequence[str]) -> None:
    """Set the headers of a client's handshake (RFC 6455 4.1)."""
    request.headers["connection"], request.headers["upgrade"] = "Upgrade", "websocket"
    request.headers["sec-websocket-version"] = "13"
    request.headers["sec-websocket-key"] = base64.b64encode(os.urandom(16)).decode()
    if subprotocols:
        request.headers["sec-websocket-protocol"] = ", ".join(subprotocols)


async def send_handshake(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """Send the handshake, and return the upstream's response, which is open."""
    try:
        prepare_handshake(client, request)
        return await client.send(request, stream=True, follow_redirects=False)
    except BaseException as exc:
        await defer_cancellation(clean_up_pool(client, request.url, exc))
        raise


def validate_upgrade(response: httpx.Response, subprotocols: Sequence[str]) -> None:
    """Reject a 101 that does not answer this handshake (RFC 6455 4.1).

    Raises:
        UpstreamProtocolError: If it does not.
    """
    headers = response.headers
    key = response.request.headers["sec-websocket-key"]
    token = base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest())
    connection = headers.get("connection", "").lower().split(",")
    if (
        headers.get("upgrade", "").lower() != "websocket"
        or "upgrade" not in map(str.strip, connection)
        or headers.get("sec-websocket-accept", "").strip().encode() != token
        or headers.get("sec-websocket-protocol") not in (None, *subprotocols)
        or "sec-websocket-extensions" in headers  # None was offered.
    ):
        raise protocol_error("invalid response to the WebSocket handshake")


def handshake_response_headers(response: httpx.Response) -> RawHeaders:
    """Return the headers of the upstream's answer that the caller gets.

    Content-Length is left out. A 101 has none (RFC 9110 8.6), and a denial response sets its own.
    """
    headers = end_to_end_response_headers(response.headers.raw)
    return [header for header in headers if _crosses(header[0])]


def build_denial_response(response: httpx.Response, observer: Observer) -> Response:
    """Return the upstream's refusal as a response to the caller.

    Arguments:
        observer: Called with the record of the response.
    """
    if response.status_code == 403:
        logger.info(
            "the upstream refused a WebSocket handshake with 403 (%s); if it compares Origin "
            "with Host, use preserve_host=True",
            response.request.url.path,
        )
    response.headers = type(response.headers)(handshake_response_headers(response))
    # In one chunk, because granian accepts no more and uvicorn collects them.
    return BufferedResponse.from_response(response, observers=[observer])


@asynccontextmanager
async def close_on_http_exception(websocket: WebSocket) -> AsyncGenerator[None]:
    """Let the app answer an `HTTPException`. Close if the server cannot send a response."""
    try:
        yield
    except HTTPException:
        if _DENIAL_EXTENSION in (websocket.scope.get("extensions") or ()):
            raise
        await websocket.close(1008)


async def send_denial_response(websocket: WebSocket, response: Response) -> None:
    """Refuse the handshake with a response. Close if the server cannot send one."""
    if _DENIAL_EXTENSION in (websocket.scope.get("extensions") or ()):
        await response(websocket.scope, websocket.receive, websocket.send)
    else:
        await websocket.close(1008)
