"""A pool of one connection behind each wrapper, and an exchange that is cancelled at each wait."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anysqlite
import httpx
import pytest
from hishel import AsyncSqliteStorage
from httpx_retries import RetryTransport

from asgi_upstream import StreamedResponse
from asgi_upstream.transport import AsyncioTransport
from examples.compositions.caching import Cache, Origin
from tests.asgi import Caller
from tests.test_httpcore_pool import answer, cancelled_at, serving

ONE = httpx.Limits(max_connections=1)
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
async def test_a_pool_behind_it_has_its_place_back_whenever_the_task_is_cancelled(
    wrap: Wrap, network: Callable[..., httpx.AsyncBaseTransport], waits: int
) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    cancelled = 0
    for wait in range(1, waits):
        transport = await wrap(network(limits=ONE))
        async with httpx.AsyncClient(transport=transport, base_url=url) as client:
            response = StreamedResponse(client, client.build_request("GET", "/"))
            caller = Caller()

            async def run(wait: int = wait, app: Any = response, caller: Caller = caller) -> None:
                await cancelled_at(wait, app(caller.scope, caller.receive, caller.send))

            task = asyncio.ensure_future(run())
            await asyncio.wait([task])
            cancelled += task.cancelled()
            again = await client.get("/other", timeout=httpx.Timeout(5, pool=0.5))
            assert again.text == "ok", f"after a cancellation at wait {wait}"
        if not task.cancelled():
            break
    else:
        pytest.fail("the exchange has more waits than were tried")
    assert cancelled > 3
    server.close()
    if tasks := [task for task in serving if task is not None]:
        await asyncio.wait(tasks, timeout=5)
