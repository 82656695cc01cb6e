"""A readiness check: should this process get more requests?

    uvicorn examples.readiness:app
    curl -i http://127.0.0.1:8000/ready       # 200
    for i in 1 2 3 4 5; do curl -N http://127.0.0.1:8000/events & done
    curl -i http://127.0.0.1:8000/ready       # 503 while more than two wait for a connection

The upstream's health is left out on purpose. If the upstream fails, it fails for every replica, and
a load balancer would remove all of them.
"""

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI
from starlette.responses import JSONResponse

from asgi_upstream import StreamedResponse, client_lifespan, count_open_exchanges, get_client
from asgi_upstream.transport import AsyncioTransport

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
PLACES = 2
MAX_WAITING = 2

transport = AsyncioTransport(limits=httpx.Limits(max_connections=PLACES))
app = FastAPI(
    lifespan=client_lifespan(
        base_url=UPSTREAM_URL, transport=transport, timeout=httpx.Timeout(30, pool=5)
    )
)
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


@app.get("/ready")
async def ready(client: Client) -> JSONResponse:
    """Answer 503 while too many requests wait. Not for the public: it names the upstreams."""
    pool = transport.pool_state()
    state = {
        "exchanges": count_open_exchanges(client),
        "open": pool.open,
        "idle": pool.idle,
        "connecting": pool.connecting,
        "waiting": pool.waiting,
        "waiting_for": {origin: state.waiting for origin, state in pool.origins.items()},
    }
    return JSONResponse(state, 503 if pool.waiting > MAX_WAITING else 200)


@app.get("/alive")
async def alive() -> str:
    """Check only that the event loop runs. A full pool must not restart the process."""
    return "yes"


@app.get("/events")
async def events(client: Client) -> StreamedResponse:
    """Hold one connection."""
    return StreamedResponse(client, client.build_request("GET", "/events"))
