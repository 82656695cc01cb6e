"""The example of WebSockets, with the client of the package websockets."""

import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from httpx_ws.transport import ASGIWebSocketTransport
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from asgi_upstream import ReverseProxy, client_lifespan
from tests.support.example_apps import ROOT, imported, served


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    upstream = importlib.import_module("examples.upstream").app
    with (
        served(upstream, ws="wsproto") as upstream_url,
        served(imported("websocket", upstream_url), ws="wsproto") as url,
    ):
        yield url.replace("http", "ws", 1)


def calling(url: str, origin: str | None = None) -> ClientConnection:
    fields = {} if origin is None else {"origin": origin}
    return connect(url, additional_headers=fields, proxy=None, open_timeout=60)


@pytest.mark.parametrize("path", ["/api/talk", "/live/talk"])
def test_the_upstream_is_talked_to_until_it_closes(url: str, path: str) -> None:
    with calling(url + path) as websocket:
        websocket.send("hello")
        assert websocket.recv(5) == "you said: hello"
        websocket.send("bye")
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(5)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "so long")


def test_a_page_of_our_own_may_and_another_is_refused(url: str) -> None:
    with calling(url + "/live/talk", "https://shop.example") as websocket:
        websocket.send("hello")
        assert websocket.recv(5) == "you said: hello"
    with pytest.raises(InvalidStatus) as refused:
        calling(url + "/live/talk", "https://evil.example")
    assert refused.value.response.status_code == 403


def test_the_upstreams_own_refusal_is_relayed(url: str) -> None:
    for path in ("/api/nothing", "/live/nothing"):
        with pytest.raises(InvalidStatus) as refused:
            calling(url + path)
        assert refused.value.response.status_code == 403  # what Starlette says to it


def test_a_message_past_the_bound_of_the_route_ends_it(url: str) -> None:
    with calling(url + "/live/talk") as websocket:
        websocket.send("x" * 1_000_000)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(5)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


@pytest.mark.of_httpx  # whose transport for tests httpx-ws has
def test_httpx_ws_calls_the_upstream_without_a_socket() -> None:
    upstream = FastAPI()

    @upstream.websocket("/talk")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close(4000)

    transport = ASGIWebSocketTransport(upstream)
    app = FastAPI(lifespan=client_lifespan(base_url="http://inside", transport=transport))
    app.mount("/api", ReverseProxy())
    with TestClient(app) as caller, caller.websocket_connect("/api/talk") as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"


def test_page_refuses_a_foreign_origin() -> None:
    text = (ROOT / "docs/websockets.md").read_text()
    page: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        exec(block, page)
    with served(page["app"], ws="wsproto") as url, pytest.raises(InvalidStatus) as refused:
        calling(url.replace("http", "ws", 1) + "/guarded/talk", "https://evil.example")
    assert refused.value.response.status_code == 403
