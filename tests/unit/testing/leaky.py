"""What the tests that test_plugin.py runs, clean ones and leaking ones, have in common."""

import asyncio
import functools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import anyio
import pytest
from fastapi.testclient import TestClient as FastAPITestClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_upstream import StreamedResponse, get_client
from asgi_upstream.testing import Upstream, aeventually, eventually, serve
from asgi_upstream.testing import no_leaks as watching
from tests.support.flavor import client_lifespan, httpx

__all__ = [
    "StreamedResponse", "TestClient", "Upstream", "aeventually", "anyio", "app_by", "asyncio",
    "calling", "cleared", "client_lifespan", "eventually", "get_client", "httpx", "kept", "later",
    "leave_open", "leave_running", "make_app", "on_both", "outer", "pytest", "quick", "serve",
    "served", "tested", "watching",
]  # fmt: skip

quick = pytest.mark.no_leaks(within=0.3)
on_both = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])

outer = httpx.AsyncClient(trust_env=False, timeout=None)  # older than any test
kept: list[object] = []
left_open: list[socket.socket] = []
threads: list[threading.Thread] = []


async def relay(request: Request) -> Response:
    client = await get_client(request)
    return StreamedResponse(client, client.build_request("GET", request.url.path))


def make_app(url: str) -> Starlette:
    lifespan = client_lifespan(base_url=url, timeout=30, trust_env=False)
    return Starlette(routes=[Route("/{path:path}", relay)], lifespan=lifespan)


def app_by(client: httpx.AsyncClient, url: str) -> StreamedResponse:
    """An app that answers with one exchange."""
    return StreamedResponse(client, client.build_request("GET", url))


def calling(app: StreamedResponse) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://app", timeout=None)


def leave_open(url: str) -> None:
    """A caller who stays until all is over."""
    sock = socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80), timeout=60)
    sock.sendall(b"GET /never HTTP/1.1\r\nhost: app\r\n\r\n")
    left_open.append(sock)


async def leave_running(upstream: Upstream, start: Callable[..., object]) -> None:
    """Let `start` start an exchange that stays open."""
    upstream.get("/never").stall()
    start(functools.partial(calling(app_by(outer, upstream.url + "/never")).get, "/"))
    await aeventually(lambda: upstream.open_exchanges == 1)


def later(call: Callable[[], object]) -> None:
    """Call it in a thread, whatever becomes of it."""

    def run() -> None:
        with suppress(Exception):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    threads.append(thread)


@pytest.fixture(scope="module", autouse=True)
def cleared() -> Iterator[None]:
    yield
    while left_open:
        left_open.pop().close()
    kept.clear()


@pytest.fixture
def served(upstream: Upstream, serve: Callable[..., str]) -> str:
    return serve(make_app(upstream.url))


@pytest.fixture(params=[TestClient, FastAPITestClient])
def tested(request: pytest.FixtureRequest, upstream: Upstream) -> Iterator[TestClient]:
    with request.param(make_app(upstream.url)) as caller:
        yield caller
        while threads:  # a test client that is closed in the middle of a call may hang
            threads.pop().join(60)
