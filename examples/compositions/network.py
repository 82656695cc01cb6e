"""The transport that the compositions wrap: httpx's own, or `AsyncioTransport`."""

import os

import httpx

from asgi_upstream.transport import AsyncioTransport


def network(limits: httpx.Limits | None = None) -> httpx.AsyncBaseTransport:
    """What sends. A client with `transport=` has no limits of its own, so they are given here."""
    limits = limits or httpx.Limits(max_connections=100, max_keepalive_connections=100)
    if os.environ.get("TRANSPORT") == "stock":
        return httpx.AsyncHTTPTransport(limits=limits)
    return AsyncioTransport(limits=limits)
