"""Share one pooled HTTP client in an ASGI app, and answer with an upstream's response."""

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
from .forwarding import ForwardApp, forward_request
from .lifespan import client_lifespan, combine_lifespans
from .records import Outcome, Record, open_exchanges
from .responses import BufferedResponse, StreamedResponse

__all__ = [
    "BufferedResponse",
    "ExchangeCancelled",
    "ForwardApp",
    "Outcome",
    "PoolExhausted",
    "Record",
    "StreamedResponse",
    "UpstreamBodyTooLarge",
    "UpstreamConnectError",
    "UpstreamError",
    "UpstreamProtocolError",
    "UpstreamTimeout",
    "client_dependency",
    "client_lifespan",
    "combine_lifespans",
    "forward_request",
    "get_client",
    "open_exchanges",
    "upstream_errors",
]
