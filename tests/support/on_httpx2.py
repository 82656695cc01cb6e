"""The same tests on httpx2: what they import as httpx is httpx2, and the package's httpx is not."""

import pkgutil
import sys
from importlib import import_module

import httpcore2
import httpx2

import asgi_upstream
from asgi_upstream import client_lifespan, transport


def put_httpx2_in_place_of_httpx() -> None:
    """From now on, for whoever imports it."""
    for module in pkgutil.walk_packages(asgi_upstream.__path__, "asgi_upstream."):
        import_module(module.name)  # with httpx itself
    transport.AsyncioTransport = transport.httpx2.AsyncioTransport  # type: ignore
    client_lifespan.__defaults__ = (httpx2.AsyncClient,)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("httpx", "httpcore")]:
        del sys.modules[name]  # what has imported it has it
    sys.modules["httpx"], sys.modules["httpcore"] = httpx2, httpcore2
