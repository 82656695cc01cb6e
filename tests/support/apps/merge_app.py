"""An app that merges two upstreams, with and without the caller's body, and sends heartbeats."""

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from asgi_upstream import StreamedResponse, cancel_on_disconnect, fetch, get_client
from tests.support.apps.relay_app import client, state
from tests.support.flavor import httpx


async def fetch_both(upstream: httpx.AsyncClient, path: str) -> list[int]:
    lengths: dict[int, int] = {}

    async def call(index: int) -> None:
        response = await fetch(upstream, upstream.build_request("GET", path))
        lengths[index] = len(response.content)

    async with anyio.create_task_group() as group:
        group.start_soon(call, 0)
        group.start_soon(call, 1)
    return [lengths[0], lengths[1]]


async def merge(request: Request) -> Response:
    """Read the caller's body `before`, `in` or `after` the block, or not at all."""
    options: dict[str, Any] = json.loads(request.headers.get("x-options", "{}"))
    order, upstream, body = options.get("order"), await get_client(request), b""
    if order == "before":
        body = await request.body()
    async with cancel_on_disconnect(request, deadline=options.get("deadline")):
        if order == "in":
            body = await request.body()
        lengths = await fetch_both(upstream, options["target"])
    if order == "after":
        body = await request.body()
    return JSONResponse({"lengths": lengths, "body": body.decode()})


async def report(request: Request) -> Response:
    return JSONResponse(await state())


async def heartbeat(request: Request) -> Response:
    upstream = await get_client(request)
    return StreamedResponse(
        upstream,
        upstream.build_request("GET", "/silent_after_head"),
        media_type="text/event-stream",
        heartbeat=0.05,
    )


async def dispatch(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    return await call_next(request)


routes = [
    Route("/merge", merge, methods=["GET", "POST"]),
    Route("/heartbeat", heartbeat),
]
app = Starlette(
    lifespan=client(
        base_url=os.environ["UPSTREAM_URL"],
        limits=httpx.Limits(max_connections=int(os.environ.get("LIMIT", "10"))),
    ),
    routes=[
        *routes,
        Mount(
            "/base",
            Starlette(
                routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)]
            ),
        ),
        Route("/state", report),
    ],
)
