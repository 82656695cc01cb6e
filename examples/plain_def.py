"""A plain `def` endpoint streams like an `async def` one.

    uvicorn examples.plain_def:app

The endpoint only describes the exchange. The exchange runs on the event loop after the endpoint has
returned and its worker thread is free again.
"""

import os
import threading
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI

from asgi_upstream import StreamedResponse, client_lifespan, get_client

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")

app = FastAPI(lifespan=client_lifespan(base_url=UPSTREAM_URL))
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


@app.get("/events")
def events(client: Client, count: int = 5) -> StreamedResponse:
    """Build the request in a worker thread. That is safe, because it does no I/O."""
    request = client.build_request("GET", "/events", params={"count": count})
    response = StreamedResponse(client, request)
    response.headers["x-endpoint-thread"] = threading.current_thread().name
    return response
