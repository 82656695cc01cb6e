"""ReverseProxy, numbering each request that a server hands to it, on the transport under test."""

import os
from itertools import count

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from asgi_upstream import ReverseProxy
from tests.support.apps.relay_app import TIMEOUT, UPSTREAM, client
from tests.support.flavor import httpx

numbers = count(1)


def numbered(request: httpx.Request) -> None:
    """So that the upstream can tell a request of the app's from one that was smuggled in."""
    request.headers["x-number"] = str(next(numbers))


async def state(request: Request) -> JSONResponse:
    return JSONResponse({"pid": os.getpid()})


app = Starlette(
    lifespan=client(base_url=UPSTREAM, timeout=TIMEOUT),
    routes=[Route("/state", state), Mount("/forward", ReverseProxy(on_request=numbered))],
)
