"""A buffered response, changed by content type: JSON and text are changed, other types are not.

    uvicorn examples.buffered:app

The complete body is read before anything is sent, so every failure is a clean error status. A body
longer than `max_bytes` is a 502. Try /big?size=100000.
"""

import os
from typing import Annotated, Literal

import httpx
from fastapi import Depends, FastAPI
from starlette.responses import JSONResponse, PlainTextResponse, Response

from asgi_upstream import BufferedResponse, UpstreamBodyTooLarge, client_lifespan, get_client

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
MAX_BYTES = 64 * 1024

app = FastAPI(lifespan=client_lifespan(base_url=UPSTREAM_URL))
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


def by_content_type(upstream: httpx.Response) -> Response | None:
    """Return the response to send instead, or None to relay the upstream's."""
    content_type = upstream.headers.get("content-type", "").partition(";")[0]
    if content_type == "application/json":
        return JSONResponse({"from": "upstream", **upstream.json()}, upstream.status_code)
    if content_type == "text/plain":
        return PlainTextResponse(upstream.text.title(), upstream.status_code)
    return None


Name = Literal["item", "gzip", "text", "file", "big"]


@app.get("/{name}", responses={502: {"description": UpstreamBodyTooLarge.detail}})
async def answer(client: Client, name: Name, size: int = 1000) -> BufferedResponse:
    """Relay one of the upstream's documents."""
    request = client.build_request("GET", f"/{name}", params={"size": size})
    return BufferedResponse(client, request, on_response=by_content_type, max_bytes=MAX_BYTES)
