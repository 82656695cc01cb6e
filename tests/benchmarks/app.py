"""Serves one of the relays that are compared: an ASGI app for any path, alone in its process.

`WAY` names it, `UPSTREAM_URL` the upstream, `FRAMEWORK` Starlette or FastAPI. No way has a limit of
connections, and each waits for a minute.
"""

import os
from importlib import import_module

from starlette.types import ASGIApp

LEAST = ("bare", "bare_build_request")
NEEDS = {
    "aiohttp": "aiohttp",
    "httpx_aiohttp": "httpx_aiohttp",
    "pyreqwest": "pyreqwest",
    "httpx2": "httpx2",
    "fastapi_proxy_lib": "fastapi_proxy_lib",
}
"""The package that a way is about, where it may be missing."""

PEERS = ("idiom", *NEEDS)


def create_app(way: str) -> ASGIApp:
    module = "least" if way in LEAST else "peers" if way in PEERS else "library"
    app: ASGIApp = getattr(import_module(f"tests.benchmarks.ways.{module}"), way)()
    return app


if "WAY" in os.environ:
    app = create_app(os.environ["WAY"])
