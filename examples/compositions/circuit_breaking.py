"""A circuit breaker per upstream with purgatory: a failing upstream gets no requests for a while.

uvicorn examples.compositions.circuit_breaking:app
for i in 1 2 3 4 5 6; do curl http://127.0.0.1:8000/orders/status/503; done    # the last: 503
curl -i http://127.0.0.1:8000/items/item    # still 200
"""

import asyncio
import math
import os
import time

import httpx
from fastapi import FastAPI
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import ExcludeType, OpenedState
from starlette.requests import ClientDisconnect

from asgi_upstream import ReverseProxy, UpstreamError, client_lifespan, combine_lifespans
from asgi_upstream.transport import AsyncioTransport

ORDERS_URL = os.environ.get("ORDERS_URL", "http://127.0.0.1:9000")
ITEMS_URL = os.environ.get("ITEMS_URL", "http://127.0.0.1:9000")
THRESHOLD = int(os.environ.get("THRESHOLD", "5"))  # consecutive failures
TTL = float(os.environ.get("TTL", "30"))  # seconds without requests
FAILURES = (500, 502, 503, 504)
# These say nothing about the upstream: the caller disconnected, or our pool is full.
NO_FAILURES: ExcludeType = [asyncio.CancelledError, ClientDisconnect, httpx.PoolTimeout]


class CircuitOpen(UpstreamError):
    """The upstream has failed too often and gets no requests for now. 503 with `retry-after`."""

    status_code = 503
    detail = "The upstream is not available"


class Failed(Exception):
    """Tells the breaker that a response is a failure."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response


class Breaking(httpx.AsyncBaseTransport):
    """Sends the request if the circuit of this name is closed."""

    def __init__(self, name: str, next_transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.name = name
        self.next_transport = next_transport or AsyncioTransport()
        self.breakers = AsyncCircuitBreakerFactory(THRESHOLD, TTL, NO_FAILURES)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        breaker = await self.breakers.get_breaker(self.name)
        try:
            async with breaker:
                response = await self.next_transport.handle_async_request(request)
                if response.status_code in FAILURES:
                    raise Failed(response)
                return response
        except Failed as failed:
            return failed.response
        except OpenedState as opened:
            opened.__traceback__ = None  # purgatory raises the same object every time.
            seconds = math.ceil(opened.opened_at + TTL - time.time())
            raise CircuitOpen(headers={"retry-after": str(max(seconds, 1))}) from None

    async def aclose(self) -> None:
        await self.next_transport.aclose()


app = FastAPI(
    lifespan=combine_lifespans(
        client_lifespan(name="orders", base_url=ORDERS_URL, transport=Breaking("orders")),
        client_lifespan(name="items", base_url=ITEMS_URL, transport=Breaking("items")),
    )
)
app.mount("/orders", ReverseProxy("orders"))
app.mount("/items", ReverseProxy("items"))
