"""`serve` runs an app on a real uvicorn, and stops it."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
import pytest
from httpx_ws import AsyncWebSocketSession, aconnect_ws
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.protocols.http.h11_impl import H11Protocol

from asgi_upstream import StreamedResponse, get_client
from asgi_upstream.testing import Upstream, serve
from asgi_upstream.testing._listening import LoopbackServer
from tests.support.flavor import client_lifespan, httpx
from tests.support.waiting import eventually

pytestmark = pytest.mark.process


async def hello(request: Request) -> Response:
    return PlainTextResponse(f"hello from {request.url.path}")


ROUTES = [Route("/hello", hello)]


def get(url: str) -> str:
    return httpx.get(url, trust_env=False).text


def test_an_app_is_served_and_then_it_is_not() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        events.append("up")
        yield
        events.append("down")

    with serve(Starlette(routes=ROUTES, lifespan=lifespan)) as url:
        assert get(f"{url}/hello") == "hello from /hello"
        assert events == ["up"]
    assert events == ["up", "down"]
    with pytest.raises(httpx.ConnectError):
        get(url)


@pytest.mark.anyio
async def test_an_app_is_served_beside_a_test_on_any_event_loop() -> None:
    async with (
        serve(Starlette(routes=ROUTES)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        assert (await client.get("/hello")).text == "hello from /hello"


@pytest.mark.anyio
async def test_a_cancelled_test_stops_its_server() -> None:
    url = ""
    with anyio.CancelScope() as scope:
        async with serve(Starlette(routes=ROUTES)) as url:
            scope.cancel()
            await anyio.sleep(10)
    assert scope.cancelled_caught
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


@pytest.mark.anyio
@pytest.mark.parametrize("late", [False, True])
async def test_what_a_lifespan_raises_is_raised_as_it_is(late: bool) -> None:
    cause = KeyError("cause")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if late:
            yield
        raise ValueError("no database") from cause
        yield

    def enter() -> None:
        with serve(Starlette(routes=ROUTES, lifespan=lifespan)) as url:
            assert late
            assert get(f"{url}/hello")

    with pytest.raises(ValueError, match="no database") as caught:
        enter()
    assert caught.value.__cause__ is cause
    with pytest.raises(ValueError, match="no database"):
        async with serve(Starlette(routes=ROUTES, lifespan=lifespan)):
            assert late


def test_error_of_a_lifespan_does_not_hide_the_tests_error() -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        raise ValueError("no database")

    def enter() -> None:
        with serve(Starlette(lifespan=lifespan)):
            raise KeyError("of the test")

    with pytest.raises(KeyError):
        enter()


def test_a_lifespan_that_fails_without_raising_is_an_error() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})

    with pytest.raises(RuntimeError, match=r"lifespan\.startup\.failed"):
        serve(app).__enter__()


def test_an_app_without_a_lifespan_is_served() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await PlainTextResponse("bare")(scope, receive, send)

    with serve(app) as url:
        assert get(url) == "bare"


def test_options_are_uvicorns() -> None:
    with serve(Starlette(routes=ROUTES), root_path="/api", http="h11") as url:
        assert get(f"{url}/hello") == "hello from /api/hello"


def test_it_stops_within_its_grace_though_an_exchange_is_open() -> None:
    async def relay(request: Request) -> Response:
        client = await get_client(request)
        return StreamedResponse(client, client.build_request("GET", "/never"))

    with Upstream() as upstream, httpx.Client(trust_env=False) as caller:
        upstream.get("/never").chunks(b"first", 3600)
        lifespan = client_lifespan(base_url=upstream.url, timeout=None, trust_env=False)
        app = Starlette(routes=[Route("/", relay)], lifespan=lifespan)
        with serve(app, grace=1) as url:
            response = caller.send(caller.build_request("GET", url), stream=True)
            chunks = response.iter_raw()  # kept, for httpx closes when it is dropped
            assert next(chunks) == b"first"
        eventually(lambda: upstream.open_exchanges == 0)
        response.close()


def test_websockets_are_served() -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    async def call(url: str) -> str:
        websocket: AsyncWebSocketSession
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            aconnect_ws(f"{url}/ws", client) as websocket,
        ):
            await websocket.send_text("there and back")
            text: str = await websocket.receive_text()
            return text

    with serve(Starlette(routes=[WebSocketRoute("/ws", echo)])) as url:
        assert asyncio.run(call(url)) == "there and back"


def test_no_response_waits_for_a_delayed_acknowledgement() -> None:
    """The head and the body are two writes. Nagle's algorithm would delay the second one."""
    no_delay: list[int] = []

    def record(transport: asyncio.Transport) -> None:
        sock: socket.socket = transport.get_extra_info("socket")
        no_delay.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    class Protocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            record(transport)
            super().connection_made(transport)

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        record(writer.transport)  # type: ignore[arg-type]
        writer.close()

    with serve(Starlette(routes=ROUTES), http=Protocol) as url:
        get(f"{url}/hello")
    with (
        LoopbackServer(close) as upstream,
        socket.create_connection(("127.0.0.1", upstream.port), timeout=60) as sock,
    ):
        assert sock.recv(1) == b""
    assert no_delay == [1, 1]


def run(code: str, **modules: None) -> subprocess.CompletedProcess[str]:
    hidden: Mapping[str, None] = modules
    code = f"import sys; sys.modules.update({dict(hidden)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_serve_without_uvicorn_names_the_package() -> None:
    code = """
from asgi_upstream.testing import Upstream, serve
with Upstream():
    serve(None).__enter__()
"""
    message = run(code, uvicorn=None).stderr.strip().splitlines()[-1]
    assert message == "ImportError: serve() needs uvicorn: pip install uvicorn"


def test_the_library_imports_none_of_it_and_it_needs_no_pytest() -> None:
    code = """
import asgi_upstream
print([name for name in sys.modules if name.startswith(("asgi_upstream.testing", "pytest"))])
import asgi_upstream.testing
with asgi_upstream.testing.Upstream(): pass
"""
    done = run(code, pytest=None, uvicorn=None)
    assert (done.stdout, done.stderr) == ("['pytest']\n", "")


def test_the_plugin_imports_nothing_but_pytest() -> None:
    done = run(
        "import pytest; before = set(sys.modules); import pytest_asgi_upstream\n"
        "print(*sorted(sys.modules.keys() - before))"
    )
    assert (done.stdout, done.stderr) == ("pytest_asgi_upstream\n", "")
