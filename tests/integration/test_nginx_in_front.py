"""docs/nginx.md: its configuration, with a real nginx in front of uvicorn."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websockets

from asgi_upstream.testing import Upstream
from tests.support.flavor import httpx
from tests.support.nginx import needs_nginx, running_nginx
from tests.support.page_apps import serving
from tests.support.pages import blocks
from tests.support.servers import Server, free_port
from tests.support.waiting import eventually

pytestmark = needs_nginx

APP = """
from asgi_upstream import ReverseProxy, client_lifespan, combine_lifespans
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

app = Starlette(
    routes=[
        Route("/headers", lambda request: JSONResponse(dict(request.headers))),
        Mount("/ws", ReverseProxy("ws")),
        Mount("/api", ReverseProxy()),
    ],
    lifespan=combine_lifespans(
        client_lifespan(base_url="http://127.0.0.1:9000", timeout=60),
        client_lifespan(name="ws", base_url="WS_URL"),
    ),
)
"""


@dataclass
class Front:
    """nginx, and the upstream behind the app behind it."""

    port: int
    upstream: Upstream

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        """Return a client whose address nginx can tell from its own."""
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        return httpx.Client(base_url=self.url, transport=transport, timeout=60)


def page_config(listen: int, app: int) -> str:
    (config,) = [block.code for block in blocks("docs/nginx.md") if block.language == "nginx"]
    assert config.count("listen 80;") == config.count("127.0.0.1:8000;") == 1
    config = config.replace("listen 80;", f"listen 127.0.0.1:{listen};")
    return config.replace("127.0.0.1:8000;", f"127.0.0.1:{app};")


def page_options() -> list[str]:
    """Return uvicorn's options from the page, except the port."""
    (command,) = [block.code for block in blocks("docs/nginx.md") if block.language == "console"]
    return ["--proxy-headers", *command.split("--port 8000 ")[1].split()]


@contextmanager
def in_front_of(app: Server, folder: Path) -> Iterator[int]:
    port = free_port()
    with running_nginx(folder, page_config(port, app.port)), httpx.Client() as client:
        eventually(lambda: is_up(client, port))
        yield port


def is_up(client: httpx.Client, port: int) -> bool:
    try:
        return client.get(f"http://127.0.0.1:{port}/state").status_code == 200
    except httpx.TransportError:
        return False


def echo(websocket: ServerConnection) -> None:
    for message in websocket:
        websocket.send(message)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder, apps = tmp_path_factory.mktemp("nginx"), tmp_path_factory.mktemp("apps")
    with (
        Upstream() as upstream,
        serve_websockets(echo, "127.0.0.1", 0) as websockets,
        serving(apps, upstream.url) as serve,
    ):
        threading.Thread(target=websockets.serve_forever, daemon=True).start()
        ws_port = websockets.socket.getsockname()[1]
        server = serve(APP, *page_options(), WS_URL=f"http://127.0.0.1:{ws_port}")
        with in_front_of(server, folder) as port:
            yield Front(port, upstream)


def test_path_reaches_the_upstream_byte_for_byte(front: Front) -> None:
    front.upstream.get("/a%2Fb//c%20d?x=%2F").text("ok")
    with front.client() as client:
        assert client.get("/api/a%2Fb//c%20d?x=%2F").text == "ok"


def test_forwarded_headers_describe_the_caller_not_its_claims(front: Front) -> None:
    front.upstream.get("/who").text("ok")
    claims = {"x-forwarded-for": "6.6.6.6", "x-forwarded-proto": "https", "x-real-ip": "6.6.6.6"}
    with front.client() as client:
        client.get("/api/who", headers={"host": "shop.example", **claims})
    received = front.upstream.requests[-1].headers
    assert received["x-forwarded-for"] == "127.0.0.2"
    assert received["x-forwarded-proto"] == "http"
    assert received["x-forwarded-host"] == "shop.example"
    assert "x-real-ip" not in received


def test_open_stream_arrives_at_once_and_a_disconnect_ends_it(front: Front) -> None:
    front.upstream.get("/events").events("one").stall(after=13)
    with front.client() as client, client.stream("GET", "/api/events") as response:
        chunks = response.iter_raw()  # If it were dropped, httpcore would close the connection.
        assert next(chunks) == b"data: one\n\n"
        assert front.upstream.open_exchanges == 1
    eventually(lambda: front.upstream.open_exchanges == 0)


def test_truncated_body_is_truncated_for_the_caller(front: Front) -> None:
    front.upstream.get("/broken").chunks(b"a" * 100, b"b" * 100).close(after=150)
    with front.client() as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("/api/broken")


def test_upload_reaches_the_app_only_when_it_is_complete(front: Front) -> None:
    front.upstream.post("/upload").echo()
    front.upstream.get("/other").text("ok")
    seen: list[str] = []

    def body() -> Iterator[bytes]:
        yield b"a" * 100_000
        with front.client() as other:
            assert other.get("/api/other").text == "ok"
        seen.extend(request.path for request in front.upstream.requests)
        yield b"b" * 100_000

    with front.client() as client:
        response = client.post("/api/upload", content=body())
    assert response.status_code == 200
    assert seen.count("/other") == 1
    assert "/upload" not in seen
    assert front.upstream.requests[-1].path == "/upload"


def test_body_above_the_limit_is_413(front: Front) -> None:
    with front.client() as client:
        assert client.post("/api/upload", content=bytes(21 << 20)).status_code == 413


def test_upgrade_to_h2c_does_not_reach_the_app(front: Front) -> None:
    """An app that speaks h2c would then read requests that nginx never saw."""
    upgrade = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAA"}
    with front.client() as client:
        received = client.get("/headers", headers=upgrade).json()
    assert "upgrade" not in received
    assert "connection" not in received


def test_websocket_is_relayed(front: Front) -> None:
    with connect(f"ws://127.0.0.1:{front.port}/ws/chat") as websocket:
        websocket.send("hello")
        assert websocket.recv(10) == "hello"
