"""Limits: a pool that refuses rather than queues, a pool for each upstream, so many per caller.

    uvicorn examples.limits:app
    for i in 1 2 3 4 5; do curl -i http://127.0.0.1:8000/apart/slow & done    # the fifth is 503
    curl http://127.0.0.1:8000/apart/fast                                     # 200 meanwhile
    curl -N -H 'x-api-key: key-of-ann' http://127.0.0.1:8000/events           # the third is 429

The same with one pool for both upstreams, where the slow one takes the fast one's places: replace
`apart` by `together`.
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
from asgi_upstream.transport import AsyncioTransport

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
SLOW_URL = os.environ.get("SLOW_URL", UPSTREAM_URL)
FAST_URL = os.environ.get("FAST_URL", UPSTREAM_URL)
PER_CALLER = 2
CALLERS = {"key-of-ann": "ann", "key-of-bob": "bob"}


def pool(places: int) -> dict[str, Any]:
    """The options of a client with so many places, for one of which nobody waits long."""
    limits = httpx.Limits(max_connections=places, max_keepalive_connections=places)
    timeout = httpx.Timeout(30, pool=0.1)  # seconds
    if os.environ.get("TRANSPORT") == "asyncio":  # a transport has the limits, not the client
        return {"transport": AsyncioTransport(limits=limits), "timeout": timeout}
    return {"limits": limits, "timeout": timeout}


app = FastAPI(
    lifespan=combine_lifespans(
        client_lifespan(name="slow_client", base_url=SLOW_URL, **pool(4)),
        client_lifespan(name="fast_client", base_url=FAST_URL, **pool(20)),
        client_lifespan(name="shared_client", **pool(4)),
    )
)
SlowClient = Annotated[httpx.AsyncClient, Depends(client_dependency("slow_client"))]
FastClient = Annotated[httpx.AsyncClient, Depends(client_dependency("fast_client"))]
SharedClient = Annotated[httpx.AsyncClient, Depends(client_dependency("shared_client"))]


# A pool for each upstream


@app.get("/apart/slow", responses={503: {"description": PoolExhausted.detail}})
async def apart_slow(client: SlowClient) -> StreamedResponse:
    """Four at once; who comes then has a 503 after 0.1 s."""
    return StreamedResponse(client, client.build_request("GET", "/never"))


@app.get("/apart/fast")
async def apart_fast(client: FastClient) -> StreamedResponse:
    """Not touched by what the other upstream does."""
    return StreamedResponse(client, client.build_request("GET", "/item"))


@app.get("/queue")
async def queue(client: SlowClient) -> StreamedResponse:
    """By mistake: a timeout given to the request is all four, so it waits 30 s for a place."""
    return StreamedResponse(client, client.build_request("GET", "/item", timeout=30))


# One pool for both


@app.get("/together/slow")
async def together_slow(client: SharedClient) -> StreamedResponse:
    """Takes all the places of the pool."""
    return StreamedResponse(client, client.build_request("GET", f"{SLOW_URL}/never"))


@app.get("/together/fast")
async def together_fast(client: SharedClient) -> StreamedResponse:
    """503 then, from an upstream that has nothing to do."""
    return StreamedResponse(client, client.build_request("GET", f"{FAST_URL}/item"))


# So many at once per caller


async def known_caller(key: Annotated[str, Depends(APIKeyHeader(name="x-api-key"))]) -> str:
    """The caller's name; 401 for a key that nobody has."""
    for known, name in CALLERS.items():
        if secrets.compare_digest(known.encode(), key.encode()):
            return name
    raise HTTPException(401, "no such key")


# A limiter is here as long as some exchange of its caller holds it, and no longer.
limiters: WeakValueDictionary[str, anyio.CapacityLimiter] = WeakValueDictionary()


async def so_many_per_caller(caller: Annotated[str, Depends(known_caller)]) -> AsyncIterator[None]:
    """Holds one of the caller's places until the exchange has ended; 429 where none is free."""
    limiter = limiters.setdefault(caller, anyio.CapacityLimiter(PER_CALLER))
    try:
        limiter.acquire_nowait()
    except anyio.WouldBlock:
        raise HTTPException(429, "too many at once", {"retry-after": "1"}) from None
    try:
        yield
    finally:
        limiter.release()


@app.get("/events", dependencies=[Depends(so_many_per_caller)])
async def events(client: FastClient, request: Request) -> StreamedResponse:
    """Returns at once, and the stream runs on: the place is held as long as that."""
    params = request.query_params
    return StreamedResponse(client, client.build_request("GET", "/events", params=params))


@app.get("/dies", dependencies=[Depends(so_many_per_caller)])
async def dies(client: FastClient) -> StreamedResponse:
    """An upstream that dies half-way gives the place back too."""
    return StreamedResponse(client, client.build_request("GET", "/dies"))
