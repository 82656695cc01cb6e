"""Plain Starlette, without FastAPI: the same lifespan and responses, and `await get_client()`.

uvicorn examples.plain_starlette:app
"""

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from asgi_upstream import BufferedResponse, StreamedResponse, client_lifespan, get_client

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")


async def events(request: Request) -> StreamedResponse:
    """Relay server-sent events as they arrive."""
    client = await get_client(request)
    upstream_request = client.build_request("GET", "/events", params=request.query_params)
    return StreamedResponse(client, upstream_request)


async def item(request: Request) -> BufferedResponse:
    """Relay a JSON document after reading it completely."""
    client = await get_client(request)
    return BufferedResponse(client, client.build_request("GET", "/item"))


app = Starlette(
    routes=[Route("/events", events), Route("/item", item)],
    lifespan=client_lifespan(base_url=UPSTREAM_URL),
)
