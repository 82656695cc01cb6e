"""The immutable record of each exchange that observers are called with.

An observer is a plain function. It is called in the event loop after everything of the exchange
is closed. It must return at once, because it holds up all other requests.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ._clients import get_client_state


class Outcome(StrEnum):
    """How an exchange ended."""

    COMPLETED = "completed"
    """The server accepted the complete response."""
    REPLACED = "replaced"
    """`on_response` returned another response or raised an `HTTPException`."""
    CALLER_DISCONNECTED_BEFORE_HEADERS = "caller_disconnected_before_headers"
    CALLER_DISCONNECTED_MID_BODY = "caller_disconnected_mid_body"
    CONNECT_FAILED = "connect_failed"
    """There was no connection: refused, unresolvable, or a TLS or proxy failure."""
    PROTOCOL_FAILED = "protocol_failed"
    """The upstream closed the connection before its headers, or sent invalid HTTP."""
    BODY_FAILED = "body_failed"
    """The upstream's body was cut off, or does not match its framing or coding."""
    CONNECT_TIMEOUT = "connect_timeout"
    READ_TIMEOUT = "read_timeout"
    WRITE_TIMEOUT = "write_timeout"
    DEADLINE = "deadline"
    """The `deadline` of the response passed."""
    POOL_EXHAUSTED = "pool_exhausted"
    """No connection of the pool became free in time."""
    TOO_LARGE = "too_large"
    """The body is larger than `max_bytes`."""
    TRANSFORM_FAILED = "transform_failed"
    APP_FAILED = "app_failed"
    """`on_response` or the iterator of the request's body raised another exception."""
    CANCELLED = "cancelled"
    """The server or a middleware cancelled the exchange, for example at shutdown."""

    @property
    def is_failure(self) -> bool:
        """Whether the upstream or the app failed. A disconnect or cancellation does not count."""
        return self not in _NOT_FAILURES


_NOT_FAILURES = frozenset(
    (
        Outcome.COMPLETED,
        Outcome.REPLACED,
        Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS,
        Outcome.CALLER_DISCONNECTED_MID_BODY,
        Outcome.CANCELLED,
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeRecord:
    """What happened to one exchange.

    Attributes:
        client: The name that `client_lifespan` gave the client. None for other clients.
        method: The method of the request to the upstream.
        host: The upstream's host, with the port unless it is the scheme's default.
        route: The template of the app's route, such as "/items/{id}", if it is known.
        status: The upstream's status. None if it sent none.
        outcome: How the exchange ended.
        exception: The cause of a failure. httpx's exception if there is one.
        duration: Seconds from the beginning of the exchange to its end.
        time_to_headers: Seconds until the upstream's headers arrived. None if they did not.
        time_to_first_byte: Seconds until the first byte of the body arrived. None if none did.
        bytes_sent: Bytes of the request body that were handed to the client.
        bytes_received: Bytes of the response body as received, before decoding.
        connection_reused: Whether the connection had served an exchange before, if known.
    """

    client: str | None
    method: str
    host: str
    route: str | None
    status: int | None
    outcome: Outcome
    exception: BaseException | None
    duration: float
    time_to_headers: float | None
    time_to_first_byte: float | None
    bytes_sent: int
    bytes_received: int
    connection_reused: bool | None


Observer = Callable[[ExchangeRecord], None]
"""A function that is called with each record. Its exceptions are logged."""

_INSTRUMENTATION = f"{__package__}.instrumentation."


def check_observers(observers: Sequence[Observer]) -> None:
    """Reject observers that would never be called.

    Raises:
        TypeError: If `observers` is not a list of plain functions, or contains a function of
            `instrumentation` that returns an observer and was not called.
    """
    if callable(observers) or any(
        not callable(observer) or inspect.iscoroutinefunction(observer) for observer in observers
    ):
        raise TypeError(f"observers={observers!r}: pass a list of plain functions, not async ones")
    for observer in observers:
        if (
            inspect.isfunction(observer)
            and (observer.__module__ or "").startswith(_INSTRUMENTATION)
            and (name := observer.__qualname__).isidentifier()
        ):
            raise TypeError(f"observers=[{name}]: call it, observers=[{name}()]")


def count_open_exchanges(client: object) -> int:
    """Return the number of exchanges in progress on a client, including those that wait.

    Arguments:
        client: A client of a lifespan, or any other client that is used with this package.
    """
    return get_client_state(client).open_count
