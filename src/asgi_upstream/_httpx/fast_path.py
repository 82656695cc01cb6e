# pyright: reportPrivateUsage=false
"""Bypasses the layers of httpx's client that would do nothing. They are half of its cost.

`AsyncClient.send` handles auth, event hooks, redirects, cookies and mounts. If a client uses none
of these, and no tool has replaced its methods, the request goes straight to its transport. This
reads private attributes of httpx 0.28 and httpx2. If they are missing, requests take the normal
way, and a test fails.
"""

import logging
from typing import Any

import httpx

from .._logging import client_loggers
from .client import is_plain_client_class
from .cookies import rejects_cookies
from .flavors import get_library, small_cache
from .interception import MethodGuard
from .interfaces import HTTPXModule
from .requests import request_origin

_SEND_METHODS = (
    "send",
    "_send_handling_auth",
    "_send_handling_redirects",
    "_send_single_request",
    "_transport_for_url",
)


@small_cache
def _guard_methods(client_class: type[Any]) -> MethodGuard | None:
    """Return the guard of a client's class, or None if an app or a tool has subclassed it."""
    if not is_plain_client_class(client_class):
        return None
    library_class = get_library(client_class).AsyncClient
    return MethodGuard(*((library_class, name) for name in _SEND_METHODS))


_guard_methods(httpx.AsyncClient)  # That of httpx2 follows at its first client.


def direct_transport(client: Any, request: httpx.Request) -> httpx.AsyncBaseTransport | None:
    """Return the transport that can take the request, or None if the client has work to do."""
    guard = _guard_methods(type(client))  # pyright: ignore
    if guard is None or not guard.is_intact():
        return None
    attributes: dict[str, Any] = client.__dict__
    try:
        can_bypass = not (
            not attributes.keys().isdisjoint(_SEND_METHODS)
            or client.is_closed
            or attributes["_mounts"]
            or attributes["_auth"]
            or attributes["follow_redirects"]
            or any(attributes["_event_hooks"].values())
            or not rejects_cookies(attributes["_cookies"].jar)
            or request_origin(request).userinfo
            or "timeout" not in request.extensions
        )
        transport: httpx.AsyncBaseTransport = attributes["_transport"]
    except (AttributeError, KeyError):
        return None
    return transport if can_bypass else None


def log_request(
    library: HTTPXModule, request: httpx.Request, version: bytes, status: int, reason: bytes
) -> None:
    """Log the line that the client logs for each request."""
    logger = client_loggers[library.__name__]
    if logger.isEnabledFor(logging.INFO):
        logger.info(
            'HTTP Request: %s %s "%s %d %s"',
            request.method,
            request.url,
            version.decode("ascii", "ignore"),
            status,
            reason.decode("ascii", "ignore"),
        )
