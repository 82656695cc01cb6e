"""Exchanges of a client with an observer, on each transport, and their records.

Every exchange ends in exactly one record, and in no count, however it ends. The upstream knows what
it got and sent. The caller is in memory. What depends on the server is in
tests/integration/test_records.py.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_upstream import (
    BufferedResponse,
    ExchangeRecord,
    ReverseProxy,
    StreamedResponse,
    count_open_exchanges,
)
from asgi_upstream.transport import PoolState
from tests.support.asgi import Caller
from tests.support.flavor import AsyncioTransport, client_lifespan, httpx
from tests.support.marks import ignore_httpcore_generators
from tests.support.upstream import Upstream
from tests.support.waiting import aeventually

recorded_tests = [
    pytest.mark.process,
    pytest.mark.anyio,
    ignore_httpcore_generators,
]


STOCK, OWN = "stock", "AsyncioTransport"
LIMITS = httpx.Limits(max_connections=1)
Answer = Callable[..., ASGIApp]


class Observed:
    """A client of a lifespan, and the records of what it did."""

    def __init__(self, client: httpx.AsyncClient, own: AsyncioTransport | None, upstream: Upstream):
        self.client, self.own, self.upstream = client, own, upstream
        self.records: list[ExchangeRecord] = []

    def get(self, path: str, method: str = "GET", **options: Any) -> httpx.Request:
        return self.client.build_request(method, path, **options)

    async def call(self, app: ASGIApp, caller: Caller | None = None) -> Caller:
        """The caller, when its exchange is over, whatever that raised; nothing is open then."""
        caller = caller or Caller()
        with anyio.fail_after(60), contextlib.suppress(Exception):
            await caller.call(app)
        await self.is_at_rest()
        return caller

    async def is_at_rest(self) -> None:
        assert count_open_exchanges(self.client) == 0
        await aeventually(lambda: self.upstream.open_exchanges == 0)
        if self.own is not None:
            state = self.own.pool_state()
            assert (state.connecting, state.waiting) == (0, 0)
            assert state.idle == state.open

    async def record(self, app: ASGIApp, caller: Caller | None = None) -> ExchangeRecord:
        """The one record of an exchange."""
        await self.call(app, caller)
        return self.only

    async def record_with_growing_limit(
        self,
        attempt: Callable[[float], Awaitable[ExchangeRecord]],
        is_late: Callable[[ExchangeRecord], object],
    ) -> ExchangeRecord:
        """The record of the first attempt whose limit passed late enough.

        `attempt` gets the limit in seconds. A short one may pass before the head of a response has
        come if the machine is busy, and then the attempt says nothing.
        """
        for seconds in (0.2, 2.0, 20.0):
            record = await attempt(seconds)
            if is_late(record):
                break
        return record

    @property
    def only(self) -> ExchangeRecord:
        (record,) = self.records
        self.records.clear()
        is_in_order(record)
        return record


def is_in_order(record: ExchangeRecord) -> None:
    times = [record.time_to_headers, record.time_to_first_byte, record.duration]
    known = [seconds for seconds in times if seconds is not None]
    assert known == sorted(known)
    assert known[0] >= 0
    assert (record.status is None) == (record.time_to_headers is None)
    assert (record.bytes_received == 0) == (record.time_to_first_byte is None)


@contextlib.asynccontextmanager
async def observing(upstream: Upstream, transport: str, **options: Any) -> AsyncIterator[Observed]:
    own = AsyncioTransport(limits=LIMITS) if transport == OWN else None
    observers: list[Callable[[ExchangeRecord], None]] = []
    lifespan = client_lifespan(
        observers=observers,
        base_url=upstream.url,
        transport=own or httpx.AsyncHTTPTransport(limits=LIMITS),
        timeout=60,
        **options,
    )
    async with lifespan(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.AsyncClient)
        observed = Observed(client, own, upstream)
        observers.append(observed.records.append)
        yield observed
        await observed.is_at_rest()
        assert observed.records == [], "more records than exchanges"
    if own is not None:
        assert own.pool_state() == PoolState(0, 0, 0, 0)


def streamed(seen: Observed, path: str, **options: Any) -> ASGIApp:
    timeout = options.pop("timeout", 60)
    return StreamedResponse(seen.client, seen.get(path, timeout=timeout), **options)


def buffered(seen: Observed, path: str, **options: Any) -> ASGIApp:
    timeout = options.pop("timeout", 60)
    return BufferedResponse(seen.client, seen.get(path, timeout=timeout), **options)


def forwarded(seen: Observed, path: str, **options: Any) -> ASGIApp:
    """The mount of an app; what is forwarded has the client's timeouts, so a hook sets them."""
    timeout = httpx.Timeout(options.pop("timeout", 60)).as_dict()

    def on_request(request: httpx.Request) -> None:
        request.extensions["timeout"] = timeout

    app = Starlette(routes=[Mount("/api", ReverseProxy(on_request=on_request, **options))])

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        target, _, query = path.partition("?")
        there = {"path": "/api" + target, "raw_path": b"/api" + target.encode()}
        state = {"state": {"client": seen.client}, "query_string": query.encode()}
        await app({**scope, **there, **state}, receive, send)

    return called


every_way = pytest.mark.parametrize("way", [streamed, buffered, forwarded])
unbuffered = pytest.mark.parametrize("way", [streamed, forwarded])
responses = pytest.mark.parametrize("way", [streamed, buffered])


class Raised(Exception):
    """By a hook, a transform or an observer."""
