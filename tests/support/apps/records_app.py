"""An app whose exchanges are observed: it keeps each record, and writes its outcome to the log."""

import logging
import os
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response
from starlette.routing import Mount

from asgi_upstream import ExchangeRecord, ReverseProxy, count_open_exchanges, get_client
from tests.support.apps.relay_app import METHODS, TIMEOUT, UPSTREAM, client, racing, respond
from tests.support.flavor import httpx

logger = logging.getLogger("observed")
kept: list[ExchangeRecord] = []
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


def keep(record: ExchangeRecord) -> None:
    kept.append(record)
    logger.info("ended: %s", record.outcome)


async def relay(request: Request, client: Client, kind: str, path: str) -> Response:
    return respond(request, client, kind, path)


def relaying() -> FastAPI:
    app = FastAPI()
    app.add_api_route("/{kind}/{path:path}", relay, methods=METHODS, response_model=None)
    return app


raced = relaying()
raced.add_middleware(BaseHTTPMiddleware, dispatch=racing)

app = FastAPI(
    lifespan=client(
        base_url=UPSTREAM,
        timeout=TIMEOUT,
        limits=httpx.Limits(max_connections=50),
        observers=[keep],
    ),
    routes=[Mount("/plain", relaying()), Mount("/raced", raced), Mount("/forward", ReverseProxy())],
)


@app.get("/state")
async def state(client: Client) -> dict[str, object]:
    fields = ("client", "method", "route", "status", "outcome", "bytes_sent", "bytes_received")
    return {
        "pid": os.getpid(),
        "open": count_open_exchanges(client),
        "records": [{name: getattr(record, name) for name in fields} for record in kept],
    }


@app.get("/forget")
async def forget() -> None:
    kept.clear()
