"""The relays that are compared: each is an ASGI app for any path, alone in its process.

`WAY` names the one to serve, `UPSTREAM_URL` the upstream, `FRAMEWORK` Starlette or FastAPI. No way
has a limit of connections, and each waits for a minute.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, cast

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_upstream import (
    BufferedResponse,
    ReverseProxy,
    StreamedResponse,
    client_lifespan,
    forward_request,
    get_client,
)

UPSTREAM = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9")
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
WAIT = 60.0

Endpoint = Callable[[Request, Any], Awaitable[Response]]
Find = Callable[[Request], Awaitable[Any]]


async def from_state(request: Request) -> Any:
    """Find a peer's client, as `get_client` finds this library's."""
    return request.state.client


def app_with(endpoint: Endpoint, lifespan: Any, find: Find = from_state) -> ASGIApp:
    """Return an app of either framework whose endpoint gets the request and the client."""
    methods = ["GET", "POST"]
    if os.environ.get("FRAMEWORK") == "fastapi":
        fastapi = import_module("fastapi")

        async def dependent(
            request: Request, client: Annotated[Any, fastapi.Depends(find)]
        ) -> Response:
            return await endpoint(request, client)

        app: Any = fastapi.FastAPI(lifespan=lifespan)
        app.add_api_route("/{path:path}", dependent, methods=methods, response_model=None)
        return cast(ASGIApp, app)

    async def plain(request: Request) -> Response:
        return await endpoint(request, await find(request))

    routes = [Route("/{path:path}", plain, methods=methods)]
    return Starlette(routes=routes, lifespan=lifespan)


# The limit: no framework, a fixed request, no error handling.


def bare() -> ASGIApp:
    return _bare(None)


def bare_build_request() -> ASGIApp:
    return _bare(httpx.AsyncClient())


def _bare(client: httpx.AsyncClient | None) -> ASGIApp:
    idle: list[BareConnection] = []
    scheme, host, port = UPSTREAM.replace("/", "").split(":")
    tls = ssl.create_default_context() if scheme == "https" else None

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
            _, connection = await loop.create_connection(BareConnection, host, int(port), ssl=tls)
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
    builder = import_module("pyreqwest.client").ClientBuilder()
    if authority := os.environ.get("SSL_CERT_FILE"):  # which it does not read itself
        builder = builder.add_root_certificate_pem(Path(authority).read_bytes())
    transport = import_module("pyreqwest.compatibility.httpx").HttpxTransport(builder.build())
    return _by_the_idiom(httpx.AsyncClient, transport=transport)


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
    client = httpx.AsyncClient(timeout=WAIT, limits=LIMITS)
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
