"""Limits: pools that refuse instead of queueing, one pool per upstream, requests per caller.

    uvicorn examples.limits:app
    for i in 1 2 3 4 5; do curl -i http://127.0.0.1:8000/apart/slow & done    # the fifth is 503
    curl http://127.0.0.1:8000/apart/fast                                     # still 200
    curl -N -H 'x-api-key: key-of-ann' http://127.0.0.1:8000/events           # the third is 429

Replace `apart` by `together` to see both upstreams in one pool, where the slow one takes all
connections.
"""

import os
import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Any
from weakref import WeakValueDictionary

import anyio
import httpx
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import APIKeyHeader

from asgi_upstream import (
    PoolExhausted,
    StreamedResponse,
    client_dependency,
    client_lifespan,
    combine_lifespans,
)

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
SLOW_URL = os.environ.get("SLOW_URL", UPSTREAM_URL)
FAST_URL = os.environ.get("FAST_URL", UPSTREAM_URL)
PER_CALLER = 2
CALLERS = {"key-of-ann": "ann", "key-of-bob": "bob"}


def pool_options(size: int) -> dict[str, Any]:
    """Return client options for a pool of `size` connections and a short wait for one."""
    limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
    timeout = httpx.Timeout(30, pool=0.1)  # seconds
    if os.environ.get("TRANSPORT") == "httpx":  # a transport takes the limits itself
        return {"transport": httpx.AsyncHTTPTransport(limits=limits), "timeout": timeout}
    return {"limits": limits, "timeout": timeout}


app = FastAPI(
    lifespan=combine_lifespans(
        client_lifespan(name="slow_client", base_url=SLOW_URL, **pool_options(4)),
        client_lifespan(name="fast_client", base_url=FAST_URL, **pool_options(20)),
        client_lifespan(name="shared_client", **pool_options(4)),
    )
)
SlowClient = Annotated[httpx.AsyncClient, Depends(client_dependency("slow_client"))]
FastClient = Annotated[httpx.AsyncClient, Depends(client_dependency("fast_client"))]
SharedClient = Annotated[httpx.AsyncClient, Depends(client_dependency("shared_client"))]


# A pool for each upstream


@app.get("/apart/slow", responses={503: {"description": PoolExhausted.detail}})
async def apart_slow(client: SlowClient) -> StreamedResponse:
    """Allow four requests at once. Others get a 503 after 0.1 s."""
    return StreamedResponse(client, client.build_request("GET", "/never"))


@app.get("/apart/fast")
async def apart_fast(client: FastClient) -> StreamedResponse:
    """Answer, whatever the other upstream does."""
    return StreamedResponse(client, client.build_request("GET", "/item"))


@app.get("/queue")
async def queue(client: SlowClient) -> StreamedResponse:
    """Show a mistake: `timeout=30` also waits 30 s for a connection of the pool."""
    return StreamedResponse(client, client.build_request("GET", "/item", timeout=30))


# One pool for both


@app.get("/together/slow")
async def together_slow(client: SharedClient) -> StreamedResponse:
    """Use up the connections of the shared pool."""
    return StreamedResponse(client, client.build_request("GET", f"{SLOW_URL}/never"))


@app.get("/together/fast")
async def together_fast(client: SharedClient) -> StreamedResponse:
    """Answer 503, although this upstream is idle."""
    return StreamedResponse(client, client.build_request("GET", f"{FAST_URL}/item"))


# Concurrent requests per caller


async def known_caller(key: Annotated[str, Depends(APIKeyHeader(name="x-api-key"))]) -> str:
    """Return the caller's name, or answer 401 for an unknown key."""
    for known, name in CALLERS.items():
        if secrets.compare_digest(known.encode(), key.encode()):
            return name
    raise HTTPException(401, "no such key")


# A limiter exists as long as an exchange of its caller holds it.
limiters: WeakValueDictionary[str, anyio.CapacityLimiter] = WeakValueDictionary()


async def limit_per_caller(caller: Annotated[str, Depends(known_caller)]) -> AsyncIterator[None]:
    """Count the exchange until it has ended. Answer 429 above the limit."""
    limiter = limiters.setdefault(caller, anyio.CapacityLimiter(PER_CALLER))
    try:
        limiter.acquire_nowait()
    except anyio.WouldBlock:
        raise HTTPException(429, "too many concurrent requests", {"retry-after": "1"}) from None
    try:
        yield
    finally:
        limiter.release()


@app.get("/events", dependencies=[Depends(limit_per_caller)])
async def events(client: FastClient, request: Request) -> StreamedResponse:
    """Stream events. The limiter is held until the stream ends."""
    params = request.query_params
    return StreamedResponse(client, client.build_request("GET", "/events", params=params))


@app.get("/dies", dependencies=[Depends(limit_per_caller)])
async def dies(client: FastClient) -> StreamedResponse:
    """Relay an upstream that fails in the body. The limiter is released."""
    return StreamedResponse(client, client.build_request("GET", "/dies"))
