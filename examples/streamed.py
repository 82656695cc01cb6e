"""The streamed relay: status, headers and body of the upstream, chunk by chunk as they arrive.

    uvicorn examples.streamed:app

A caller who leaves cancels the exchange, also before the upstream has answered.
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
    """The last event of a stream whose upstream failed. It tells the caller no internals."""
    return b"event: error\ndata: the upstream failed\n\n"


@app.get("/file")
async def file(client: Client, size: int = 200_000_000) -> StreamedResponse:
    """A large file; its memory here is one chunk."""
    return StreamedResponse(client, client.build_request("GET", "/file", params={"size": size}))


@app.get("/events")
async def events(client: Client, count: int = 20) -> StreamedResponse:
    """Server-sent events, each as it comes."""
    request = client.build_request("GET", "/events", params={"count": count})
    return StreamedResponse(client, request, on_stream_error=error_event)


@app.get("/never")
async def never(client: Client) -> StreamedResponse:
    """An upstream that does not answer: hang up, and it notices."""
    request = client.build_request("GET", "/never", timeout=None)
    return StreamedResponse(client, request)


@app.get("/dies")
async def dies(client: Client) -> StreamedResponse:
    """An upstream that dies half-way: the caller's connection is cut, so that it can tell."""
    return StreamedResponse(client, client.build_request("GET", "/dies"))


@app.get("/dies-with-a-word")
async def dies_with_a_word(client: Client) -> StreamedResponse:
    """The same, but the caller gets a last event that says so."""
    request = client.build_request("GET", "/dies")
    return StreamedResponse(client, request, on_stream_error=error_event)
