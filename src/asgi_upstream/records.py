"""What happened to each exchange: one immutable record, for whoever observes.

An observer is a plain function. It is called in the event loop, when the exchange is over and
nothing is open any more, so it should return at once.
"""

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

logger = logging.getLogger("asgi_upstream")


class Outcome(StrEnum):
    """How an exchange ended."""

    COMPLETED = "completed"
    """The server took the whole response."""
    REPLACED = "replaced"
    """`on_response` answered instead, or refused with an `HTTPException`."""
    CALLER_LEFT_BEFORE_HEADERS = "caller_left_before_headers"
    CALLER_LEFT_MID_BODY = "caller_left_mid_body"
    CONNECT_FAILED = "connect_failed"
    """No connection to the upstream: refused, unresolvable, a TLS or proxy failure."""
    PROTOCOL_FAILED = "protocol_failed"
    """The upstream broke off before its headers, or what it sent is not HTTP."""
    BODY_FAILED = "body_failed"
    """The upstream's body broke off, or is not what its framing or coding says."""
    CONNECT_TIMEOUT = "connect_timeout"
    READ_TIMEOUT = "read_timeout"
    WRITE_TIMEOUT = "write_timeout"
    DEADLINE = "deadline"
    """The `deadline` of the response passed."""
    POOL_EXHAUSTED = "pool_exhausted"
    """No connection of the pool came free in time."""
    TOO_LARGE = "too_large"
    """The body is longer than the `max_bytes` of a `BufferedResponse`."""
    TRANSFORM_FAILED = "transform_failed"
    APP_FAILED = "app_failed"
    """`on_response`, or the request's own body, raised something else."""
    CANCELLED = "cancelled"
    """The server or a middleware cancelled the exchange, as at shutdown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What happened to one exchange.

    Attributes:
        client: the name that `client_lifespan` gave the client; None for another's client.
        method: of the request to the upstream.
        host: of the upstream, with the port where it is not the scheme's own.
        route: the template of the route that answered, such as "/items/{id}", where known.
        status: the upstream's status; None where it sent none.
        outcome: how the exchange ended.
        exception: what made it fail: httpx's exception, where there is one.
        seconds: from the beginning of the exchange to its end.
        seconds_to_headers: until the upstream's headers were there; None where none came.
        seconds_to_first_byte: until the first byte of its body was there; None where none came.
        bytes_sent: of the request's body, taken to be sent to the upstream.
        bytes_received: of the upstream's body, as it came: not decoded.
        reused: whether the connection had served another exchange before; None where not known.
    """

    client: str | None
    method: str
    host: str
    route: str | None
    status: int | None
    outcome: Outcome
    exception: BaseException | None
    seconds: float
    seconds_to_headers: float | None
    seconds_to_first_byte: float | None
    bytes_sent: int
    bytes_received: int
    reused: bool | None


Observer = Callable[[Record], None]
