"""Rate limits with slowapi: a number of requests per minute and caller.

uvicorn examples.compositions.rate_limits:app
for i in 1 2 3 4 5 6; do curl -i -H 'x-api-key: ann' http://127.0.0.1:8000/api/item; done
"""

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, Request, Response
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address

from asgi_upstream import ReverseProxy, StreamedResponse, client_lifespan, get_client

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
LIMIT = os.environ.get("LIMIT", "5/minute")
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def caller_of(request: Request) -> str:
    """Return the authenticated caller. This example trusts a header instead."""
    return request.headers.get("x-api-key") or get_remote_address(request)


limiter = Limiter(key_func=caller_of, headers_enabled=True)
app = FastAPI(lifespan=client_lifespan(base_url=UPSTREAM_URL))
app.state.limiter = limiter
app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)  # type: ignore[arg-type]


@app.get("/events")
@limiter.limit(LIMIT)
async def events(
    request: Request, client: Annotated[httpx.AsyncClient, Depends(get_client)]
) -> StreamedResponse:
    """Relay a stream. It counts as one request."""
    return StreamedResponse(client, client.build_request("GET", "/events"))


# slowapi limits endpoints but not mounts, so an endpoint calls the proxy.
forward = ReverseProxy(prefix="/api")


@app.api_route("/api/{path:path}", methods=METHODS, include_in_schema=False)
@limiter.limit(LIMIT)
async def api(request: Request, path: str) -> Response:
    return await forward.respond(request)
