"""A sync `httpx.Client`, shared by the worker threads of plain `def` endpoints.

    uvicorn examples.sync_client:app

For code that is sync anyway. The client opens and closes with the app, and its pool is shared.
"""

import os
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI

from asgi_upstream import client_dependency, client_lifespan, upstream_errors

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")

app = FastAPI(lifespan=client_lifespan(httpx.Client, name="sync_client", base_url=UPSTREAM_URL))
SyncClient = Annotated[httpx.Client, Depends(client_dependency("sync_client"))]


@app.get("/item")
def item(client: SyncClient) -> dict[str, Any]:
    """Wait in a worker thread. A failure of the upstream is a 502, 503 or 504 here too."""
    with upstream_errors():
        upstream = client.get("/item").raise_for_status()
        return {"from": "a worker thread", **upstream.json()}


@app.get("/status/{code}")
@upstream_errors()
def status(client: SyncClient, code: int) -> str:
    """Use the decorator. An error status of the upstream becomes a 502."""
    return client.get(f"/status/{code}").raise_for_status().text
