"""The same tests on httpx2: what they import as httpx is httpx2, and the package's httpx is not."""

import pkgutil
import sys
from importlib import import_module
from typing import Any

import httpcore2
import httpx
import httpx2

import asgi_upstream
from asgi_upstream import client_lifespan, transport
from asgi_upstream._exchange.body import DecodedBody, ResumableBody
from asgi_upstream.transport._connection import HTTP11Connection
from asgi_upstream.transport._pool import Pool
from asgi_upstream.transport._serializer import serialize_request


def put_httpx2_in_place_of_httpx() -> None:
    """From now on, for whoever imports it."""
    for module in pkgutil.walk_packages(asgi_upstream.__path__, "asgi_upstream."):
        import_module(module.name)  # with httpx itself
    transport.AsyncioTransport = transport.httpx2.AsyncioTransport  # type: ignore
    for function in (
        client_lifespan,
        Pool.__init__,
        HTTP11Connection.__init__,
        serialize_request,
        DecodedBody.__init__,
        ResumableBody.__init__,
    ):
        given = {httpx: httpx2, httpx.AsyncClient: httpx2.AsyncClient}
        defaults: tuple[Any, ...] = function.__defaults__ or ()
        function.__defaults__ = tuple(given.get(default, default) for default in defaults)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("httpx", "httpcore")]:
        del sys.modules[name]  # what has imported it has it
    sys.modules["httpx"], sys.modules["httpcore"] = httpx2, httpcore2
