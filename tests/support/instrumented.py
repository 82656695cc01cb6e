"""Requests by a client and by a relay, as instrumentation and mocks see them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asgi_upstream import StreamedResponse
from tests.support.flavor import client_lifespan, httpx

MakeTransport = Callable[[], httpx.AsyncHTTPTransport]


Ask = Callable[[httpx.AsyncClient, str], Awaitable[tuple[int, str]]]


async def by_get(client: httpx.AsyncClient, path: str) -> tuple[int, str]:
    response = await client.get(path)
    return response.status_code, response.text


async def by_relay(client: httpx.AsyncClient, path: str) -> tuple[int, str]:
    """Through an app that answers with a StreamedResponse."""
    app = StreamedResponse(client, client.build_request("GET", path))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as caller:
        response = await caller.get("http://app.example/")
    return response.status_code, response.text


both_ways = pytest.mark.parametrize("ask", [by_get, by_relay], ids=["get", "StreamedResponse"])


@asynccontextmanager
async def shared(
    transport: MakeTransport, base_url: str = "", **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client as an app has it, whose exchanges may go the short way."""
    lifespan = client_lifespan(transport=transport(), base_url=base_url, **options)
    async with lifespan(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.AsyncClient)
        yield client


def traceparent(request: bytes) -> str | None:
    fields = request.decode().split("\r\n")
    return next((f[13:] for f in fields if f.lower().startswith("traceparent: ")), None)
