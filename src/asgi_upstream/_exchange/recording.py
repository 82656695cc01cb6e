"""Records what happens in an exchange, for its observers."""

import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import httpx
from starlette.exceptions import HTTPException

from .. import errors
from .._httpx.flavors import HTTPXModule, is_httpx_error
from .._httpx.requests import request_origin
from .._logging import logger
from ..records import ExchangeRecord, Observer, Outcome


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
