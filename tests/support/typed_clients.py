"""What must type-check with the clients of both libraries, and what must not: mypy reads this.

It is not run. An error that is expected and does not come is an unused `type: ignore`.
"""

from typing import assert_type

import httpx
import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from asgi_upstream import (
    BufferedResponse,
    ReverseProxy,
    StreamedResponse,
    client_dependency,
    client_lifespan,
    forward_request,
    relay_websocket,
)
from asgi_upstream.transport.httpx2 import AsyncioTransport


def on_httpx(upstream: httpx.Response) -> None: ...
async def on_httpx2(upstream: httpx2.Response) -> Response | None: ...
def request_of_httpx(request: httpx.Request) -> None: ...
def request_of_httpx2(request: httpx2.Request) -> None: ...


def with_httpx(client: httpx.AsyncClient, request: Request, is_small: bool, url: str) -> None:
    outgoing = client.build_request("GET", "/")
    StreamedResponse(client, outgoing, on_response=on_httpx, decode=True)
    BufferedResponse(client, outgoing, on_response=lambda upstream: JSONResponse(upstream.json()))
    cls: type[StreamedResponse | BufferedResponse] = StreamedResponse
    cls(client, outgoing, on_response=on_httpx)
    assert_type(forward_request(client, request), httpx.Request)
    forward_request(client, request, url=httpx.URL(url) if is_small else url)
    StreamedResponse(client, outgoing, on_response=on_httpx2)  # type: ignore[arg-type]
    StreamedResponse(client, "/")  # type: ignore[call-overload]
    StreamedResponse(client, outgoing, decoded=True)  # type: ignore[call-overload]
    StreamedResponse(httpx.Client(), outgoing)  # type: ignore[call-overload]


def with_httpx2(client: httpx2.AsyncClient, other: httpx.AsyncClient, request: Request) -> None:
    outgoing = client.build_request("GET", "/")
    StreamedResponse(client, outgoing, on_response=on_httpx2, decode=True)
    BufferedResponse(client, outgoing, on_response=lambda upstream: JSONResponse(upstream.json()))
    assert_type(forward_request(client, request), httpx2.Request)
    forward_request(client, request, url=httpx2.URL("/"))
    StreamedResponse(client, forward_request(client, request))
    StreamedResponse(client, outgoing, on_response=on_httpx)  # type: ignore[arg-type]
    StreamedResponse(other, outgoing)  # type: ignore[misc]
    forward_request(client, request, url=httpx.URL("/"))  # type: ignore[misc]


async def the_rest(upstream: httpx2.Response, request: Request) -> None:
    StreamedResponse.from_response(upstream, on_response=on_httpx2)
    StreamedResponse.from_response(upstream, on_response=on_httpx)  # type: ignore[arg-type]
    ReverseProxy(on_request=request_of_httpx, on_response=on_httpx)
    ReverseProxy(on_request=request_of_httpx2, on_response=on_httpx2)
    transport = AsyncioTransport(limits=httpx2.Limits())
    client_lifespan(httpx2.AsyncClient, transport=transport)
    assert_type(await client_dependency("a")(request), httpx.AsyncClient)
    assert_type(await client_dependency("a", httpx2.AsyncClient)(request), httpx2.AsyncClient)


async def relayed(one: httpx.AsyncClient, two: httpx2.AsyncClient, websocket: WebSocket) -> None:
    await relay_websocket(one, websocket, httpx.URL("/"))
    await relay_websocket(two, websocket, httpx2.URL("/"))
    await relay_websocket(two, websocket, "/")
    await relay_websocket(two, websocket, httpx.URL("/"))  # type: ignore[misc]
    await relay_websocket(httpx.Client(), websocket)  # type: ignore[arg-type]
