"""What happened to each exchange: one immutable record, for whoever observes.

An observer is a plain function. It is called in the event loop, when the exchange is over and
nothing is open any more, so it should return at once.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ._clients import get_client_state


class Outcome(StrEnum):
    """How an exchange ended."""

    COMPLETED = "completed"
    """The server took the whole response."""
    REPLACED = "replaced"
    """`on_response` answered instead, or refused with an `HTTPException`."""
    CALLER_DISCONNECTED_BEFORE_HEADERS = "caller_disconnected_before_headers"
    CALLER_DISCONNECTED_MID_BODY = "caller_disconnected_mid_body"
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

    @property
    def is_failure(self) -> bool:
        """Whether the upstream or the app failed; callers may leave, and servers stop."""
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
        client: the name that `client_lifespan` gave the client; None for another's client.
        method: of the request to the upstream.
        host: of the upstream, with the port where it is not the scheme's own.
        route: the template of the route that answered, such as "/items/{id}", where known.
        status: the upstream's status; None where it sent none.
        outcome: how the exchange ended.
        exception: what made it fail: httpx's exception, where there is one.
        seconds: from the beginning of the exchange to its end.
        time_to_headers: until the upstream's headers were there; None where none came.
        time_to_first_byte: until the first byte of its body was there; None where none came.
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
    duration: float
    time_to_headers: float | None
    time_to_first_byte: float | None
    bytes_sent: int
    bytes_received: int
    connection_reused: bool | None


Observer = Callable[[ExchangeRecord], None]


_INSTRUMENTATION = f"{__package__}.instrumentation."


def check_observers(observers: Sequence[Observer]) -> None:
    """Refuse what would observe nothing.

    Raises:
        TypeError: it is no list of functions, or has one that is async, or one of this package's
            that makes an observer and was not called.
    """
    if callable(observers) or any(
        not callable(each) or inspect.iscoroutinefunction(each) for each in observers
    ):
        raise TypeError(f"observers={observers!r}: give a list of plain functions, not async ones")
    for each in observers:
        if (
            inspect.isfunction(each)
            and (each.__module__ or "").startswith(_INSTRUMENTATION)
            and (name := each.__qualname__).isidentifier()
        ):
            raise TypeError(f"observers=[{name}]: give what it returns, observers=[{name}()]")


def count_open_exchanges(client: object) -> int:
    """How many exchanges are under way on a client, from their beginning to their end."""
    return get_client_state(client).open_count
