"""Event streams: changed with httpx-sse, or kept alive while the upstream is silent.

uvicorn examples.compositions.events:app
curl -N http://127.0.0.1:8000/shouted/events
curl -N http://127.0.0.1:8000/kept-alive/events    # with a comment every second
"""

import os
from collections.abc import AsyncIterator
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from httpx_sse import EventSource, aconnect_sse
from sse_starlette import EventSourceResponse as PingingResponse
from sse_starlette import ServerSentEvent as Event

from asgi_upstream import StreamedResponse, client_lifespan, get_client, upstream_errors

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
PING = float(os.environ.get("PING", "1"))  # seconds
PATIENT = httpx.Timeout(5, read=60)  # Events may be far apart.

app = FastAPI(lifespan=client_lifespan(base_url=UPSTREAM_URL))
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


# Changed: status, headers and failures are relayed as usual.


async def shout(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Read events, even if a chunk splits one, and yield others."""
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    async for event in EventSource(response).aiter_sse():
        data = event.data.upper()
        yield Event(data, event=event.event or None, id=event.id or None, sep="\n").encode()


def error_event(exc: Exception) -> bytes:
    return Event("the upstream failed", event="error", sep="\n").encode()


@app.get("/shouted/{path}")
async def shouted(client: Client, path: str) -> StreamedResponse:
    request = client.build_request("GET", f"/{path}", timeout=PATIENT)
    return StreamedResponse(client, request, transform=shout, on_stream_error=error_event)


# Kept alive: the response starts before the upstream's, so its status is always 200.


async def read_events(client: httpx.AsyncClient, path: str) -> AsyncIterator[Event]:
    try:
        async with aconnect_sse(client, "GET", f"/{path}", timeout=PATIENT) as source:
            source.response.raise_for_status()
            async for event in source.aiter_sse():
                yield Event(event.data, event=event.event or None, id=event.id or None)
    except httpx.HTTPError as exc:
        yield Event("the upstream failed", event="error", comment=type(exc).__name__)


@app.get("/kept-alive/{path}")
async def kept_alive(client: Client, path: str) -> PingingResponse:
    """Use sse-starlette, with its own interval."""
    return PingingResponse(read_events(client, path), ping=PING)


# FastAPI itself sends a comment every 15 seconds. The upstream is opened before.


async def opened_events(client: Client, path: str) -> AsyncIterator[EventSource]:
    """Open the upstream, so that a failure is a 502. Close it after the response."""
    with upstream_errors():
        request = client.build_request("GET", f"/{path}", timeout=PATIENT)
        upstream = await client.send(request, stream=True)
    try:
        yield EventSource(upstream)
    finally:
        await upstream.aclose()


@app.get("/kept-alive-by-fastapi/{path}", response_class=EventSourceResponse)
async def kept_alive_by_fastapi(
    source: Annotated[EventSource, Depends(opened_events)],
) -> AsyncIterator[ServerSentEvent]:
    try:
        async for event in source.aiter_sse():
            yield ServerSentEvent(
                raw_data=event.data, event=event.event or None, id=event.id or None
            )
    except httpx.HTTPError:
        yield ServerSentEvent(raw_data="the upstream failed", event="error")
