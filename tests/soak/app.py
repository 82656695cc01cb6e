"""The app of a soak: relays each plan the way its path says, and counts."""

import os
from collections import Counter
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

import asgi_upstream
from asgi_upstream import BufferedResponse, ReverseProxy, StreamedResponse, combine_lifespans
from asgi_upstream.dependencies import find_client
from tests.support.apps.relay_app import UPSTREAM, client

KEPT_IDLE = 2.0
"""Seconds that a connection to the upstream is kept idle."""

FRAME = b"event: error\n\n"
FAULTY = os.environ.get("FAULTY_UPSTREAM_URL", UPSTREAM)

exchanges = 0
records: Counter[str] = Counter()


def observe(record: Any) -> None:
    records[record.outcome] += 1


observing: dict[str, Any] = (
    {"observers": [observe]} if hasattr(asgi_upstream, "ExchangeRecord") else {}
)


def client_name(connection: HTTPConnection) -> str:
    """Patient with an upstream that will answer, and not with one that will stall."""
    _, line, fate, _ = connection.url.path.rsplit("/", 3)
    return "faulty" if line == "faulty" else "hasty" if fate.startswith("stall") else "client"


class Relay:
    """An endpoint in front of the responses, which counts the exchanges that begin."""

    def __init__(self, response_class: type[StreamedResponse | BufferedResponse], **options: Any):
        self._response_class = response_class
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        name = client_name(request)
        relayed = find_client(request, name)
        outgoing = relayed.build_request(
            request.method,
            f"{request.url.path}?{request.url.query}",
            content=request.stream() if request.method in ("POST", "PUT") else None,
        )
        options = self._options | ({"deadline": 6} if name == "faulty" else {})
        await self._response_class(relayed, outgoing, **options)(scope, receive, send)


def counted(app: ASGIApp) -> ASGIApp:
    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        global exchanges
        exchanges += 1
        await app(scope, receive, send)

    return counting


def lines(name: str, url: str, read: float) -> Any:
    timeout = httpx.Timeout(read, connect=5, pool=10)
    limits = httpx.Limits(
        max_connections=100, max_keepalive_connections=20, keepalive_expiry=KEPT_IDLE
    )
    return client(name=name, base_url=url, timeout=timeout, limits=limits, **observing)


async def forwarded(scope: Scope, receive: Receive, send: Send) -> None:
    faulty = client_name(HTTPConnection(scope)) == "faulty"
    await (_faulty_forward if faulty else _forward)(scope, receive, send)


_forward, _faulty_forward = ReverseProxy(client_name), ReverseProxy(client_name, deadline=6)


async def state(request: Request) -> Response:
    return JSONResponse({"pid": os.getpid()})


async def count(request: Request) -> Response:
    return JSONResponse({"exchanges": exchanges, "records": records if observing else None})


app = Starlette(
    lifespan=combine_lifespans(
        lines("client", UPSTREAM, read=30),
        lines("hasty", UPSTREAM, read=1),
        lines("faulty", FAULTY, read=1.5),
    ),
    routes=[
        Route("/state", state),
        Route("/_records", count),
        Mount("/streamed", counted(Relay(StreamedResponse))),
        Mount("/framed", counted(Relay(StreamedResponse, on_stream_error=lambda exc: FRAME))),
        Mount("/buffered", counted(Relay(BufferedResponse))),
        Mount("/forwarded", counted(forwarded)),
    ],
)
