"""The app under test for WebSockets: by ReverseProxy, and by routes with bounds of their own."""

import asyncio
import os
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, WebSocket
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from asgi_upstream import (
    ExchangeRecord,
    ReverseProxy,
    client_dependency,
    combine_lifespans,
    count_open_exchanges,
    get_client,
    relay_websocket,
)
from tests.support.apps.relay_app import UPSTREAM, client
from tests.support.flavor import httpx

records: list[list[Any]] = []


def observer(record: ExchangeRecord) -> None:
    row = [record.outcome, record.status, record.bytes_sent, record.bytes_received]
    records.append([*row, record.host == UPSTREAM.partition("//")[2]])


def by_tenant(connection: HTTPConnection) -> str:
    return connection.headers.get("x-tenant", "client")


def same_origin(request: httpx.Request) -> None:
    """As the docs show it."""
    if request.headers.get("upgrade") and request.headers.get("origin") != "http://app":
        raise HTTPException(403, "not from there")


def replaces(request: httpx.Request) -> httpx.Request:
    return httpx.Request("GET", f"{UPSTREAM}/instead")


forward = ReverseProxy()
narrow = httpx.Limits(max_connections=1)
hasty = httpx.Timeout(60, write=2, read=2, pool=0.2)
app = FastAPI(
    lifespan=combine_lifespans(
        client(base_url=UPSTREAM, timeout=30, observers=[observer]),
        client(name="own", base_url=f"{UPSTREAM}/v1", headers={"x-api-key": "ours"}),
        client(name="narrow", base_url=UPSTREAM, timeout=hasty, limits=narrow),
        client(name="hasty", base_url=UPSTREAM, timeout=hasty),
        client(name="nowhere", base_url="http://127.0.0.1:9", timeout=hasty),
    ),
    routes=[
        Mount("/forward", forward),
        Mount("/by-tenant", ReverseProxy(by_tenant)),
        Mount("/guarded", ReverseProxy(on_request=same_origin)),
        Mount("/replaces", ReverseProxy(on_request=replaces)),
        Mount("/sets", ReverseProxy(headers={"x-set": "by the app", "x-removed": None})),
    ],
)
Client = Annotated[httpx.AsyncClient, Depends(get_client)]
Hasty = Annotated[httpx.AsyncClient, Depends(client_dependency("hasty"))]


@app.websocket("/bounded/{path:path}")
async def bounded(websocket: WebSocket, client: Client) -> None:
    await relay_websocket(client, websocket, prefix="/bounded", max_message_bytes=1000)


@app.websocket("/pinged")
async def pinged(websocket: WebSocket, client: Client) -> None:
    await relay_websocket(client, websocket, "/elsewhere", ping_interval=0.3)


@app.websocket("/hasty")
async def hasted(websocket: WebSocket, client: Hasty) -> None:
    await relay_websocket(client, websocket, "/")


@app.get("/state")
async def state(client: Client, hasty: Hasty) -> dict[str, object]:
    try:
        tasks = len(asyncio.all_tasks())
    except RuntimeError:  # trio
        tasks = 0
    return {
        "pid": os.getpid(),
        "tasks": tasks,
        "open": count_open_exchanges(client) + count_open_exchanges(hasty),
        "records": records,
    }
