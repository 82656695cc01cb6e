"""The handshake of a WebSocket: what of it crosses, and how it is refused (RFC 6455 4)."""

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
from ..errors import protocol_error

_HANDSHAKE_PREFIX = b"sec-websocket-"
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FRAMING_HEADERS = (b"content-length", b"transfer-encoding")
_SCHEMES = {"ws": "http", "wss": "https"}  # as X-Forwarded-Proto mostly has it
_DENIAL = "websocket.http.response"  # the extension of ASGI to refuse with any response


def build_handshake(
    client: httpx.AsyncClient, websocket: HTTPConnection, **options: Any
) -> httpx.Request:
    """The caller's handshake as a request to the upstream; `options` are `forward_request`'s."""
    scope = websocket.scope
    fields = [
        field
        for field in scope["headers"]
        if not field[0]
        .replace(b"_", b"-")
        .lower()
        .startswith((_HANDSHAKE_PREFIX, *_FRAMING_HEADERS))
    ]
    scheme = _SCHEMES.get(scope["scheme"], scope["scheme"])
    version = scope.get("http_version", "1.1")  # Starlette's test client gives none
    seen = HTTPConnection(
        {**scope, "method": "GET", "scheme": scheme, "headers": fields, "http_version": version}
    )
    request = forward_request(client, seen, **options)
    set_upgrade_headers(request, scope.get("subprotocols") or ())
    return request


def set_upgrade_headers(request: httpx.Request, subprotocols: Sequence[str]) -> None:
    """RFC 6455 4.1."""
    request.headers["connection"], request.headers["upgrade"] = "Upgrade", "websocket"
    request.headers["sec-websocket-version"] = "13"
    request.headers["sec-websocket-key"] = base64.b64encode(os.urandom(16)).decode()
    if subprotocols:
        request.headers["sec-websocket-protocol"] = ", ".join(subprotocols)


def validate_upgrade(upstream: httpx.Response, subprotocols: Sequence[str]) -> None:
    """Refuse a 101 that answers something else (RFC 6455 4.1)."""
    fields = upstream.headers
    key = upstream.request.headers["sec-websocket-key"]
    token = base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest())
    connection = fields.get("connection", "").lower().split(",")
    if (
        fields.get("upgrade", "").lower() != "websocket"
        or "upgrade" not in map(str.strip, connection)
        or fields.get("sec-websocket-accept", "").strip().encode() != token
        or fields.get("sec-websocket-protocol") not in (None, *subprotocols)
        or "sec-websocket-extensions" in fields  # none was offered
    ):
        raise protocol_error("invalid response to the WebSocket handshake")


def handshake_response_headers(upstream: httpx.Response) -> RawHeaders:
    """The fields of the upstream's answer that the caller gets; a refusal's length is set anew."""
    fields = end_to_end_response_headers(upstream.headers.raw)
    # RFC 9110 8.6: no Content-Length with a 101, which has no content.
    return [
        field for field in fields if not field[0].startswith((_HANDSHAKE_PREFIX, *_FRAMING_HEADERS))
    ]


@asynccontextmanager
async def close_on_http_exception(websocket: WebSocket) -> AsyncGenerator[None]:
    """Let the app answer an `HTTPException`; close, where the server takes no other answer."""
    try:
        yield
    except HTTPException:
        if _DENIAL in (websocket.scope.get("extensions") or ()):
            raise
        await websocket.close(1008)


async def send_denial_response(websocket: WebSocket, response: Response) -> None:
    """Answer the handshake with a response; close, where the server takes none."""
    if _DENIAL in (websocket.scope.get("extensions") or ()):
        await response(websocket.scope, websocket.receive, websocket.send)
    else:
        await websocket.close(1008)
