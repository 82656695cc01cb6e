"""What a route would be written with otherwise."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp

from .frame import UPSTREAM, WAIT, app_with


def idiom() -> ASGIApp:
    module = import_module("httpx")
    limits = module.Limits(max_connections=None, max_keepalive_connections=None)
    return _by_the_idiom(module.AsyncClient, limits=limits)


def httpx2() -> ASGIApp:
    module = import_module("httpx2")
    limits = module.Limits(max_connections=None, max_keepalive_connections=None)
    return _by_the_idiom(module.AsyncClient, limits=limits)


def httpx_aiohttp() -> ASGIApp:
    # None would be aiohttp's own limit of 100 connections; 0 is none.
    httpx = import_module("httpx")
    limits = httpx.Limits(max_connections=0)
    transport = import_module("httpx_aiohttp").AiohttpTransport(limits=limits)
    return _by_the_idiom(httpx.AsyncClient, transport=transport)


def pyreqwest() -> ASGIApp:
    builder = import_module("pyreqwest.client").ClientBuilder()
    if authority := os.environ.get("SSL_CERT_FILE"):  # which it does not read itself
        builder = builder.add_root_certificate_pem(Path(authority).read_bytes())
    transport = import_module("pyreqwest.compatibility.httpx").HttpxTransport(builder.build())
    return _by_the_idiom(import_module("httpx").AsyncClient, transport=transport)


def _by_the_idiom(factory: Any, **options: Any) -> ASGIApp:
    async def endpoint(request: Request, client: Any) -> Response:
        url = UPSTREAM + request.scope["path"]
        if request.method == "POST":
            length = {"content-length": request.headers["content-length"]}
            sent = client.build_request("POST", url, content=request.stream(), headers=length)
        else:
            sent = client.build_request("GET", url)
        upstream = await client.send(sent, stream=True)
        return StreamingResponse(
            upstream.aiter_raw(),
            status_code=upstream.status_code,
            headers=dict(upstream.headers),
            background=BackgroundTask(upstream.aclose),
        )

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[dict[str, object]]:
        async with factory(timeout=WAIT, **options) as client:
            yield {"client": client}

    return app_with(endpoint, lifespan)


def aiohttp() -> ASGIApp:
    module = import_module("aiohttp")

    async def endpoint(request: Request, session: Any) -> Response:
        url = UPSTREAM + request.scope["path"]
        if request.method == "POST":
            length = {"content-length": request.headers["content-length"]}
            upstream = await session.post(url, data=request.stream(), headers=length)
        else:
            upstream = await session.get(url)

        async def body() -> AsyncIterator[bytes]:
            try:
                async for chunk in upstream.content.iter_any():
                    yield chunk
            finally:
                upstream.release()

        headers = dict(upstream.headers)
        return StreamingResponse(body(), status_code=upstream.status, headers=headers)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[dict[str, object]]:
        connector = module.TCPConnector(limit=0)
        timeout = module.ClientTimeout(total=None, sock_connect=WAIT, sock_read=WAIT)
        async with module.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        ) as session:
            yield {"client": session}

    return app_with(endpoint, lifespan)


def fastapi_proxy_lib() -> ASGIApp:
    httpx = import_module("httpx")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(timeout=WAIT, limits=limits)
    proxy = import_module("fastapi_proxy_lib.core.http").ReverseHttpProxy(
        client, base_url=UPSTREAM + "/"
    )

    async def endpoint(request: Request, client: Any) -> Response:
        response: Response = await proxy.proxy(request=request, path=request.path_params["path"])
        return response

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[dict[str, object]]:
        yield {"client": client}
        await proxy.aclose()

    return app_with(endpoint, lifespan)
