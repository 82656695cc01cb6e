"""An API gateway: two services behind one address, their keys kept here, callers known first.

    uvicorn examples.gateway:app
    curl -i http://127.0.0.1:8000/stock/item                                  # 401
    curl -H 'x-api-key: key-of-ann' http://127.0.0.1:8000/stock/headers       # what stock was sent
    curl -H 'x-api-key: key-of-ann' http://127.0.0.1:8000/billing/headers

Each service has a client of its own, with its own pool, timeouts and key. The key wins over the
`authorization` of a caller, so none can be set from outside.

The services are routes, not mounts. FastAPI runs dependencies for routes only: a mounted app is
reached without those of the app or of a router, and so without authentication.
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
    """The caller's name; 401 for a key that nobody has."""
    for known, name in CALLERS.items():
        if secrets.compare_digest(known.encode(), key.encode()):
            return name
    raise HTTPException(401, "no such key")


BillingClient = Annotated[httpx.AsyncClient, Depends(client_dependency("billing_client"))]
KnownCaller = Annotated[str, Depends(known_caller)]

router = APIRouter(dependencies=[Depends(known_caller)])
# The caller's key was for this gateway, so it ends here.
stock = ReverseProxy("stock_client", prefix="/stock", headers={"x-api-key": None})


@router.api_route("/stock/{path:path}", methods=METHODS)
async def forward_to_stock(request: Request) -> Response:
    """Everything under /stock, behind the router's dependencies."""
    return await stock.respond(request)


@router.api_route("/billing/{path:path}", methods=METHODS)
async def forward_to_billing(
    request: Request, client: BillingClient, caller: KnownCaller
) -> StreamedResponse:
    """The same by hand, for what depends on the caller: billing is told who asks."""
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
