"""Several upstream calls in one answer, with a deadline, for as long as the caller stays.

uvicorn examples.merge:app
"""

import asyncio
import os
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, Request

from asgi_upstream import UpstreamError, cancel_on_disconnect, client_lifespan, fetch, get_client

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")

app = FastAPI(lifespan=client_lifespan(base_url=UPSTREAM_URL))
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


@app.get("/page", responses=UpstreamError.responses)
async def page(request: Request, client: Client) -> dict[str, Any]:
    """Merge two upstreams. Both calls end if the caller disconnects."""
    async with cancel_on_disconnect(request, deadline=5):
        item, headers = await asyncio.gather(
            fetch(client, client.build_request("GET", "/item")),
            fetch(client, client.build_request("GET", "/headers")),
        )
    return {"item": item.json(), "headers": headers.json()}


@app.get("/page-without-extras")
async def page_without_extras(request: Request, client: Client) -> dict[str, Any]:
    """Answer without the second upstream if that one fails."""
    async with cancel_on_disconnect(request, deadline=5):
        item, extras = await asyncio.gather(
            fetch(client, client.build_request("GET", "/item")),
            fetch(client, client.build_request("GET", "/dies"), deadline=1),
            return_exceptions=True,
        )
    if isinstance(item, BaseException):
        raise item
    found = isinstance(extras, httpx.Response) and extras.is_success
    return {"item": item.json(), "extras": found}
