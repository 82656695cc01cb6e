"""The Starlette or FastAPI app around an endpoint, the same for all but the least relay."""

import os
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Annotated, Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

UPSTREAM = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9")
WAIT = 60.0

Endpoint = Callable[[Request, Any], Awaitable[Response]]
Find = Callable[[Request], Awaitable[Any]]


async def from_state(request: Request) -> Any:
    """Find a peer's client, as `get_client` finds this library's."""
    return request.state.client


def app_with(endpoint: Endpoint, lifespan: Any, find: Find = from_state) -> ASGIApp:
    """Return an app of either framework whose endpoint gets the request and the client."""
    methods = ["GET", "POST"]
    if os.environ.get("FRAMEWORK") == "fastapi":
        fastapi = import_module("fastapi")

        async def dependent(
            request: Request, client: Annotated[Any, fastapi.Depends(find)]
        ) -> Response:
            return await endpoint(request, client)

        app: Any = fastapi.FastAPI(lifespan=lifespan)
        app.add_api_route("/{path:path}", dependent, methods=methods, response_model=None)
        return cast(ASGIApp, app)

    async def plain(request: Request) -> Response:
        return await endpoint(request, await find(request))

    routes = [Route("/{path:path}", plain, methods=methods)]
    return Starlette(routes=routes, lifespan=lifespan)
