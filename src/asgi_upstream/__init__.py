"""Share one pooled HTTP client in an ASGI app, and answer with an upstream's response.

docs/errors.md has the cause and the fix of each message of the package, and `python -m
asgi_upstream` prints what a report of a bug needs.
"""

from typing import TYPE_CHECKING

from ._forwarding.proxy import ReverseProxy
from ._forwarding.request import forward_request
from .dependencies import client_dependency, get_client
from .errors import (
    ExchangeCancelled,
    PoolExhausted,
    UpstreamBodyTooLarge,
    UpstreamConnectError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    upstream_errors,
)
from .lifespan import client_lifespan, combine_lifespans
from .records import ExchangeRecord, Outcome, count_open_exchanges
from .responses import BufferedResponse, StreamedResponse

if TYPE_CHECKING:
    from ._websockets.relay import relay_websocket as relay_websocket

__all__ = [
    "BufferedResponse",
    "ExchangeCancelled",
    "ExchangeRecord",
    "Outcome",
    "PoolExhausted",
    "ReverseProxy",
    "StreamedResponse",
    "UpstreamBodyTooLarge",
    "UpstreamConnectError",
    "UpstreamError",
    "UpstreamProtocolError",
    "UpstreamTimeout",
    "client_dependency",
    "client_lifespan",
    "combine_lifespans",
    "count_open_exchanges",
    "forward_request",
    "get_client",
    "upstream_errors",
]


def __getattr__(name: str) -> object:
    """Import `relay_websocket` on first use, because it needs the `ws` extra."""
    if name == "relay_websocket":
        from ._websockets.relay import relay_websocket

        return relay_websocket
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
