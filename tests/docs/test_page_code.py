"""The code of smaller pages runs as it stands; that of the others is run where they are tested."""

from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_upstream import ExchangeCancelled, ReverseProxy, client_lifespan
from asgi_upstream import transport as of_httpx
from asgi_upstream.testing import Upstream
from asgi_upstream.transport import httpx2 as of_httpx2
from tests.support.pages import blocks

pytestmark = [pytest.mark.of_httpx, pytest.mark.no_leaks]


def run(page: str, upstream: Upstream) -> dict[str, Any]:
    """What the blocks of a page define, run one after the other."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python":
            exec(block.code.replace("https://api.example", upstream.url), names)
    return names


def test_the_app_on_httpx2_relays_by_a_client_of_httpx2(upstream: Upstream) -> None:
    names = run("docs/compatibility.md", upstream)
    upstream.get("/report").json({"total": 3})
    with TestClient(names["app"]) as caller:
        assert caller.get("/report").json() == {"total": 3}
        assert isinstance(caller.app_state["client"], httpx2.AsyncClient)
    assert b"python-httpx2" in upstream.requests[0].raw


@pytest.mark.asyncio
async def test_the_transport_on_httpx2_is_that_of_a_client_of_httpx2(upstream: Upstream) -> None:
    names = run("docs/compatibility.md", upstream)
    upstream.get("/item").json(1)
    async with names["lifespan"](None) as state:
        assert isinstance(state["client"], httpx2.AsyncClient)
        assert (await state["client"].get(f"{upstream.url}/item")).json() == 1
        assert isinstance(state["client"]._transport, of_httpx2.AsyncioTransport)
        assert state["client"]._transport.pool_state().idle == 1


@pytest.mark.asyncio
async def test_the_transport_of_its_page_is_the_clients(upstream: Upstream) -> None:
    names = run("docs/transport.md", upstream)
    assert isinstance(names["transport"], of_httpx.AsyncioTransport)
    async with names["lifespan"](None) as state:
        assert state["client"]._transport is names["transport"]


def test_the_last_event_of_the_page_on_stops_names_its_cause(upstream: Upstream) -> None:
    names = run("docs/graceful-shutdown.md", upstream)
    assert names["Worker"].CONFIG_KWARGS["timeout_graceful_shutdown"] == 20
    last_event = names["last_event"]
    assert last_event(ExchangeCancelled()).startswith(b"event: reconnect")
    upstream.get("/events").chunks(b"data: a\n\n", b"data: b\n\n").close(after=9)
    proxy = ReverseProxy(on_stream_error=last_event)
    app = Starlette(routes=[Mount("/", proxy)], lifespan=client_lifespan(base_url=upstream.url))
    with TestClient(app) as caller:
        assert caller.get("/events").text == "data: a\n\n" + last_event(ValueError()).decode()


@pytest.mark.asyncio
async def test_the_client_of_the_page_on_pools_has_its_limits(
    upstream: Upstream,
) -> None:
    async with run("docs/connection-pools.md", upstream)["lifespan"](None) as state:
        client: Any = state["client"]
        assert client._transport._pool._max_connections == 6
        assert client.timeout.pool == 1


def test_destination_of_webdav_page_becomes_a_path(upstream: Upstream) -> None:
    change = run("docs/tested-clients.md", upstream)["use_path_of_destination"]
    headers = [(b"x-forwarded-host", b"outside"), (b"destination", b"http://outside/dav/b")]
    assert change(headers) == [headers[0], (b"destination", b"/dav/b")]


def test_mount_of_applications_page_keeps_path_and_host(upstream: Upstream) -> None:
    upstream.any().text("ok")
    [code] = [block.code for block in blocks("docs/reverse-proxy-apps.md")]
    names: dict[str, Any] = {}
    exec(code.replace("http://127.0.0.1:8888", upstream.url), names)
    with TestClient(names["app"], base_url="http://apps.example") as caller:
        assert caller.get("/jupyter/lab").text == "ok"
    request = upstream.requests[-1]
    assert (request.path, request.headers["host"]) == ("/jupyter/lab", "apps.example")
