"""This library."""

from collections.abc import Callable
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.types import ASGIApp

from asgi_upstream import (
    BufferedResponse,
    ReverseProxy,
    StreamedResponse,
    client_lifespan,
    forward_request,
    get_client,
)

from .frame import UPSTREAM, WAIT, app_with

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


def alone() -> ASGIApp:
    """No relay at all: the cost of the server and the framework."""

    async def endpoint(request: Request, client: Any) -> Response:
        return PlainTextResponse(b"x" * 1024)

    async def find(request: Request) -> None:
        return None

    return app_with(endpoint, None, find)


def _library(answer: Callable[[httpx.AsyncClient, Request], Response], **options: Any) -> ASGIApp:
    async def endpoint(request: Request, client: Any) -> Response:
        return answer(client, request)

    return app_with(endpoint, _lifespan(**options), get_client)


def _lifespan(**options: Any) -> Any:
    return client_lifespan(base_url=UPSTREAM, timeout=WAIT, **(options or {"limits": LIMITS}))


def _on_httpx() -> dict[str, Any]:
    return {"transport": httpx.AsyncHTTPTransport(limits=LIMITS)}


def _streamed(client: httpx.AsyncClient, request: Request) -> Response:
    if request.method == "POST":
        return _forwarded(client, request)
    return StreamedResponse(client, client.build_request("GET", UPSTREAM + request.scope["path"]))


def _buffered(client: httpx.AsyncClient, request: Request) -> Response:
    return BufferedResponse(client, client.build_request("GET", UPSTREAM + request.scope["path"]))


def _forwarded(client: httpx.AsyncClient, request: Request) -> Response:
    return StreamedResponse(client, forward_request(client, request))


def streamed() -> ASGIApp:
    return _library(_streamed)


def buffered() -> ASGIApp:
    return _library(_buffered)


def forwarded() -> ASGIApp:
    return _library(_forwarded)


def mounted() -> ASGIApp:
    return Starlette(routes=[Mount("/", ReverseProxy())], lifespan=_lifespan())


def stock_streamed() -> ASGIApp:
    return _library(_streamed, **_on_httpx())


def stock_buffered() -> ASGIApp:
    return _library(_buffered, **_on_httpx())


def stock_forwarded() -> ASGIApp:
    return _library(_forwarded, **_on_httpx())
