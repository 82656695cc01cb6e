"""Reverse proxy building blocks for FastAPI and Starlette.

Share one httpx client, and return an upstream's response, streamed or buffered. docs/errors.md
explains the package's messages. `python -m asgi_upstream` prints the versions for a bug report.
"""

from typing import TYPE_CHECKING

from ._forwarding.proxy import ReverseProxy
from ._forwarding.request import forward_request
from .calls import cancel_on_disconnect, fetch
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
    "cancel_on_disconnect",
    "client_dependency",
    "client_lifespan",
    "combine_lifespans",
    "count_open_exchanges",
    "fetch",
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
