"""Retries with httpx-retries: a request that fails is sent again.

uvicorn examples.compositions.retries:app
curl -i http://127.0.0.1:8000/api/status/503                 # sent four times, then relayed
curl -i -T README.md http://127.0.0.1:8000/api/status/503    # an upload is sent once
"""

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, Request
from httpx_retries import Retry, RetryTransport

from asgi_upstream import ReverseProxy, StreamedResponse, client_lifespan, get_client
from asgi_upstream.transport import AsyncioTransport

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")

RETRY = Retry(
    total=3,
    backoff_factor=0.1,  # seconds
    max_backoff_wait=5,
    # Not PoolTimeout: retries make a full pool worse. Not ReadTimeout: the upstream may still be
    # working on the request.
    retry_on_exceptions=[
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.ReadError,
        httpx.RemoteProtocolError,
    ],
)


async def send_streams_once(request: httpx.Request) -> None:
    """Send a streamed body only once, because it is consumed by sending it."""
    if not isinstance(request.stream, httpx.ByteStream):
        request.extensions.setdefault("retry", Retry(total=0))


app = FastAPI(
    lifespan=client_lifespan(
        base_url=UPSTREAM_URL,
        transport=RetryTransport(AsyncioTransport(), retry=RETRY),
        event_hooks={"request": [send_streams_once]},
    )
)
app.mount("/api", ReverseProxy(deadline=30))
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


@app.put("/held/{path:path}")
async def held(request: Request, client: Client, path: str) -> StreamedResponse:
    """Read a small upload completely, so that it can be sent again."""
    body = await request.body()
    url = httpx.URL(f"/{path}", params=request.query_params)
    return StreamedResponse(client, client.build_request("PUT", url, content=body))


@app.get("/brief/{path:path}")
async def brief(request: Request, client: Client, path: str) -> StreamedResponse:
    """Limit all attempts and the waits between them to a second. Otherwise 504."""
    url = httpx.URL(f"/{path}", params=request.query_params)
    return StreamedResponse(client, client.build_request("GET", url), deadline=1)
