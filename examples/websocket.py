"""WebSockets: relayed under a mount, and in a route that checks the Origin header.

    uvicorn examples.websocket:app

With the client of the package websockets:

    python -m websockets ws://127.0.0.1:8000/api/talk
    python -m websockets ws://127.0.0.1:8000/live/talk

Browsers send cookies with a handshake from any page, and no rule like CORS prevents it. If cookies
identify the caller, check the Origin header, as `/live` does.
"""

import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, WebSocket

from asgi_upstream import ReverseProxy, client_lifespan, get_client, relay_websocket

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
ORIGINS = ("https://shop.example", "http://127.0.0.1:8000")
Client = Annotated[httpx.AsyncClient, Depends(get_client)]

app = FastAPI(lifespan=client_lifespan(base_url=UPSTREAM_URL))
app.mount("/api", ReverseProxy())


@app.websocket("/live/{path:path}")
async def live(websocket: WebSocket, client: Client) -> None:
    """Relay for our own pages, and for callers without an Origin, which are not browsers."""
    if websocket.headers.get("origin") not in (None, *ORIGINS):
        await websocket.close(1008)  # Before it is accepted, this is a 403.
        return
    await relay_websocket(client, websocket, prefix="/live", max_message_bytes=1_000_000)
