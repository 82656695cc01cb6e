# pyright: reportPrivateUsage=false
"""Past the layers of httpx that have nothing to do for an exchange: half of its cost.

`AsyncClient.send` goes through auth, event hooks, redirects, cookies and mounts. A client that has
none of these, and that nobody has wrapped, may hand its request straight to its transport. This
reads private attributes of httpx; where they are not as it knows them, requests go the long way,
and a test fails.
"""

import logging
import types
from typing import Any

import httpx

from .log import httpx_logger

# As these are before anybody wraps them. What somebody has wrapped is from another file.
_LAYERS = frozenset(
    [
        "send",
        "_send_handling_auth",
        "_send_handling_redirects",
        "_send_single_request",
        "_transport_for_url",
    ]
)
_FILE = httpx.AsyncClient.__init__.__code__.co_filename


def _own(name: str) -> object:
    """A method of httpx's, as it is before anybody wraps it; what is wrapped is of another file."""
    method = getattr(httpx.AsyncClient, name, None)
    is_own = isinstance(method, types.FunctionType) and method.__code__.co_filename == _FILE
    return method if is_own else None


_SEND, _AUTH = _own("send"), _own("_send_handling_auth")
_REDIRECTS, _SINGLE = _own("_send_handling_redirects"), _own("_send_single_request")
_FOR_URL = _own("_transport_for_url")


def shortcut(client: Any, request: httpx.Request) -> httpx.AsyncBaseTransport | None:
    """The transport to hand a request to; None where that would not be the same."""
    layers = httpx.AsyncClient
    if type(client) is not layers:
        return None
    attributes = vars(client)
    try:
        has_nothing_to_do = not (
            layers.send is not _SEND
            or layers._send_handling_auth is not _AUTH
            or layers._send_handling_redirects is not _REDIRECTS
            or layers._send_single_request is not _SINGLE
            or layers._transport_for_url is not _FOR_URL
            or not _LAYERS.isdisjoint(attributes)
            or client.is_closed
            or attributes["_mounts"]
            or attributes["_auth"]
            or attributes["follow_redirects"]
            or any(attributes["_event_hooks"].values())
            or not getattr(attributes["_cookies"].jar, "keeps_none", False)
            or (getattr(request, "origin_url", None) or request.url).userinfo
            or "timeout" not in request.extensions
        )
        transport: httpx.AsyncBaseTransport = attributes["_transport"]
    except (AttributeError, KeyError):
        return None
    return transport if has_nothing_to_do else None


def sent(request: httpx.Request, version: bytes, status: int, reason: bytes) -> None:
    """Log what the client logs of a request that it hands to its transport."""
    if httpx_logger.isEnabledFor(logging.INFO):
        httpx_logger.info(
            'HTTP Request: %s %s "%s %d %s"',
            request.method,
            request.url,
            version.decode("ascii", "ignore"),
            status,
            reason.decode("ascii", "ignore"),
        )
