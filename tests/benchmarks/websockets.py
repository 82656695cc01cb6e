"""What a relayed WebSocket costs: `python -m tests.benchmarks.websockets`.

Processor time of the relay's process for a message there and its echo back, beside that of
fastapi-proxy-lib's relay, and of a server that echoes by itself, which is the part of the server.
The ways take turns, round by round, and a figure is the median over the rounds.
"""

import asyncio
import os
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import import_module

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError

from asgi_upstream import ReverseProxy, client_lifespan

from .relays import Relay

UPSTREAM = os.environ.get("UPSTREAM_URL", "")
MOST = 32 * 1024 * 1024
CONNECTIONS, ROUNDS = 10, 5
SIZES = {100: 1000, 16_384: 500, 1_048_576: 10}  # of a message, and how many on each connection


def forward_app(transport: httpx.AsyncBaseTransport | None = None) -> ASGIApp:
    lifespan = client_lifespan(base_url=UPSTREAM, trust_env=False, transport=transport)
    return Starlette(routes=[Mount("/", ReverseProxy())], lifespan=lifespan)


def stock() -> ASGIApp:
    return forward_app(httpx.AsyncHTTPTransport())


def fast() -> ASGIApp:
    return forward_app()


def fastapi_proxy_lib() -> ASGIApp:
    module = import_module("fastapi_proxy_lib.core.websocket")
    proxy = module.ReverseWebSocketProxy(
        httpx.AsyncClient(trust_env=False), base_url=UPSTREAM.replace("http", "ws", 1) + "/"
    )

    async def endpoint(websocket: WebSocket) -> None:
        await proxy.proxy(websocket=websocket, path=websocket.path_params["path"])

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        yield
        await proxy.aclose()

    return Starlette(routes=[WebSocketRoute("/{path:path}", endpoint)], lifespan=lifespan)


def no_relay() -> ASGIApp:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_bytes(await websocket.receive_bytes())
        except WebSocketDisconnect:
            pass

    return Starlette(routes=[WebSocketRoute("/{path:path}", endpoint)])


WAYS = {
    "no_relay": "the server alone",
    "stock": "ReverseProxy, httpx's transport",
    "fast": "ReverseProxy, AsyncioTransport",
    "fastapi_proxy_lib": "fastapi-proxy-lib",
}
if "WAY" in os.environ:
    app: ASGIApp = globals()[os.environ["WAY"]]()


async def echo(connection: ServerConnection) -> None:
    with suppress(ConnectionClosedError):  # of a relay that lingers when it is stopped
        async for message in connection:
            await connection.send(message)


async def talk(connection: ClientConnection, message: bytes, count: int) -> None:
    for _ in range(count):
        await connection.send(message)
        assert len(await connection.recv()) == len(message)


async def microseconds(relay: Relay, size: int, count: int) -> float:
    """Of processor time, for a message and its echo."""
    address = f"ws://127.0.0.1:{relay.port}/echo"
    connections = [
        await connect(address, compression=None, max_size=MOST, proxy=None)
        for _ in range(CONNECTIONS)
    ]
    message = os.urandom(size)
    try:
        await asyncio.gather(*[talk(connection, message, 5) for connection in connections])
        before = relay.seconds()
        await asyncio.gather(*[talk(connection, message, count) for connection in connections])
        spent = relay.seconds() - before
    finally:
        for connection in connections:
            await connection.close()
    return spent / (count * CONNECTIONS) * 1e6


async def measure() -> None:
    async with serve(echo, "127.0.0.1", 0, compression=None, max_size=MOST) as server:
        url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        with tempfile.TemporaryFile() as log:
            relays = {way: Relay(way, url, log, "tests.benchmarks.websockets:app") for way in WAYS}
            try:
                for relay in relays.values():
                    await asyncio.to_thread(relay.wait_until_ready)
                print(f"microseconds for a message of{'':5}" + "".join(f"{s:>12}" for s in SIZES))
                figures: dict[str, dict[int, list[float]]] = {way: {} for way in WAYS}
                for _ in range(ROUNDS):
                    for size, count in SIZES.items():
                        for way, relay in relays.items():
                            figure = await microseconds(relay, size, count)
                            figures[way].setdefault(size, []).append(figure)
            finally:
                for relay in relays.values():
                    relay.stop()
    for way, name in WAYS.items():
        row = [statistics.median(figures[way][size]) for size in SIZES]
        print(f"{name:33}" + "".join(f"{figure:12.0f}" for figure in row))


if __name__ == "__main__":
    asyncio.run(measure())
