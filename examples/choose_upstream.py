"""Chooses one of several upstreams for each request: by host, header, tenant or weight.

    uvicorn examples.choose_upstream:app
    curl -H 'host: beta.example' http://127.0.0.1:8000/by-host/headers
    curl -H 'x-version: 2' http://127.0.0.1:8000/by-header/headers
    curl http://127.0.0.1:8000/by-tenant/acme/headers
    curl http://127.0.0.1:8000/by-weight/headers

Each upstream is a named client, and a function of the connection returns the name. If it raises an
HTTPException, that is the answer: here 404 for an unknown tenant.
"""

import os
import random

import anyio.lowlevel
from fastapi import FastAPI, HTTPException
from starlette.requests import HTTPConnection

from asgi_upstream import ReverseProxy, client_lifespan, combine_lifespans

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
STABLE_URL = os.environ.get("STABLE_URL", UPSTREAM_URL)
BETA_URL = os.environ.get("BETA_URL", UPSTREAM_URL)

app = FastAPI(
    lifespan=combine_lifespans(
        client_lifespan(name="stable", base_url=STABLE_URL, headers={"x-sent-to": "stable"}),
        client_lifespan(name="beta", base_url=BETA_URL, headers={"x-sent-to": "beta"}),
    )
)


def by_host(connection: HTTPConnection) -> str:
    """Choose by the Host header. The caller controls it, so it only picks from a list."""
    return {"beta.example": "beta"}.get(connection.url.hostname or "", "stable")


def by_header(connection: HTTPConnection) -> str:
    """Choose by a header."""
    return "beta" if connection.headers.get("x-version") == "2" else "stable"


async def by_tenant(connection: HTTPConnection) -> str:
    """Choose by a part of the path. Async, because such a table is usually in a database."""
    await anyio.lowlevel.checkpoint()  # instead of the database
    tenants = {"acme": "beta", "umbrella": "stable"}
    try:
        return tenants[connection.path_params["tenant"]]
    except KeyError:
        raise HTTPException(404, "no such tenant") from None


def by_weight(connection: HTTPConnection) -> str:
    """Send one request in ten to the new version (a canary release)."""
    return random.choices(["stable", "beta"], weights=[9, 1])[0]


app.mount("/by-host", ReverseProxy(by_host))
app.mount("/by-header", ReverseProxy(by_header))
app.mount(
    "/by-tenant/{tenant}", ReverseProxy(by_tenant)
)  # The tenant is part of the mount path, so it is not forwarded.
app.mount("/by-weight", ReverseProxy(by_weight))
