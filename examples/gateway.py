"""An API gateway: two services behind one address, with authentication and the services' keys.

    uvicorn examples.gateway:app
    curl -i http://127.0.0.1:8000/stock/item                                  # 401
    curl -H 'x-api-key: key-of-ann' http://127.0.0.1:8000/stock/headers       # as stock got it
    curl -H 'x-api-key: key-of-ann' http://127.0.0.1:8000/billing/headers

Each service has its own client with its own pool, timeouts and key. The key replaces the caller's
`authorization`.

The services are routes, not mounts, because FastAPI runs dependencies only for routes. A mounted
app would be reached without authentication.
"""

import os
import secrets
from typing import Annotated

import httpx
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.security import APIKeyHeader
from starlette.responses import Response

from asgi_upstream import (
    ReverseProxy,
    StreamedResponse,
    client_dependency,
    client_lifespan,
    combine_lifespans,
    forward_request,
)

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
STOCK_URL = os.environ.get("STOCK_URL", UPSTREAM_URL)
BILLING_URL = os.environ.get("BILLING_URL", UPSTREAM_URL)

CALLERS = {"key-of-ann": "ann", "key-of-bob": "bob"}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


async def known_caller(key: Annotated[str, Depends(APIKeyHeader(name="x-api-key"))]) -> str:
    """Return the caller's name, or answer 401 for an unknown key."""
    for known, name in CALLERS.items():
        if secrets.compare_digest(known.encode(), key.encode()):
            return name
    raise HTTPException(401, "no such key")


BillingClient = Annotated[httpx.AsyncClient, Depends(client_dependency("billing_client"))]
KnownCaller = Annotated[str, Depends(known_caller)]

router = APIRouter(dependencies=[Depends(known_caller)])
# The caller's key is for this gateway only.
stock = ReverseProxy("stock_client", prefix="/stock", headers={"x-api-key": None})


@router.api_route("/stock/{path:path}", methods=METHODS, include_in_schema=False)
async def forward_to_stock(request: Request) -> Response:
    """Forward everything under /stock, after the router's dependencies."""
    return await stock.respond(request)


@router.api_route("/billing/{path:path}", methods=METHODS, include_in_schema=False)
async def forward_to_billing(
    request: Request, client: BillingClient, caller: KnownCaller
) -> StreamedResponse:
    """Forward with a header that depends on the caller."""
    headers = {"x-api-key": None, "x-caller": caller}
    outgoing = forward_request(client, request, prefix="/billing", headers=headers)
    return StreamedResponse(client, outgoing, deadline=60)


app = FastAPI(
    lifespan=combine_lifespans(
        client_lifespan(
            name="stock_client",
            base_url=STOCK_URL,
            headers={"authorization": "Bearer of-the-gateway-for-stock"},
            timeout=2,
        ),
        client_lifespan(
            name="billing_client",
            base_url=BILLING_URL,
            headers={"authorization": "Bearer of-the-gateway-for-billing"},
            timeout=30,
        ),
    )
)
app.include_router(router)
