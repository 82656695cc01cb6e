"""A streamed response: the upstream's status, headers and body, chunk by chunk as they arrive.

    uvicorn examples.streamed:app

A disconnect of the caller cancels the exchange, even before the upstream has answered.
"""

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI

from asgi_upstream import StreamedResponse, client_lifespan, get_client

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")

app = FastAPI(lifespan=client_lifespan(base_url=UPSTREAM_URL))
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


def error_event(exc: Exception) -> bytes:
    """Return the last event of a failed stream. It names no internals."""
    return b"event: error\ndata: the upstream failed\n\n"


@app.get("/file")
async def file(client: Client, size: int = 200_000_000) -> StreamedResponse:
    """Relay a large file. Only one chunk is in memory."""
    return StreamedResponse(client, client.build_request("GET", "/file", params={"size": size}))


@app.get("/events")
async def events(client: Client, count: int = 20) -> StreamedResponse:
    """Relay server-sent events as they arrive."""
    request = client.build_request("GET", "/events", params={"count": count})
    return StreamedResponse(client, request, on_stream_error=error_event)


@app.get("/never")
async def never(client: Client) -> StreamedResponse:
    """Relay an upstream that does not answer. It notices when you disconnect."""
    request = client.build_request("GET", "/never", timeout=None)
    return StreamedResponse(client, request)


@app.get("/dies")
async def dies(client: Client) -> StreamedResponse:
    """Relay an upstream that fails in the body. The caller's connection is closed."""
    return StreamedResponse(client, client.build_request("GET", "/dies"))


@app.get("/dies-with-a-word")
async def dies_with_a_word(client: Client) -> StreamedResponse:
    """Relay the same failure, but end the stream with an error event."""
    request = client.build_request("GET", "/dies")
    return StreamedResponse(client, request, on_stream_error=error_event)
