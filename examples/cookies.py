"""The shared client stores no cookies unless you ask for it.

    uvicorn examples.cookies:app

A shared client with a cookie jar would send one caller's upstream session with the next caller's
request. So `client_lifespan` disables the jar. Pass `cookies=`, even an empty dict, if the session
belongs to this service.
"""

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI

from asgi_upstream import (
    StreamedResponse,
    client_dependency,
    client_lifespan,
    combine_lifespans,
    get_client,
)

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")

app = FastAPI(
    lifespan=combine_lifespans(
        client_lifespan(base_url=UPSTREAM_URL),
        client_lifespan(name="session_client", base_url=UPSTREAM_URL, cookies={"lang": "en"}),
    )
)
Client = Annotated[httpx.AsyncClient, Depends(get_client)]
SessionClient = Annotated[httpx.AsyncClient, Depends(client_dependency("session_client"))]


@app.get("/not-kept")
async def not_kept(client: Client) -> StreamedResponse:
    """Relay the upstream's cookie to the caller. The client does not store it."""
    return StreamedResponse(client, client.build_request("GET", "/cookie"))


@app.get("/kept")
async def kept(client: SessionClient) -> StreamedResponse:
    """Send the client's cookie, and from the second request on the upstream's too.

    The session belongs to the service, so its cookie is not relayed to the caller.
    """

    def keep_it_here(upstream: httpx.Response) -> None:
        upstream.headers.pop("set-cookie", None)

    request = client.build_request("GET", "/cookie")
    return StreamedResponse(client, request, on_response=keep_it_here)
