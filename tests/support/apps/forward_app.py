"""Apps under test: ReverseProxy in each of its forms, in front of one upstream of raw sockets."""

import os
import ssl
from itertools import count
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import Receive, Scope, Send

from asgi_upstream import (
    ReverseProxy,
    StreamedResponse,
    combine_lifespans,
    count_open_exchanges,
    forward_request,
    get_client,
)
from asgi_upstream.lifespan import Lifespan
from tests.support.apps.relay_app import UPSTREAM, client
from tests.support.flavor import client_lifespan, httpx

numbers = count(1)


def by_tenant(connection: HTTPConnection) -> str:
    return "based" if connection.headers.get("x-tenant") == "b" else "client"


async def by_tenant_async(connection: HTTPConnection) -> str:
    return by_tenant(connection)


def numbered(request: httpx.Request) -> None:
    """So that an upstream can tell a request of the app's from one that was smuggled in."""
    request.headers["x-number"] = str(next(numbers))


def edits(request: httpx.Request) -> None:
    request.headers["x-edited"] = "yes"
    del request.headers["x-secret"]


async def replaces(request: httpx.Request) -> httpx.Request:
    return httpx.Request("PUT", f"{UPSTREAM}/instead", content=b"another")


def answers(request: httpx.Request) -> Response:
    return JSONResponse({"answered": request.url.path}, 299)


async def refuses(request: httpx.Request) -> None:
    raise HTTPException(429, "slow down")


def must_know(x_password: Annotated[str | None, Header()] = None) -> None:
    if x_password != "sesame":
        raise HTTPException(401, "who are you?")


router = APIRouter(prefix="/guarded", dependencies=[Depends(must_know)])
guarded = ReverseProxy(prefix="/guarded")


@router.api_route("/{path:path}", methods=["GET", "POST"])
async def guard(request: Request) -> Response:
    return await guarded.respond(request)


async def by_hand(request: Request) -> Response:
    client = await get_client(request)
    return StreamedResponse(client, forward_request(client, request, prefix="/by-hand"))


inner = FastAPI()
inner.mount("/api", ReverseProxy())


async def state(request: Request) -> Response:
    return JSONResponse({"pid": os.getpid()})


async def exchanges(request: Request) -> Response:
    return JSONResponse(count_open_exchanges(await get_client(request)))


def upstream_client(name: str = "client", *, path: str = "", **options: Any) -> Lifespan[object]:
    """A client of the upstream, on the transport that this run of the tests is about."""
    return client(name=name, base_url=UPSTREAM + path, timeout=10, **options)


lifespan = combine_lifespans(
    upstream_client(),
    upstream_client("based", path="/v1"),
    upstream_client("slashed", path="/v1/"),
    upstream_client(
        "own",
        headers={"x-api-key": "ours", "user-agent": "ours"},
        params={"key": "ours"},
        cookies={"session": "ours"},
        auth=("user", "pass"),
    ),
)

app = FastAPI(
    lifespan=lifespan,
    routes=[
        Route("/state", state),
        Route("/exchanges", exchanges),
        Mount("/forward", ReverseProxy()),
        Mount("/numbered", ReverseProxy(on_request=numbered)),
        Mount("/trusted", ReverseProxy(trust_forwarded_headers=True)),
        Mount("/based", ReverseProxy("based")),
        Mount("/slashed", ReverseProxy("slashed")),
        Mount("/own", ReverseProxy("own")),
        Mount("/café", ReverseProxy()),
        Mount("/few", ReverseProxy(methods=["GET", "POST"])),
        Mount("/prefixed", ReverseProxy(prefix="/prefixed/v2")),
        Mount("/outer", routes=[Mount("/inner", ReverseProxy())]),
        Mount("/fastapi", inner),
        Mount("/router", Router([Mount("/api", ReverseProxy())])),
        Mount("/tenant", ReverseProxy(by_tenant)),
        Mount("/tenant-async", ReverseProxy(by_tenant_async)),
        Mount("/edits", ReverseProxy(on_request=edits)),
        Mount("/replaces", ReverseProxy(on_request=replaces)),
        Mount("/answers", ReverseProxy(on_request=answers)),
        Mount("/refuses", ReverseProxy(on_request=refuses)),
        Mount("/rewrites", ReverseProxy("based", rewrite_redirects=True, rewrite_cookies=True)),
        Mount("/sets", ReverseProxy(headers={"x-set": "by the app", "x-removed": None})),
        Mount("/turns", ReverseProxy(headers=lambda fields: [(n, v[::-1]) for n, v in fields])),
        Route("/route/{path:path}", ReverseProxy(prefix="/route")),
        Route("/by-hand/{path:path}", by_hand, methods=["GET", "POST"]),
    ],
)
app.include_router(router)

# The whole app. Something must still open the client: the lifespan of an app with no other use.
_opener = Starlette(lifespan=lifespan, routes=[Route("/state", state)])
_whole = ReverseProxy()


async def whole(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan" or scope["path"] == "/state":
        await _opener(scope, receive, send)
    else:
        await _whole(scope, receive, send)


starlette = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/state", state),
        Mount("/sub", ReverseProxy()),
        Mount("/", ReverseProxy("based")),
    ],
)

# By HTTP/2 to an upstream whose certificate the file UPSTREAM_CA answers for.
h2 = FastAPI(
    lifespan=client_lifespan(
        base_url=UPSTREAM,
        http2=True,
        verify=ssl.create_default_context(cafile=os.environ.get("UPSTREAM_CA")),
        trust_env=False,
        timeout=60,  # 50 connections at once take long on a busy machine
    ),
    routes=[Route("/state", state), Mount("/forward", ReverseProxy())],
)
