"""The app under test: one mounted `ReverseProxy`, as RECIPE says."""

import json
import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from asgi_upstream import ReverseProxy, count_open_exchanges
from tests.support.apps.relay_app import client

recipe = json.loads(os.environ["RECIPE"])


async def state(request: Request) -> Response:
    open_exchanges = count_open_exchanges(request.state.client)
    return JSONResponse({"pid": os.getpid(), "open": open_exchanges})


app = Starlette(
    routes=[Route("/state", state), Mount(recipe["mount"], ReverseProxy(**recipe["options"]))],
    lifespan=client(base_url=os.environ["UPSTREAM_URL"], timeout=30),
)
