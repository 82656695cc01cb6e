"""The app under test, on every server: relays what its path says, as its `x-options` say.

`/{plain|base|bases|gzip}/{streamed|buffered|sync}/{behaviour of the upstream}`
"""

import asyncio
import json
import logging
import os
import ssl
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount

from asgi_upstream import (
    BufferedResponse,
    ReverseProxy,
    StreamedResponse,
    UpstreamError,
    client_dependency,
    combine_lifespans,
    get_client,
)
from asgi_upstream.lifespan import Lifespan
from tests.support.flavor import client_lifespan, httpx

logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)

UPSTREAM = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9")
TIMEOUT = httpx.Timeout(120.0, connect=60.0)
ran_in_background: list[str] = []


async def failing(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in body:
        yield chunk
        raise ValueError("the transform broke")


async def upper(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in body:
        yield chunk.upper()


def forbid(upstream: httpx.Response) -> None:
    raise HTTPException(403, "forbidden on the way")


def crash(upstream: httpx.Response) -> None:
    raise ValueError("on_response broke")


def replace(upstream: httpx.Response) -> Response:
    return JSONResponse({"instead": True}, status_code=207)


NAMED: dict[str, Any] = {
    "failing": failing,
    "upper": upper,
    "forbid": forbid,
    "crash": crash,
    "replace": replace,
    "frame": lambda exc: f"event: error\ndata: {type(exc).__name__}\n\n".encode(),
}


def respond(request: Request, client: httpx.AsyncClient, kind: str, path: str) -> Response:
    options = json.loads(request.headers.get("x-options", "{}"))
    timeout = options.pop("timeout", TIMEOUT)
    timeout = httpx.Timeout(**timeout) if isinstance(timeout, dict) else httpx.Timeout(timeout)
    url = options.pop("url", f"{UPSTREAM}/{path}?{request.url.query}")
    upload = options.pop("upload", False)
    outgoing = client.build_request(
        request.method, url, timeout=timeout, content=request.stream() if upload else None
    )
    for key in ("transform", "on_response", "on_stream_error"):
        if key in options:
            options[key] = NAMED[options[key]]
    if "background" in options:
        options["background"] = BackgroundTask(ran_in_background.append, options["background"])
    response_class = BufferedResponse if kind == "buffered" else StreamedResponse
    return response_class(client, outgoing, **options)


Client = Annotated[httpx.AsyncClient, Depends(get_client)]
Narrow = Annotated[httpx.AsyncClient, Depends(client_dependency("narrow"))]
Fifty = Annotated[httpx.AsyncClient, Depends(client_dependency("fifty"))]
METHODS = ["GET", "HEAD", "POST", "PUT"]


def routes(app: FastAPI) -> FastAPI:
    @app.api_route("/sync/{path:path}", methods=METHODS)
    def sync(request: Request, client: Client, path: str) -> Response:
        return respond(request, client, "streamed", path)

    @app.api_route("/narrow/{path:path}", methods=METHODS)
    async def narrow(request: Request, client: Narrow, path: str) -> Response:
        return respond(request, client, "streamed", path)

    @app.api_route("/fifty/{path:path}", methods=METHODS)
    async def fifty(request: Request, client: Fifty, path: str) -> Response:
        return respond(request, client, "streamed", path)

    @app.api_route("/{kind}/{path:path}", methods=METHODS)
    async def relay(request: Request, client: Client, kind: str, path: str) -> Response:
        return respond(request, client, kind, path)

    return app


async def passing(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers["x-base"] = "passed"
    return response


async def dropping(request: Request, call_next: RequestResponseEndpoint) -> Response:
    await call_next(request)
    return PlainTextResponse("dropped")


async def racing(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """A timeout middleware of the usual kind."""
    try:
        with anyio.fail_after(0.3):
            return await call_next(request)
    except TimeoutError:
        return PlainTextResponse("too slow", 504)


async def handled(request: Request, exc: Exception) -> Response:
    return PlainTextResponse(f"handled {type(exc).__name__}", 555)


plain = routes(FastAPI())
base = routes(FastAPI())
base.add_middleware(BaseHTTPMiddleware, dispatch=passing)
bases = routes(FastAPI())
bases.add_middleware(GZipMiddleware, minimum_size=1)
bases.add_middleware(BaseHTTPMiddleware, dispatch=passing)
bases.add_middleware(BaseHTTPMiddleware, dispatch=passing)
zipping = routes(FastAPI())
zipping.add_middleware(GZipMiddleware, minimum_size=1)
dropped = routes(FastAPI())
dropped.add_middleware(BaseHTTPMiddleware, dispatch=dropping)
raced = routes(FastAPI())
raced.add_middleware(BaseHTTPMiddleware, dispatch=racing)
handling = routes(FastAPI())
handling.add_exception_handler(UpstreamError, handled)


def client(
    *,
    limits: httpx.Limits | None = None,
    verify: ssl.SSLContext | bool = True,
    **options: Any,
) -> Lifespan[object]:
    """A client on the transport that this run of the tests is about."""
    limits = limits or httpx.Limits(max_connections=100, max_keepalive_connections=20)
    if os.environ.get("TRANSPORT") == "asyncio":
        from tests.support.flavor import AsyncioTransport

        transport = AsyncioTransport(limits=limits, verify=verify)
        return client_lifespan(transport=transport, **options)
    stock = httpx.AsyncHTTPTransport(limits=limits, verify=verify, trust_env=False)
    return client_lifespan(transport=stock, **options)


app = FastAPI(
    lifespan=combine_lifespans(
        client(limits=httpx.Limits(max_connections=1000)),
        client(name="upstream", base_url=UPSTREAM, timeout=TIMEOUT),
        client(name="fifty", limits=httpx.Limits(max_connections=50)),
        client(name="narrow", limits=httpx.Limits(max_connections=1)),
    ),
    routes=[
        Mount("/plain", plain),
        Mount("/base", base),
        Mount("/bases", bases),
        Mount("/gzip", zipping),
        Mount("/dropped", dropped),
        Mount("/raced", raced),
        Mount("/handled", handling),
        Mount("/forward", ReverseProxy("upstream")),
    ],
)


@app.get("/state")
async def state() -> dict[str, object]:
    try:
        tasks = len(asyncio.all_tasks())
    except RuntimeError:  # trio
        tasks = 0
    return {"pid": os.getpid(), "background": ran_in_background, "tasks": tasks}
