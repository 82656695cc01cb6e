"""Relays a small body in each of the ways that are compared."""

import os

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from asgi_upstream import (
    BufferedResponse,
    StreamedResponse,
    client_lifespan,
    forward_request,
    get_client,
)

UPSTREAM = os.environ["UPSTREAM_URL"]


async def alone(request: Request) -> Response:
    return PlainTextResponse(b"x" * 1024)


async def idiom(request: Request) -> Response:
    client = await get_client(request)
    upstream = await client.send(client.build_request("GET", UPSTREAM), stream=True)
    return StreamingResponse(
        upstream.aiter_raw(),
        status_code=upstream.status_code,
        headers=dict(upstream.headers),
        background=BackgroundTask(upstream.aclose),
    )


async def streamed(request: Request) -> Response:
    client = await get_client(request)
    return StreamedResponse(client, client.build_request("GET", UPSTREAM))


async def buffered(request: Request) -> Response:
    client = await get_client(request)
    return BufferedResponse(client, client.build_request("GET", UPSTREAM))


async def forwarded(request: Request) -> Response:
    client = await get_client(request)
    return StreamedResponse(client, forward_request(client, request, prefix="/forwarded"))


async def post_by_hand(request: Request) -> Response:
    client = await get_client(request)
    length = {"content-length": request.headers["content-length"]}
    answer = await client.post(UPSTREAM, content=request.stream(), headers=length)
    return Response(answer.content, answer.status_code)


async def post_forwarded(request: Request) -> Response:
    client = await get_client(request)
    return StreamedResponse(client, forward_request(client, request, prefix="/post_forwarded"))


ENDPOINTS = (alone, idiom, streamed, buffered, forwarded)

app = Starlette(
    routes=[
        *(Route(f"/{endpoint.__name__}", endpoint) for endpoint in ENDPOINTS),
        Route("/post_by_hand", post_by_hand, methods=["POST"]),
        Route("/post_forwarded", post_forwarded, methods=["POST"]),
    ],
    lifespan=client_lifespan(base_url=UPSTREAM, limits=httpx.Limits(max_connections=None)),
)
