"""Common middleware, each around a relay of its own. See docs/compositions.

uvicorn examples.compositions.middleware:app
curl -N http://127.0.0.1:8000/none/api/slow-text
curl -N --compressed http://127.0.0.1:8000/gzip/api/slow-text    # streams with Starlette 1.10
"""

import asyncio
import os

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_upstream import BufferedResponse, ReverseProxy, client_lifespan, get_client

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
TIMEOUT = float(os.environ.get("TIMEOUT", "10"))  # seconds


class Visits:
    """Writes to the session before the response starts, because the head carries it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = scope["session"]
        session["visits"] = session.get("visits", 0) + 1
        await self.app(scope, receive, send)


class WholeTimeout:
    """Limits the whole response, like pure ASGI middleware does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(TIMEOUT):
                await self.app(scope, receive, sending)
        except TimeoutError:
            if started:
                raise
            await PlainTextResponse("too slow\n", 504)(scope, receive, send)


async def head_timeout(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Limits the time to the head, like `BaseHTTPMiddleware` does."""
    try:
        return await asyncio.wait_for(call_next(request), TIMEOUT)
    except TimeoutError:
        return PlainTextResponse("too slow\n", 504)


async def stamp(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers["x-stamp"] = "1"
    return response


async def buffered(request: Request) -> Response:
    client = await get_client(request)
    url = httpx.URL(f"/{request.path_params['path']}", params=request.query_params)
    return BufferedResponse(client, client.build_request("GET", url))


def drop_cors_headers(upstream: httpx.Response) -> None:
    """Remove the upstream's CORS headers, because the app's middleware decides."""
    for name in [name for name in upstream.headers if name.startswith("access-control-")]:
        del upstream.headers[name]


def behind(*middleware: Middleware) -> ASGIApp:
    """Return an app with this middleware and a streamed and a buffered route."""
    proxy = ReverseProxy(on_response=drop_cors_headers)
    routes = [Mount("/api", proxy), Route("/buffered/{path}", buffered)]
    return Starlette(routes=routes, middleware=middleware)


app = Starlette(
    lifespan=client_lifespan(base_url=UPSTREAM_URL),
    routes=[
        Mount("/none", behind()),
        Mount("/cors", behind(Middleware(CORSMiddleware, allow_origins=["https://page.example"]))),
        Mount("/gzip", behind(Middleware(GZipMiddleware))),
        Mount(
            "/session",
            behind(Middleware(SessionMiddleware, secret_key="not so secret"), Middleware(Visits)),
        ),
        Mount("/hosts", behind(Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1"]))),
        Mount("/base", behind(Middleware(BaseHTTPMiddleware, dispatch=stamp))),
        Mount("/whole-timeout", behind(Middleware(WholeTimeout))),
        Mount("/head-timeout", behind(Middleware(BaseHTTPMiddleware, dispatch=head_timeout))),
    ],
)
