"""Pool limits, timeouts, default headers and a proxy: the client takes httpx's options.

    uvicorn examples.client_options:app

Through a proxy: PROXY_URL=http://127.0.0.1:3128 uvicorn examples.client_options:app
"""

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI

from asgi_upstream import (
    PoolExhausted,
    StreamedResponse,
    UpstreamTimeout,
    client_lifespan,
    get_client,
)

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
PROXY_URL = os.environ.get("PROXY_URL")

app = FastAPI(
    lifespan=client_lifespan(
        base_url=UPSTREAM_URL,
        limits=httpx.Limits(max_connections=2, max_keepalive_connections=2, keepalive_expiry=30),
        timeout=httpx.Timeout(connect=2, read=1, write=5, pool=0.2),  # seconds
        headers={"authorization": "Bearer of-this-service", "user-agent": "example/1"},
        proxy=PROXY_URL,
        trust_env=False,  # no proxy or netrc from the environment
    )
)
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


@app.get("/headers")
async def headers(client: Client) -> StreamedResponse:
    """Send the default headers."""
    return StreamedResponse(client, client.build_request("GET", "/headers"))


@app.get("/never", responses={504: {"description": UpstreamTimeout.detail}})
async def never(client: Client) -> StreamedResponse:
    """Run into the read timeout: 504."""
    return StreamedResponse(client, client.build_request("GET", "/never"))


@app.get("/events", responses={503: {"description": PoolExhausted.detail}})
async def events(client: Client) -> StreamedResponse:
    """Ask three times at once. The pool has two connections, and the third caller gets 503."""
    return StreamedResponse(client, client.build_request("GET", "/events", params={"count": 30}))


@app.get("/deadline", responses={504: {"description": UpstreamTimeout.detail}})
async def deadline(client: Client) -> StreamedResponse:
    """Limit the whole exchange. httpx only has timeouts for single operations. 504."""
    return StreamedResponse(client, client.build_request("GET", "/never"), deadline=0.5)
