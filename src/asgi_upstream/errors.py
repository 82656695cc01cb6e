"""Upstream failures as HTTP errors, which an app answers without an exception handler of its own.

docs/errors.md has the cause and the fix of each message of the package.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import httpx
from starlette.exceptions import HTTPException

from ._httpx.flavors import is_httpx_error
from ._httpx.transport_errors import is_connect_failure, is_unmapped_transport_error
from ._logging import logger

_QUOTED_BYTES = re.compile(r" b['\"]")

P = ParamSpec("P")
T = TypeVar("T")


class UpstreamError(HTTPException):
    """The upstream failed. 502 Bad Gateway (RFC 9110 15.6.3). All other errors are subclasses.

    `status_code` and `detail` can be read from the class, for FastAPI's `responses=`. The detail
    is sent to callers, so it names no host, port or URL. httpx's exception is the `__cause__`.
    Cause and fix: [docs/errors.md][the-upstream-failed].
    """

    status_code: int = 502
    detail: str = "The upstream failed"
    headers: Mapping[str, str] | None = None

    def __init__(self, detail: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        headers = headers or self.headers
        super().__init__(
            self.status_code, detail or self.detail, dict(headers) if headers else None
        )


class UpstreamConnectError(UpstreamError):
    """There is no connection: refused, unresolvable, or a TLS or proxy failure. 502.

    Cause and fix: [docs/errors.md][the-upstream-cannot-be-reached].
    """

    detail = "The upstream cannot be reached"


class UpstreamProtocolError(UpstreamError):
    """The upstream closed the connection too early or sent invalid HTTP. 502.

    Cause and fix: [docs/errors.md][the-upstream-sent-an-invalid-response].
    """

    detail = "The upstream sent an invalid response"


class UpstreamBodyTooLarge(UpstreamError):
    """The response body is larger than the `max_bytes` of a `BufferedResponse`. 502.

    Cause and fix: [docs/errors.md][the-upstreams-response-is-too-large].
    """

    detail = "The upstream's response is too large"


class UpstreamTimeout(UpstreamError):
    """A connect, read or write timeout or the deadline passed. 504 (RFC 9110 15.6.5).

    Cause and fix: [docs/errors.md][the-upstream-did-not-answer-in-time].
    """

    status_code = 504
    detail = "The upstream did not answer in time"


class PoolExhausted(UpstreamError):
    """No connection of the pool became free in time. 503 with `retry-after` (RFC 9110 15.6.4).

    Cause and fix: [docs/errors.md][too-many-concurrent-requests-to-the-upstream].
    """

    status_code = 503
    detail = "Too many concurrent requests to the upstream"
    headers: Mapping[str, str] | None = {"retry-after": "1"}


class ExchangeCancelled(UpstreamError):
    """The server cancelled the exchange during its body because it stops, or a middleware did.

    It is passed to `on_stream_error`, which can ask the caller to come back. It is never raised:
    the cancellation continues instead. See [docs/errors.md][the-server-ended-the-response].
    """

    status_code = 503
    detail = "The server ended the response"


_ERROR_MAP: dict[type[Exception], type[UpstreamError]] = {  # the first match decides
    httpx.PoolTimeout: PoolExhausted,
    httpx.TimeoutException: UpstreamTimeout,
    httpx.ConnectError: UpstreamConnectError,
    httpx.ProxyError: UpstreamConnectError,
    httpx.RequestError: UpstreamProtocolError,
    httpx.HTTPStatusError: UpstreamError,
}


def map_exception(exc: Exception) -> UpstreamError | None:
    """Return the `UpstreamError` for an exception of httpx or its transport, or None for others.

    The exception becomes the `__cause__` of the error. An `UpstreamError` is returned as it is.
    """
    if isinstance(exc, UpstreamError):
        return exc
    error_class = _find_error_class(exc)
    if error_class is None:
        return None
    error = error_class()
    error.__cause__ = exc
    return error


def is_upstream_failure(exc: BaseException | None) -> bool:
    """Whether an exception is httpx's or its transport's, not the app's or this library's."""
    return isinstance(exc, Exception) and _find_error_class(exc) is not None


def _find_error_class(exc: Exception) -> type[UpstreamError] | None:
    for httpx_class, error_class in _ERROR_MAP.items():
        if is_httpx_error(exc, httpx_class):
            if error_class is UpstreamProtocolError and is_connect_failure(exc):
                return UpstreamConnectError
            return error_class
    if is_unmapped_transport_error(exc):
        return UpstreamConnectError if is_connect_failure(exc) else UpstreamProtocolError
    return None


def deadline_error(seconds: float | None) -> UpstreamTimeout:
    """Return the error for a deadline that passed. Only the log names the seconds."""
    error = UpstreamTimeout()
    error.add_note(f"the deadline of {seconds} s passed")
    return error


def protocol_error(reason: str) -> UpstreamProtocolError:
    """Return the error for an invalid response. Only the log contains the reason."""
    error = UpstreamProtocolError()
    error.add_note(reason)
    return error


def log_failure(
    error: UpstreamError, request: httpx.Request | None, route: str | None = None
) -> None:
    """Log an upstream failure in one WARNING line, with the app's route if it is known."""
    host, method = (request.url.netloc.decode(), request.method) if request else ("(unknown)", None)
    requested = " ".join(filter(None, (method, route)))
    reason = describe_exception(error.__cause__ or error)
    logger.warning(
        "upstream %s failed: %s", host, f"{reason} ({requested})" if requested else reason
    )


def describe_exception(exc: BaseException) -> str:
    """Return an exception's class and text on one line for a log, without URLs and secrets."""
    text = str(exc)
    if is_httpx_error(exc, httpx.HTTPStatusError):  # its text contains the whole URL
        text = f"status {exc.response.status_code}"
    elif is_httpx_error(exc, httpx.LocalProtocolError):
        text = _QUOTED_BYTES.split(text, 1)[0]  # it quotes a header value, which may be a secret
    elif isinstance(exc, UpstreamError):  # its text starts with the status
        text = "; ".join(getattr(exc, "__notes__", ())) or exc.detail
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


class upstream_errors:
    """Raises httpx's exceptions as `UpstreamError`s. A context manager and a decorator.

        with upstream_errors():
            answer = (await client.get("/item")).raise_for_status()

    Decorates `async def` and plain `def` functions. `httpx.HTTPStatusError`, which only
    `raise_for_status()` raises, becomes a plain `UpstreamError`. All other exceptions pass
    unchanged.

    Raises:
        UpstreamError: Or a subclass. Causes and fixes: [docs/errors.md][what-callers-get].
        TypeError: If it decorates a generator function.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        if not isinstance(exc, Exception) or isinstance(exc, UpstreamError):
            return
        error = map_exception(exc)
        if error is None:
            return
        try:
            log_failure(error, getattr(exc, "request", None))
        except RuntimeError:  # the code that raised it did not set its request
            log_failure(error, None)
        raise error from exc

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("upstream_errors() cannot decorate a generator; use `with` inside it")

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with upstream_errors():
                return function(*args, **kwargs)

        @wraps(function)
        async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            with upstream_errors():
                return await function(*args, **kwargs)  # type: ignore[misc]

        return call_async if inspect.iscoroutinefunction(function) else call  # type: ignore[return-value]
