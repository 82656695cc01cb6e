"""What a user's code must be told by a type checker, and what it must not.

Checked by mypy and by pyright, never run. `assert_type` and the plain lines say what is right; each
`type: ignore` marks a line that is wrong, and is an error itself where a checker finds no fault.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncIterator
from typing import Annotated, assert_type

import httpx
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from asgi_upstream import (
    BufferedResponse,
    ExchangeRecord,
    Outcome,
    PoolExhausted,
    ReverseProxy,
    StreamedResponse,
    UpstreamBodyTooLarge,
    UpstreamError,
    client_dependency,
    client_lifespan,
    combine_lifespans,
    count_open_exchanges,
    forward_request,
    get_client,
    upstream_errors,
)
from asgi_upstream.transport import AsyncioTransport, PoolState

# Lifespans


def own_client(base_url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=base_url)


Starlette(lifespan=client_lifespan())
FastAPI(lifespan=client_lifespan(base_url="https://api.example", timeout=3.0))
FastAPI(lifespan=client_lifespan(httpx.Client, name="sync_client"))
FastAPI(lifespan=client_lifespan(own_client, base_url="https://api.example"))
FastAPI(lifespan=client_lifespan(transport=AsyncioTransport()))
FastAPI(lifespan=combine_lifespans(client_lifespan(), client_lifespan(name="other")))

client_lifespan(name=1)  # type: ignore[arg-type]
client_lifespan("https://api.example")  # type: ignore[arg-type]
combine_lifespans(httpx.AsyncClient())  # type: ignore[arg-type]


# Clients

Client = Annotated[httpx.AsyncClient, Depends(get_client)]
Billing = Annotated[httpx.AsyncClient, Depends(client_dependency("billing"))]


async def clients(request: Request, socket: WebSocket, connection: HTTPConnection) -> None:
    assert_type(await get_client(request), httpx.AsyncClient)
    assert_type(await get_client(socket), httpx.AsyncClient)
    assert_type(await client_dependency("billing")(connection), httpx.AsyncClient)
    await get_client(request.scope)  # type: ignore[arg-type]
    assert_type(count_open_exchanges(await get_client(request)), int)


# Responses


async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk.upper()


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    async for chunk in chunks:
        yield chunk.decode()


def shape(upstream: httpx.Response) -> JSONResponse:
    return JSONResponse(upstream.json())


async def look(upstream: httpx.Response) -> None:
    upstream.headers["x-seen"] = "yes"


def event(exc: Exception) -> bytes:
    return b"event: error\n\n"


def seen(record: ExchangeRecord) -> None:
    assert_type(record.outcome, Outcome)
    assert_type(record.status, int | None)
    record.status = 200  # type: ignore[misc]


async def responses(client: Client, request: httpx.Request) -> Response:
    StreamedResponse(client, request, transform=upper, on_stream_error=event, observers=[seen])
    StreamedResponse(client, request, on_response=look, deadline=3, headers={"x-a": "b"})
    BufferedResponse(client, request, on_response=shape, max_bytes=1024)

    StreamedResponse(client)  # type: ignore[call-overload]
    StreamedResponse(client, "/path")  # type: ignore[call-overload]
    StreamedResponse(httpx.Client(), request)  # type: ignore[call-overload]
    StreamedResponse(client, request, transform=lines)  # type: ignore[arg-type]
    StreamedResponse(client, request, on_stream_error=b"")  # type: ignore[call-overload]
    StreamedResponse(client, request, max_bytes=1)  # type: ignore[call-overload]

    upstream = await client.send(request, stream=True)
    StreamedResponse.from_response(upstream, unknown=1)  # type: ignore[call-arg]
    return assert_type(StreamedResponse.from_response(upstream), StreamedResponse)


# Forwarding


def billing(connection: HTTPConnection) -> str:
    return connection.headers.get("x-tenant", "client")


def number(connection: HTTPConnection) -> int:
    return 1


app: ASGIApp = ReverseProxy("billing", deadline=5.0, rewrite_redirects=True)
Mount("/api", ReverseProxy(billing, headers={"x-a": "b", "x-b": None}))
ReverseProxy(number)  # type: ignore[arg-type]
ReverseProxy(dead_line=5.0)  # type: ignore[call-overload]


async def forwarding(client: Client, request: Request) -> None:
    assert_type(forward_request(client, request, prefix="/api"), httpx.Request)
    forward_request(client, request, url=httpx.URL("https://other.example/"))
    forward_request(client, request.url)  # type: ignore[arg-type]


# Errors


async def errors(client: Client) -> httpx.Response | None:
    try:
        with upstream_errors():
            return await client.get("/item")
    except (PoolExhausted, UpstreamBodyTooLarge) as exc:
        assert_type(exc.status_code, int)
        error: UpstreamError = exc
        raise error from None


@upstream_errors()
async def decorated(client: Client, number: int) -> httpx.Response:
    return await client.get(f"/item/{number}")


async def calls(client: Client) -> None:
    assert_type(await decorated(client, 1), httpx.Response)
    await decorated(client, "1")  # type: ignore[arg-type]


# The transport

transport = AsyncioTransport(limits=httpx.Limits(max_connections=10), uds="/run/upstream.sock")
httpx.AsyncClient(transport=transport)
httpx.Client(transport=transport)  # type: ignore[arg-type]
assert_type(transport.pool_state(), PoolState)
AsyncioTransport(limits=10)  # type: ignore[arg-type]
