"""The app of `make demo`: relays every kind of answer that an upstream can give, or not give.

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
    """The last event of a stream whose upstream failed."""
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
    """An upstream that does not answer, and time to wait for it."""
    return StreamedResponse(client, client.build_request("GET", "/never", timeout=30))


@app.get("/never/deadline")
async def never_with_a_deadline(client: Client) -> StreamedResponse:
    """A deadline for the whole exchange: 504."""
    return StreamedResponse(client, client.build_request("GET", "/never"), deadline=0.5)


@app.get("/never/timeout")
async def never_with_a_timeout(client: Client) -> StreamedResponse:
    """A timeout for each read: 504."""
    return StreamedResponse(client, client.build_request("GET", "/never", timeout=0.5))


@app.get("/dies")
async def dies(client: Client) -> StreamedResponse:
    """The connection to the caller is cut, so that it can tell that the body is not whole."""
    return StreamedResponse(client, client.build_request("GET", "/dies"))


@app.get("/dies/told")
async def dies_told(client: Client) -> StreamedResponse:
    """The caller gets an event of ours as the last, and a proper end."""
    return StreamedResponse(
        client, client.build_request("GET", "/dies"), on_stream_error=error_event
    )


@app.get("/narrow/never")
async def narrow_never(client: NarrowClient) -> StreamedResponse:
    """Holds the one connection of a pool."""
    return StreamedResponse(client, client.build_request("GET", "/never"))


@app.get("/narrow/item")
async def narrow_item(client: NarrowClient) -> StreamedResponse:
    """503 while somebody holds the one connection of the pool."""
    return StreamedResponse(client, client.build_request("GET", "/item"))


@app.get("/refused")
async def refused(client: RefusedClient) -> StreamedResponse:
    """Nobody listens there: 502."""
    return StreamedResponse(client, client.build_request("GET", "/item"))
