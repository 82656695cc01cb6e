"""Collects the data of an exchange and calls its observers with the record."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import httpx
from starlette.exceptions import HTTPException

from .. import errors
from .._clients import OpenExchange, get_client_state
from .._httpx.exceptions import is_httpx_error
from .._httpx.interfaces import HTTPXModule
from .._httpx.requests import request_origin
from .._logging import logger
from ..records import ExchangeRecord, Observer, Outcome
from .ending import CANCELLED, Ending


class RecordedExchange:
    """Keeps an exchange registered as open while its block runs, and emits its record at the end.

    Arguments:
        observers: Observers in addition to the client's.

    Attributes:
        recorder: Collects the data, or None if there are no observers.
        ending: How the exchange ended. The block sets it. Until then it is a cancellation.
    """

    __slots__ = ("_exchange", "_state", "ending", "recorder")

    def __init__(
        self,
        exchange: OpenExchange,
        client: object,
        observers: Sequence[Observer],
        library: HTTPXModule,
        scope: Mapping[str, Any],
    ) -> None:
        self._exchange = exchange
        self._state = state = get_client_state(client)
        self.ending: Ending = CANCELLED
        self.recorder: ExchangeRecorder | None = None
        if state.observers or observers:
            self.recorder = ExchangeRecorder(
                (*state.observers, *observers), state.name, exchange.request, library, scope
            )

    def __enter__(self) -> Self:
        self._state.open_exchanges.add(self._exchange)
        return self

    def __exit__(self, *exc: object) -> None:
        self._state.open_exchanges.discard(self._exchange)
        if self.recorder is not None:
            self.recorder.emit(self.ending.outcome, self.ending.error)


class ExchangeRecorder:
    """Collects the data of an exchange's record while the exchange runs."""

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
        """Record that the upstream's headers have arrived."""
        self._headers_at = time.perf_counter() - self._start
        self._status = status
        self._reused = reused

    def response_received(self, upstream: httpx.Response) -> None:
        """Record that the headers of a response of httpx have arrived."""
        reused = upstream.extensions.get("connection_reused")
        self.headers_received(upstream.status_code, reused=reused)

    def bytes_received(self, count: int) -> None:
        """Record that `count` bytes of the upstream's body have arrived."""
        if self._first_byte is None:
            self._first_byte = time.perf_counter() - self._start
        self._received += count

    def count_hook_read(self, upstream: httpx.Response) -> None:
        """Record the bytes that an event hook or `on_response` has read, if any."""
        if self._first_byte is None and upstream.num_bytes_downloaded:
            self.bytes_received(upstream.num_bytes_downloaded)

    def classify_failure(self, error: Exception, app_outcome: Outcome) -> Outcome:
        """Return the outcome of a failed exchange: `app_outcome` if the upstream did not fail."""
        if isinstance(error, errors.UpstreamTimeout):
            for timeout_class, outcome in _OUTCOME_BY_TIMEOUT.items():
                if is_httpx_error(error.__cause__, timeout_class):
                    return outcome
            return Outcome.READ_TIMEOUT
        if (
            isinstance(error, errors.UpstreamProtocolError | errors.UpstreamConnectError)
            and self._headers_at is not None
            and errors.is_upstream_failure(error.__cause__)
        ):  # without such a cause, this library or the app has rejected the response as a whole
            return Outcome.BODY_FAILED
        for error_class, outcome in _OUTCOME_BY_ERROR.items():
            if isinstance(error, error_class):
                return outcome
        if app_outcome is Outcome.REPLACED and not isinstance(error, HTTPException):
            return Outcome.APP_FAILED
        return app_outcome

    def emit(self, outcome: Outcome, failure: Exception | None) -> None:
        """Call the observers with the record of the exchange."""
        duration = time.perf_counter() - self._start
        request = self._request
        # A bytes body is written at once, so it was sent if a response was received or awaited.
        waited = self._headers_at is not None or outcome is Outcome.READ_TIMEOUT
        if waited and isinstance(request.stream, self._library.ByteStream):
            self.sent = sum(map(len, request.stream))
        exception: BaseException | None = failure
        if outcome is Outcome.CANCELLED:
            exception = None
        elif isinstance(failure, errors.UpstreamError):
            exception = failure.__cause__ or failure
        record = ExchangeRecord(
            client=self._client,
            method=request.method,
            host=request_origin(request).netloc.decode("ascii", "replace"),
            route=route_template(self._scope),
            status=self._status,
            outcome=outcome,
            exception=exception,
            duration=duration,
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
    """Return the template of the app's route for this request, if it is known."""
    route = scope.get("route")
    if route is None:  # neither Starlette nor FastAPI puts the matched mount into the scope
        mounts = getattr(scope.get("app"), "routes", ())
        route = next((m for m in mounts if getattr(m, "app", scope) is scope.get("endpoint")), None)
    # FastAPI 0.165: the route of a router that was included with a prefix.
    included = scope.get("fastapi", {}).get("effective_route_context")
    if getattr(included, "original_route", scope) is route:
        route = included
    return getattr(route, "path", None)


_OUTCOME_BY_ERROR = {
    errors.PoolExhausted: Outcome.POOL_EXHAUSTED,
    errors.UpstreamBodyTooLarge: Outcome.TOO_LARGE,
    errors.UpstreamConnectError: Outcome.CONNECT_FAILED,
    errors.UpstreamProtocolError: Outcome.PROTOCOL_FAILED,
}
_OUTCOME_BY_TIMEOUT: dict[type[Exception], Outcome] = {
    httpx.ConnectTimeout: Outcome.CONNECT_TIMEOUT,
    httpx.WriteTimeout: Outcome.WRITE_TIMEOUT,
}
