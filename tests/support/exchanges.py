"""The kinds of exchange that tests interrupt or watch: each runs one on a client."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio.lowlevel
from starlette.requests import Request
from starlette.websockets import WebSocket

from asgi_upstream import (
    BufferedResponse,
    StreamedResponse,
    cancel_on_disconnect,
    fetch,
    forward_request,
    relay_websocket,
)
from tests.support.faults import is_trio
from tests.support.flavor import httpx
from tests.support.steps import SteppedCaller

RunExchange = Callable[[httpx.AsyncClient, SteppedCaller], Awaitable[Any]]


async def streamed(client: httpx.AsyncClient, caller: SteppedCaller) -> None:
    app = StreamedResponse(client, client.build_request("GET", "/chunked"))
    await app(caller.scope, caller.receive, caller.send)


async def streamed_with_deadline(client: httpx.AsyncClient, caller: SteppedCaller) -> None:
    app = StreamedResponse(
        client, client.build_request("GET", "/"), deadline=60, on_stream_error=lambda exc: b"!"
    )
    await app(caller.scope, caller.receive, caller.send)


async def buffered(client: httpx.AsyncClient, caller: SteppedCaller) -> None:
    app = BufferedResponse(client, client.build_request("GET", "/chunked"))
    await app(caller.scope, caller.receive, caller.send)


async def transformed(client: httpx.AsyncClient, caller: SteppedCaller) -> None:
    async def transform(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        while True:
            chunk = None
            with anyio.CancelScope() as scope:
                scope.cancel()
                chunk = await anext(body, b"")
            if scope.cancelled_caught:
                with anyio.move_on_after(60):
                    chunk = await anext(body, b"")
            if not chunk:
                return
            yield chunk.upper()
            await anyio.lowlevel.checkpoint()

    request = client.build_request("GET", "/events")
    app = StreamedResponse(client, request, transform=transform, heartbeat=60)
    await app(caller.scope, caller.receive, caller.send)


async def forwarded(client: httpx.AsyncClient, caller: SteppedCaller) -> None:
    request = Request(caller.scope, caller.receive)
    app = StreamedResponse(client, forward_request(client, request, url="/chunked"))
    await app(caller.scope, caller.receive, caller.send)


async def refused(client: httpx.AsyncClient, caller: SteppedCaller) -> None:
    request = Request(caller.scope, caller.receive)
    app = StreamedResponse(client, forward_request(client, request, url="/refused"))
    await app(caller.scope, caller.receive, caller.send)


async def fetched(client: httpx.AsyncClient, caller: SteppedCaller) -> None:
    request = client.build_request("GET", "/chunked")
    assert (await fetch(client, request, deadline=60)).text == "ab"


async def merged(client: httpx.AsyncClient, caller: SteppedCaller) -> None:
    async with cancel_on_disconnect(Request(caller.scope, caller.receive), deadline=60):
        if is_trio():
            async with anyio.create_task_group() as group:
                group.start_soon(fetched, client, caller)
                group.start_soon(fetched, client, caller)
        else:
            await asyncio.gather(fetched(client, caller), fetched(client, caller))


async def websocket(client: httpx.AsyncClient, caller: SteppedCaller) -> None:
    await relay_websocket(
        client, WebSocket(caller.scope, caller.receive, caller.send), "/websocket"
    )


async def denied(client: httpx.AsyncClient, caller: SteppedCaller) -> None:
    await relay_websocket(client, WebSocket(caller.scope, caller.receive, caller.send), "/denied")


@dataclass(frozen=True)
class Kind:
    run: RunExchange
    body: tuple[bytes, ...] = ()
    complete: bool = True
    websocket: bool = False
    connections: int = 1

    def caller(self) -> SteppedCaller:
        return SteppedCaller(self.body, complete=self.complete, websocket=self.websocket)


KINDS = {
    kind.run.__name__: kind
    for kind in [
        Kind(streamed),
        Kind(streamed_with_deadline),
        Kind(buffered),
        Kind(transformed),
        Kind(forwarded, (b"first", b"second")),
        Kind(refused, (b"first", b"second"), complete=False),
        Kind(fetched),
        Kind(merged, connections=2),
        Kind(websocket, (b"first", b"second"), websocket=True),
        Kind(denied, websocket=True),
    ]
}
