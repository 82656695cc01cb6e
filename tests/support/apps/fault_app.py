"""The app of `app.py`, with switches for what can go wrong in the process itself."""

import logging
import os
import resource
import socket
import ssl
import time
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_upstream import client_dependency, combine_lifespans
from tests.support.apps import relay_app as usual
from tests.support.flavor import httpx
from tests.support.logs import FailingHandler

HOST = "upstream.test"
"""A name that only `resolve` knows."""


# DNS.

resolver = {"fails": False, "delay": 0.0}
system_getaddrinfo = socket.getaddrinfo


def resolve(
    host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> Any:
    """In the place of the system's, in asyncio and in trio; uvloop asks the system by itself."""
    if host in (HOST, HOST.encode()) and not flags & socket.AI_NUMERICHOST:
        time.sleep(resolver["delay"])  # in a worker thread
        if resolver["fails"]:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = "127.0.0.1"
    return system_getaddrinfo(host, port, family, type, proto, flags)


socket.getaddrinfo = resolve


@usual.app.get("/resolver")
async def set_resolver(fails: bool = False, delay: float = 0.0) -> None:
    resolver.update(fails=fails, delay=delay)


# Descriptors.

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)


@usual.app.get("/descriptors")
async def set_descriptors(spare: int | None = None) -> None:
    """Leave so many, or as many as there were."""
    if spare is None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    else:
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(spare + 1)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1], hard))
        for descriptor in held:
            os.close(descriptor)


# Logging.


def raises(record: logging.LogRecord) -> bool:
    raise ValueError("the filter broke")


@usual.app.get("/logging")
async def set_logging(to: str = "") -> None:
    logger = logging.getLogger("asgi_upstream")
    logger.handlers.clear()
    logger.filters.clear()
    if to == "full":
        logger.addHandler(logging.StreamHandler(open("/dev/full", "w")))  # noqa: ASYNC230, SIM115
    elif to == "handler":
        logger.addHandler(FailingHandler())
    elif to == "filter":
        logger.addFilter(raises)


# TLS.

trust = ssl.create_default_context(cafile=os.environ.get("UPSTREAM_CA"))
Trusting = Annotated[httpx.AsyncClient, Depends(client_dependency("trusting"))]


@usual.plain.get("/trusting/{kind}/{path:path}")
async def trusting(request: Request, client: Trusting, kind: str, path: str) -> Response:
    return usual.respond(request, client, kind, path)


usual.plain.routes.insert(0, usual.plain.routes.pop())
usual.app.router.lifespan_context = combine_lifespans(
    usual.app.router.lifespan_context, usual.client(name="trusting", verify=trust)
)


class Timed:
    """Says in `x-seconds` how long the app took until it answered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.monotonic()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                field = (b"x-seconds", b"%.3f" % (time.monotonic() - begun))
                message["headers"] = [*message["headers"], field]
            await send(message)

        await self.app(scope, receive, timed)


app = Timed(usual.app)
