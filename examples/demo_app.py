"""The app of `make demo`: relays every kind of response, and every kind of failure.

    UPSTREAM_URL=http://127.0.0.1:9000 uvicorn examples.demo_app:app

`examples.upstream:app` is an upstream for it.
"""

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, Request

from asgi_upstream import (
    StreamedResponse,
    client_dependency,
    client_lifespan,
    combine_lifespans,
    get_client,
)

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
NOBODY_LISTENS = "http://127.0.0.1:1"

app = FastAPI(
    lifespan=combine_lifespans(
        client_lifespan(base_url=UPSTREAM_URL),
        client_lifespan(
            name="narrow",
            base_url=UPSTREAM_URL,
            limits=httpx.Limits(max_connections=1),
            timeout=httpx.Timeout(30, pool=0.2),
        ),
        client_lifespan(name="refused", base_url=NOBODY_LISTENS),
    )
)

Client = Annotated[httpx.AsyncClient, Depends(get_client)]
NarrowClient = Annotated[httpx.AsyncClient, Depends(client_dependency("narrow"))]
RefusedClient = Annotated[httpx.AsyncClient, Depends(client_dependency("refused"))]


def error_event(exc: Exception) -> bytes:
    """Return the last event of a stream whose upstream failed."""
    return f"event: error\ndata: {exc.__class__.__name__}\n\n".encode()


@app.get("/file")
async def file(client: Client, request: Request) -> StreamedResponse:
    return StreamedResponse(
        client, client.build_request("GET", "/file", params=request.query_params)
    )


@app.get("/events")
async def events(client: Client, request: Request) -> StreamedResponse:
    return StreamedResponse(
        client,
        client.build_request("GET", "/events", params=request.query_params),
        on_stream_error=error_event,
    )


@app.get("/item")
async def item(client: Client) -> StreamedResponse:
    return StreamedResponse(client, client.build_request("GET", "/item"))


@app.get("/status/{code}")
async def status(client: Client, code: int) -> StreamedResponse:
    return StreamedResponse(client, client.build_request("GET", f"/status/{code}"))


@app.get("/never")
async def never(client: Client) -> StreamedResponse:
    """Relay an upstream that does not answer, with a long timeout."""
    return StreamedResponse(client, client.build_request("GET", "/never", timeout=30))


@app.get("/never/deadline")
async def never_with_a_deadline(client: Client) -> StreamedResponse:
    """Limit the whole exchange with a deadline: 504."""
    return StreamedResponse(client, client.build_request("GET", "/never"), deadline=0.5)


@app.get("/never/timeout")
async def never_with_a_timeout(client: Client) -> StreamedResponse:
    """Limit each read with a timeout: 504."""
    return StreamedResponse(client, client.build_request("GET", "/never", timeout=0.5))


@app.get("/dies")
async def dies(client: Client) -> StreamedResponse:
    """Close the caller's connection, so that the truncation is visible."""
    return StreamedResponse(client, client.build_request("GET", "/dies"))


@app.get("/dies/told")
async def dies_told(client: Client) -> StreamedResponse:
    """End the stream with an event that describes the error."""
    return StreamedResponse(
        client, client.build_request("GET", "/dies"), on_stream_error=error_event
    )


@app.get("/narrow/never")
async def narrow_never(client: NarrowClient) -> StreamedResponse:
    """Hold the only connection of a pool."""
    return StreamedResponse(client, client.build_request("GET", "/never"))


@app.get("/narrow/item")
async def narrow_item(client: NarrowClient) -> StreamedResponse:
    """Answer 503 while the only connection of the pool is in use."""
    return StreamedResponse(client, client.build_request("GET", "/item"))


@app.get("/refused")
async def refused(client: RefusedClient) -> StreamedResponse:
    """Connect to a closed port: 502."""
    return StreamedResponse(client, client.build_request("GET", "/item"))
