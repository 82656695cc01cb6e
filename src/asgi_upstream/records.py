"""What happened to each exchange: one immutable record, for whoever observes.

An observer is a plain function. It is called in the event loop, when the exchange is over and
nothing is open any more, so it should return at once.
"""

import inspect
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import httpx
from starlette.exceptions import HTTPException

from . import errors
from ._httpx.flavors import HTTPXModule, is_httpx_error
from ._httpx.requests import request_origin
from ._logging import logger


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


class OpenExchange(Protocol):
    """An exchange that is open."""

    request: httpx.Request


class ClientState:
    """What is kept of a client: its name, who observes it, and which exchanges are open."""

    __slots__ = ("name", "observers", "open_exchanges", "transport")

    def __init__(self) -> None:
        self.name: str | None = None  # where a lifespan has it open
        self.observers: Sequence[Observer] = ()
        self.open_exchanges: set[OpenExchange] = set()
        self.transport: object = None  # where a lifespan was given one

    @property
    def open_count(self) -> int:
        """How many exchanges are under way."""
        return len(self.open_exchanges)


_client_states: weakref.WeakKeyDictionary[object, ClientState] = weakref.WeakKeyDictionary()


def get_client_state(client: object) -> ClientState:
    """The client's ledger, opened where it has none."""
    try:
        ledger = _client_states.get(client)
        if ledger is None:
            ledger = _client_states[client] = ClientState()
    except TypeError:  # no key of a dict, or not to be referred to weakly: nothing is kept of it
        ledger = ClientState()
    return ledger


def register_client(
    client: object, name: str, observers: Sequence[Observer], transport: object = None
) -> None:
    """Open the ledger of a client that has a name.

    Raises:
        TypeError: this client cannot be observed.
    """
    ledger = get_client_state(client)
    ledger.name, ledger.observers, ledger.transport = name, observers, transport
    if observers and get_client_state(client) is not ledger:
        raise TypeError(
            f"client_lifespan(observers=...): exchanges on {type(client).__name__} cannot be told "
            f"apart, for it is not hashable or cannot be referred to weakly"
        )


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


def unregister_client(client: object) -> None:
    """The client is closed: it has no name any more."""
    get_client_state(client).name = None


def count_open_exchanges(client: object) -> int:
    """How many exchanges are under way on a client, from their beginning to their end."""
    return get_client_state(client).open_count


def iter_client_states() -> Iterator[tuple[Any, ClientState]]:
    """Those of all clients that are there, with the clients; from any thread."""
    for reference in _client_states.keyrefs():
        client = reference()
        if client is not None and (ledger := _client_states.get(client)) is not None:
            yield client, ledger


def iter_registered() -> Iterator[tuple[str, ClientState]]:
    """Those of the clients that a lifespan has opened and not closed yet, with their names."""
    for ledger in list(_client_states.values()):
        if ledger.name is not None:
            yield ledger.name, ledger


