"""The relays that are compared: each is an ASGI app for any path, alone in its process.

`WAY` names the one to serve, `UPSTREAM_URL` what is behind it. No way has a limit of connections,
and each waits for a minute.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, cast

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_upstream import (
    BufferedResponse,
    StreamedResponse,
    client_lifespan,
    forward_request,
    get_client,
)
from asgi_upstream.transport import AsyncioTransport

UPSTREAM = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9")
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
WAIT = 60.0

Endpoint = Callable[[Request], Awaitable[Response]]


def starlette(endpoint: Endpoint, lifespan: Any) -> Starlette:
    routes = [Route("/{path:path}", endpoint, methods=["GET", "POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


# The limit: no framework, a fixed request, no error handling.


def bare() -> ASGIApp:
    return _bare(None)


def bare_build_request() -> ASGIApp:
    return _bare(httpx.AsyncClient())


def _bare(client: httpx.AsyncClient | None) -> ASGIApp:
    idle: list[BareConnection] = []
    host, port = UPSTREAM.removeprefix("http://").split(":")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: bytes = scope["raw_path"]
        if client is not None:
            client.build_request("GET", UPSTREAM + scope["path"])
        if idle:
            connection = idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(BareConnection, host, int(port))
        if scope["method"] == "POST":
            length = int(path[len(b"/upload/") :])
            connection.write(
                b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path, length)
            )
            more = True
            while more:
                message = await receive()
                more = message.get("more_body", False)
                await connection.write_and_wait(message["body"])
        else:
            connection.write(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path)
        data = await connection.read()
        body = data[data.index(b"\r\n\r\n") + 4 :]
        if path.startswith(b"/events"):
            await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
            ended = False
            while not ended:
                ended = body.endswith(b"0\r\n\r\n")
                # Chunks come whole: a line with the length, and one with an event.
                events = b"".join(body.split(b"\r\n")[1::2])
                if events:
                    message = {"type": "http.response.body", "body": events, "more_body": True}
                    await send(message)
                if not ended:
                    body = await connection.read()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            left = 2 if scope["method"] == "POST" else int(path[1:])
            headers = [*_BYTES, (b"content-length", b"%d" % left)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while True:
                left -= len(body)
                if body or not left:
                    await send({"type": "http.response.body", "body": body, "more_body": left > 0})
                if not left:
                    break
                body = await connection.read()
        idle.append(connection)

    return app


_EVENTS = [(b"content-type", b"text/event-stream")]
_BYTES = [(b"content-type", b"application/octet-stream")]


class BareConnection(asyncio.Protocol):
    MOST = 256 << 10  # bytes that wait for the caller before reading pauses

    def __init__(self) -> None:
        self._received = b""
        self._is_paused = False
        self._reader: asyncio.Future[bytes] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._may_write = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write

    def data_received(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.set_result(data)
            self._reader = None
            return
        self._received += data
        if len(self._received) >= self.MOST:
            self._is_paused = True
            self._transport.pause_reading()

    async def read(self) -> bytes:
        if self._received:
            data, self._received = self._received, b""
            if self._is_paused:
                self._is_paused = False
                self._transport.resume_reading()
            return data
        self._reader = asyncio.get_running_loop().create_future()
        return await self._reader

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        if self._writer is not None:
            self._writer.set_result(None)
            self._writer = None

    async def write_and_wait(self, data: bytes) -> None:
        self.write(data)
        if not self._may_write:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer


# This library.


def alone() -> ASGIApp:
    """No relay at all: what the server and the framework cost."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(b"x" * 1024)

    return starlette(endpoint, None)


def _library(answer: Callable[[httpx.AsyncClient, Request], Response], **options: Any) -> ASGIApp:
    async def endpoint(request: Request) -> Response:
        return answer(await get_client(request), request)

    lifespan = client_lifespan(base_url=UPSTREAM, timeout=WAIT, **options)
    return starlette(endpoint, lifespan)


def _streamed(client: httpx.AsyncClient, request: Request) -> Response:
    if request.method == "POST":
        return _forwarded(client, request)
    return StreamedResponse(client, client.build_request("GET", UPSTREAM + request.scope["path"]))


def _buffered(client: httpx.AsyncClient, request: Request) -> Response:
    return BufferedResponse(client, client.build_request("GET", UPSTREAM + request.scope["path"]))


def _forwarded(client: httpx.AsyncClient, request: Request) -> Response:
    return StreamedResponse(client, forward_request(client, request))


def streamed() -> ASGIApp:
    return _library(_streamed, transport=AsyncioTransport(limits=LIMITS))


def buffered() -> ASGIApp:
    return _library(_buffered, transport=AsyncioTransport(limits=LIMITS))


def forwarded() -> ASGIApp:
    return _library(_forwarded, transport=AsyncioTransport(limits=LIMITS))


def stock_streamed() -> ASGIApp:
    return _library(_streamed, limits=LIMITS)


def stock_buffered() -> ASGIApp:
    return _library(_buffered, limits=LIMITS)


def stock_forwarded() -> ASGIApp:
    return _library(_forwarded, limits=LIMITS)


# What a route would be written with otherwise.


def idiom() -> ASGIApp:
    return _by_the_idiom(httpx.AsyncClient, limits=LIMITS)


def httpx2() -> ASGIApp:
    module = import_module("httpx2")
    limits = module.Limits(max_connections=None, max_keepalive_connections=None)
    return _by_the_idiom(module.AsyncClient, limits=limits)


def httpx_aiohttp() -> ASGIApp:
    # None would be aiohttp's own limit of 100 connections; 0 is none.
    limits = httpx.Limits(max_connections=0)
    transport = import_module("httpx_aiohttp").AiohttpTransport(limits=limits)
    return _by_the_idiom(httpx.AsyncClient, transport=transport)


def pyreqwest() -> ASGIApp:
    transport = import_module("pyreqwest.compatibility.httpx").HttpxTransport()
    return _by_the_idiom(httpx.AsyncClient, transport=transport)


def _by_the_idiom(factory: Any, **options: Any) -> ASGIApp:
    async def endpoint(request: Request) -> Response:
        client = request.state.client
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

    return starlette(endpoint, lifespan)


def aiohttp() -> ASGIApp:
    module = import_module("aiohttp")

    async def endpoint(request: Request) -> Response:
        session = request.state.session
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
            yield {"session": session}

    return starlette(endpoint, lifespan)


def fastapi_proxy_lib() -> ASGIApp:
    client = httpx.AsyncClient(timeout=WAIT, limits=LIMITS)
    proxy = import_module("fastapi_proxy_lib.core.http").ReverseHttpProxy(
        client, base_url=UPSTREAM + "/"
    )

    async def endpoint(request: Request) -> Response:
        response: Response = await proxy.proxy(request=request, path=request.path_params["path"])
        return response

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        yield
        await proxy.aclose()

    return starlette(endpoint, lifespan)


NEEDS = {
    "aiohttp": "aiohttp",
    "httpx_aiohttp": "httpx_aiohttp",
    "pyreqwest": "pyreqwest",
    "httpx2": "httpx2",
    "fastapi_proxy_lib": "fastapi_proxy_lib",
}
"""The package that a way is about, where it may be missing."""

if "WAY" in os.environ:
    app: ASGIApp = globals()[os.environ["WAY"]]()
