"""The content type is the upstream's. A browser shows streamed plain text as it arrives.

    uvicorn examples.content_type:app

Open http://127.0.0.1:8000/slow-text in a browser: the lines appear one by one. Browsers hold back
plain text to guess its type, unless the response has `x-content-type-options: nosniff`. A
StreamedResponse adds that header to text/plain.
"""

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI

from asgi_upstream import StreamedResponse, client_lifespan, get_client

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")

app = FastAPI(lifespan=client_lifespan(base_url=UPSTREAM_URL))
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


@app.get("/item")
async def item(client: Client) -> StreamedResponse:
    """Relay the upstream's application/json."""
    return StreamedResponse(client, client.build_request("GET", "/item"))


@app.get("/slow-text")
async def slow_text(client: Client) -> StreamedResponse:
    """Relay text/plain. The added header tells the browser not to guess."""
    return StreamedResponse(client, client.build_request("GET", "/slow-text"))


@app.get("/item-as-text")
async def item_as_text(client: Client) -> StreamedResponse:
    """Override the upstream's content type."""
    request = client.build_request("GET", "/item")
    return StreamedResponse(client, request, media_type="text/plain")