class ExchangeRecorder:
    """What becomes a record: kept while an exchange goes on, for its observers."""

    __slots__ = (
        "_client",
        "_first_byte",
        "_headers_at",
        "_library",
        "_observers",
        "_received",
        "_request",
        "_reused",
        "_scope",
        "_start",
        "_status",
        "sent",
    )  # fmt: skip

    def __init__(
        self,
        observers: Iterable[Observer],
        client: str | None,
        request: Any,
        library: HTTPXModule,
        scope: Mapping[str, Any],
    ) -> None:
        self._observers = observers
        self._client = client
        self._request = request
        self._library = library
        self._scope = scope
        self._status: int | None = None
        self._reused: bool | None = None
        self._headers_at: float | None = None
        self._first_byte: float | None = None
        self._received = 0
        self.sent: int = 0
        self._start = time.perf_counter()

    def headers_received(self, status: int, *, reused: bool | None) -> None:
        """The upstream's headers are there."""
        self._headers_at = time.perf_counter() - self._start
        self._status = status
        self._reused = reused

    def bytes_received(self, count: int) -> None:
        """So many bytes of the upstream's body are there."""
        if self._first_byte is None:
            self._first_byte = time.perf_counter() - self._start
        self._received += count

    def count_hook_read(self, upstream: httpx.Response) -> None:
        """An event hook or `on_response` may have read the body, or a part of it."""
        if self._first_byte is None and upstream.num_bytes_downloaded:
            self.bytes_received(upstream.num_bytes_downloaded)

    async def count_bytes(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """`body`, with its bytes counted."""
        async for chunk in body:
            self.bytes_received(len(chunk))
            yield chunk

    def classify_failure(self, error: Exception, own: Outcome) -> Outcome:
        """How an exchange ended that failed so; `own` where that is the app's own failure."""
        if isinstance(error, errors.UpstreamTimeout):
            cause, read = error.__cause__, Outcome.READ_TIMEOUT
            return next(
                (
                    outcome
                    for kind, outcome in _OUTCOME_BY_TIMEOUT.items()
                    if is_httpx_error(cause, kind)
                ),
                read,
            )
        for kind, outcome in _OUTCOME_BY_ERROR.items():
            if isinstance(error, kind):
                # What is not httpx's is this library's verdict, or the app's, on the whole answer.
                theirs = is_httpx_error(error.__cause__, httpx.RequestError)
                in_body = theirs and self._headers_at is not None
                return Outcome.BODY_FAILED if in_body and kind is _PROTOCOL else outcome
        if own is Outcome.REPLACED and not isinstance(error, HTTPException):
            return Outcome.APP_FAILED
        return own

    def emit(self, outcome: Outcome, failure: Exception | None) -> None:
        """Tell the observers."""
        now, request = time.perf_counter(), self._request
        url = request_origin(request)
        # Bytes go in one piece: whoever waited for an answer, or got one, had sent them.
        waited = self._headers_at is not None or outcome is Outcome.READ_TIMEOUT
        if waited and isinstance(request.stream, self._library.ByteStream):
            self.sent = sum(map(len, request.stream))
        record = ExchangeRecord(
            client=self._client,
            method=request.method,
            host=url.netloc.decode("ascii", "replace"),
            route=route_template(self._scope),
            status=self._status,
            outcome=outcome,
            exception=failure.__cause__ or failure
            if isinstance(failure, errors.UpstreamError)
            else failure,
            duration=now - self._start,
            time_to_headers=self._headers_at,
            time_to_first_byte=self._first_byte,
            bytes_sent=self.sent,
            bytes_received=self._received,
            connection_reused=self._reused,
        )
        for observer in self._observers:
            try:
                observer(record)
            except Exception:
                logger.exception("the observer %r failed", observer)


def route_template(scope: Mapping[str, Any]) -> str | None:
    """The template of the app's route that answers, where it is known."""
    route = scope.get("route")
    if route is None:  # FastAPI's router does not say which mount it took
        mounts = getattr(scope.get("app"), "routes", ())
        route = next((m for m in mounts if getattr(m, "app", scope) is scope.get("endpoint")), None)
    # Where FastAPI's router was included under a prefix, the path with it is in here.
    included = scope.get("fastapi", {}).get("effective_route_context")
    if getattr(included, "original_route", scope) is route:
        route = included
    return getattr(route, "path", None)


_PROTOCOL = errors.UpstreamProtocolError
_OUTCOME_BY_ERROR = {
    errors.PoolExhausted: Outcome.POOL_EXHAUSTED,
    errors.UpstreamBodyTooLarge: Outcome.TOO_LARGE,
    errors.UpstreamConnectError: Outcome.CONNECT_FAILED,
    _PROTOCOL: Outcome.PROTOCOL_FAILED,
}
_OUTCOME_BY_TIMEOUT: dict[type[Exception], Outcome] = {
    httpx.ConnectTimeout: Outcome.CONNECT_TIMEOUT,
    httpx.WriteTimeout: Outcome.WRITE_TIMEOUT,
}
