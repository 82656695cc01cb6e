"""Cookies are not kept, unless on purpose.

    uvicorn examples.cookies:app

A shared client that keeps cookies sends one caller's upstream session with the next caller's
request. So `client_lifespan` keeps none. `cookies=`, even empty, says that you want them: for an
upstream where this service itself has the session.
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
    """The caller gets the upstream's cookie; the client forgets it."""
    return StreamedResponse(client, client.build_request("GET", "/cookie"))


@app.get("/kept")
async def kept(client: SessionClient) -> StreamedResponse:
    """The client sends its own cookie, and from the second request on the upstream's too.

    The session is the service's, so its cookie is not for the caller.
    """

    def keep_it_here(upstream: httpx.Response) -> None:
        upstream.headers.pop("set-cookie", None)

    request = client.build_request("GET", "/cookie")
    return StreamedResponse(client, request, on_response=keep_it_here)
