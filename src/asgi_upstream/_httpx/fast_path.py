# pyright: reportPrivateUsage=false
"""Past the layers of httpx that have nothing to do for an exchange: half of its cost.

`AsyncClient.send` goes through auth, event hooks, redirects, cookies and mounts. A client that has
none of these, and that nobody has wrapped, may hand its request straight to its transport. This
reads private attributes of httpx; where they are not as it knows them, requests go the long way,
and a test fails.
"""

import inspect
import logging
import types
from dataclasses import dataclass
from typing import Any

import httpx

from .._logging import client_loggers
from .cookies import rejects_cookies
from .flavors import HTTPXModule, get_library, small_cache
from .requests import request_origin

# As these are before anybody wraps them. What somebody has wrapped is from another file.
_SEND_METHODS = frozenset(
    [
        "send",
        "_send_handling_auth",
        "_send_handling_redirects",
        "_send_single_request",
        "_transport_for_url",
    ]
)


@dataclass(frozen=True, slots=True)
class _OriginalMethods:
    """A library's client and its methods, as they are before anybody wraps them; or None."""

    client: type[Any]
    send: object
    auth: object
    redirects: object
    single: object
    for_url: object


@small_cache
def _original_methods(kind: type[Any]) -> _OriginalMethods | None:
    """What is known of a client's class; None where it is not a library's own."""
    if kind is not get_library(kind).AsyncClient:
        return None
    file = inspect.unwrap(kind.__init__).__code__.co_filename  # `no_leaks` may have wrapped it

    def own(name: str) -> object:
        method = getattr(kind, name, None)
        is_own = isinstance(method, types.FunctionType) and method.__code__.co_filename == file
        return method if is_own else None

    return _OriginalMethods(
        kind,
        own("send"),
        own("_send_handling_auth"),
        own("_send_handling_redirects"),
        own("_send_single_request"),
        own("_transport_for_url"),
    )


_original_methods(httpx.AsyncClient)  # httpx2's when one is first met


def direct_transport(client: Any, request: httpx.Request) -> httpx.AsyncBaseTransport | None:
    """The transport to hand a request to; None where that would not be the same."""
    stock = _original_methods(type(client))  # pyright: ignore
    if stock is None:
        return None
    client_class = stock.client
    attributes: dict[str, Any] = client.__dict__
    try:
        can_bypass = not (
            client_class.send is not stock.send
            or client_class._send_handling_auth is not stock.auth
            or client_class._send_handling_redirects is not stock.redirects
            or client_class._send_single_request is not stock.single
            or client_class._transport_for_url is not stock.for_url
            or not _SEND_METHODS.isdisjoint(attributes)
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
    """Log what the client logs of a request that it hands to its transport."""
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
