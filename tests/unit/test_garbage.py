"""An exchange is freed when it is over, without the garbage collector."""

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.exchanges import KINDS
from tests.support.flavor import AsyncioTransport, client_lifespan, httpx
from tests.support.steps import LoopbackUpstream

# WebSockets cancel tasks of anyio, whose exceptions refer to themselves.
FREED = [
    "streamed",
    "streamed_with_deadline",
    "buffered",
    "forwarded",
    "refused",
    "fetched",
    "merged",
    "transformed",
]


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.freeze()  # so that a collection only looks at what the test creates
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.asyncio
@pytest.mark.parametrize("transport", [AsyncioTransport, httpx.AsyncHTTPTransport])
@pytest.mark.parametrize("kind", FREED)
async def test_exchange_leaves_no_reference_cycle(kind: str, transport: Any) -> None:
    upstream = LoopbackUpstream()
    lifespan = client_lifespan(transport=transport(), base_url="http://upstream")
    async with upstream.serve(), lifespan(None) as state:
        client: Any = state["client"]
        client.base_url = upstream.url
        await KINDS[kind].run(client, KINDS[kind].caller())  # connects, and fills caches
        await asyncio.sleep(0.01)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        for _ in range(3):
            await KINDS[kind].run(client, KINDS[kind].caller())
        await asyncio.sleep(0.01)
        gc.collect()
        names = Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.garbage)
        ours = [n for n in names if n.startswith(("asgi_upstream", "httpx", "httpcore"))]
        assert not ours, names
