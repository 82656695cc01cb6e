"""docs/httpx2.md: its code runs as it stands."""

from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from asgi_upstream.testing import Upstream
from asgi_upstream.transport.httpx2 import AsyncioTransport
from tests.pages import blocks

pytestmark = [pytest.mark.of_httpx, pytest.mark.no_leaks]  # it knows both


def test_the_app_of_the_page_relays_by_a_client_of_httpx2(upstream: Upstream) -> None:
    page, _ = (block.code for block in blocks("docs/httpx2.md") if block.language == "python")
    names: dict[str, Any] = {}
    exec(page.replace("https://api.example", upstream.url), names)
    upstream.get("/report").json({"total": 3})
    with TestClient(names["app"]) as caller:
        assert caller.get("/report").json() == {"total": 3}
        assert isinstance(caller.app_state["client"], httpx2.AsyncClient)
    assert b"python-httpx2" in upstream.requests[0].raw


@pytest.mark.asyncio
async def test_the_transport_of_the_page_is_that_of_a_client_of_httpx2(upstream: Upstream) -> None:
    _, page = (block.code for block in blocks("docs/httpx2.md") if block.language == "python")
    names: dict[str, Any] = {}
    exec(page, names)
    upstream.get("/item").json(1)
    async with names["lifespan"](None) as state:
        client = state["client"]
        assert isinstance(client, httpx2.AsyncClient)
        assert (await client.get(f"{upstream.url}/item")).json() == 1
        assert isinstance(client._transport, AsyncioTransport)
        assert client._transport.pool_state().idle == 1
