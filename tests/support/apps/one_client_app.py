"""The app with one client only, which tells the upstream what process asks.

So nothing but that client stands between a server's "shut down" and the end of the process.
"""

import os

from fastapi import FastAPI
from starlette.routing import Mount

from tests.support.apps.relay_app import base, client, plain, state
from tests.support.flavor import httpx

app = FastAPI(
    lifespan=client(
        limits=httpx.Limits(max_connections=int(os.environ.get("MAX_CONNECTIONS", "100"))),
        headers={"x-worker": str(os.getpid())},
    ),
    routes=[Mount("/plain", plain), Mount("/base", base)],
)
app.add_api_route("/state", state)
