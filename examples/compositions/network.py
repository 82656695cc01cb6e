"""The transport that the compositions wrap: httpx's or `AsyncioTransport`."""

import os

import httpx

from asgi_upstream.transport import AsyncioTransport


def network(limits: httpx.Limits | None = None) -> httpx.AsyncBaseTransport:
    """Return the transport. It takes the limits, because the client has `transport=`."""
    limits = limits or httpx.Limits(max_connections=100, max_keepalive_connections=100)
    if os.environ.get("TRANSPORT") == "stock":
        return httpx.AsyncHTTPTransport(limits=limits)
    return AsyncioTransport(limits=limits)
