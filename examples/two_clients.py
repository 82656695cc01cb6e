"""Two named clients, each with its own pool, base URL, timeouts and credentials.

uvicorn examples.two_clients:app
"""

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI

from asgi_upstream import StreamedResponse, client_dependency, client_lifespan, combine_lifespans

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")

app = FastAPI(
    lifespan=combine_lifespans(
        client_lifespan(
            name="stock_client",
            base_url=UPSTREAM_URL,
            headers={"authorization": "Bearer stock"},
            timeout=2,
        ),
        client_lifespan(
            name="model_client",
            base_url=UPSTREAM_URL,
            headers={"authorization": "Bearer model"},
            timeout=httpx.Timeout(5, read=None),  # A model may need long.
        ),
    )
)
StockClient = Annotated[httpx.AsyncClient, Depends(client_dependency("stock_client"))]
ModelClient = Annotated[httpx.AsyncClient, Depends(client_dependency("model_client"))]


@app.get("/stock")
async def stock(client: StockClient) -> StreamedResponse:
    """Relay from the first upstream."""
    return StreamedResponse(client, client.build_request("GET", "/headers"))


@app.get("/model")
async def model(client: ModelClient) -> StreamedResponse:
    """Relay from the second upstream."""
    return StreamedResponse(client, client.build_request("GET", "/headers"))
