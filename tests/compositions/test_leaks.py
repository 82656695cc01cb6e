"""A pool of one connection behind each wrapper, and an exchange that is cancelled at each wait."""

from collections.abc import Awaitable, Callable

import anysqlite
import httpx
import pytest
from hishel import AsyncSqliteStorage
from httpx_retries import RetryTransport

from asgi_upstream import StreamedResponse
from asgi_upstream.transport import AsyncioTransport
from examples.compositions.caching import Cache, Origin
from tests.support.cancellation import cancelled_at_each_wait
from tests.support.upstream import Upstream

Wrap = Callable[[httpx.AsyncBaseTransport], Awaitable[httpx.AsyncBaseTransport]]


async def retried(transport: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
    return RetryTransport(transport)


async def cached(transport: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
    store = AsyncSqliteStorage(connection=await anysqlite.connect(":memory:"))
    await store.get_entries("")  # makes its tables, with many waits before the request is sent
    return Cache(Origin(transport), store, rfc=True)


@pytest.mark.parametrize(
    ("wrap", "network", "waits"),
    [
        pytest.param(retried, httpx.AsyncHTTPTransport, 30, id="httpx-retries"),
        pytest.param(retried, AsyncioTransport, 30, id="httpx-retries+asyncio"),
        # httpx's own would fail where a cancellation comes in the one turn of the event loop in
        # which hishel, not the exchange, closes a response that httpcore has read to its end.
        pytest.param(cached, AsyncioTransport, 200, id="hishel+asyncio", marks=pytest.mark.slow),
    ],
)
@pytest.mark.asyncio
async def test_wrapped_pool_regains_its_slot_at_any_cancellation(
    upstream: Upstream, wrap: Wrap, network: Callable[..., httpx.AsyncBaseTransport], waits: int
) -> None:
    async def transport() -> httpx.AsyncBaseTransport:
        return await wrap(network(limits=httpx.Limits(max_connections=1)))

    cancelled = await cancelled_at_each_wait(upstream.url, transport, StreamedResponse, waits)
    assert cancelled > 3
