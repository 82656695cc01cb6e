"""Upstream failures as HTTP errors, which an app answers without an exception handler of its own.

docs/errors.md has the cause and the fix of each message of the package.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from functools import wraps
from typing import Any, ClassVar, ParamSpec, TypeGuard, TypeVar

import httpx
from starlette.exceptions import HTTPException

from ._httpx.exceptions import is_httpx_error
from ._httpx.transport_errors import is_connect_failure, is_unmapped_transport_error
from ._logging import logger

_QUOTED_BYTES = re.compile(r" b['\"]")

P = ParamSpec("P")
T = TypeVar("T")


class UpstreamError(HTTPException):
    """The upstream failed. 502 Bad Gateway (RFC 9110 15.6.3). All other errors are subclasses.

    The detail is sent to callers, so it names no host, port or URL. httpx's exception is the
    `__cause__`. Cause and fix: [docs/errors.md][the-upstream-failed].

    Attributes:
        responses: The answers 502, 503 and 504 for OpenAPI:
            `FastAPI(responses=UpstreamError.responses)`, or the same on a router or a route.
    """

    status_code: int = 502
    detail: str = "The upstream failed"
    headers: Mapping[str, str] | None = None
    responses: ClassVar[dict[int | str, dict[str, object]]]

    def __init__(self, detail: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        headers = headers or self.headers
        super().__init__(
            self.status_code, detail or self.detail, dict(headers) if headers else None
        )


class UpstreamConnectError(UpstreamError):
    """The connection failed: refused, unresolvable, or a TLS or proxy failure. 502.

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
    """A server that stops, or a middleware, cancelled the exchange during its body.

    It is passed to `on_stream_error`, which can ask the caller to come back. It is never raised:
    the cancellation continues instead. See [docs/errors.md][the-server-ended-the-response].
    """

    status_code = 503
    detail = "The server ended the response"


_CONTENT = {
    "application/json": {
        "schema": {
            "title": "UpstreamError",
            "type": "object",
            "properties": {"detail": {"title": "Detail", "type": "string"}},
            "required": ["detail"],
        }
    }
}
UpstreamError.responses = {
    502: {
        "description": "The upstream failed, cannot be reached, or sent an invalid response",
        "content": _CONTENT,
    },
    503: {
        "description": PoolExhausted.detail,
        "headers": {
            "Retry-After": {
                "description": "Seconds until the caller may try again",
                "schema": {"type": "integer"},
            }
        },
        "content": _CONTENT,
    },
    504: {"description": UpstreamTimeout.detail, "content": _CONTENT},
}

_MOST_SEVERE_FIRST: tuple[type[UpstreamError], ...] = (
    UpstreamConnectError,
    UpstreamProtocolError,
    UpstreamBodyTooLarge,
    UpstreamTimeout,
    PoolExhausted,
    ExchangeCancelled,
    UpstreamError,
)
"""The order in a group of failures. Those that a retry helps least come first."""

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
    A group becomes the most severe error of its members.
    """
    if isinstance(exc, UpstreamError):
        return exc
    if _is_group(exc):
        return _map_group(exc)
    error_class = _find_error_class(exc)
    if error_class is None:
        return None
    error = error_class()
    error.__cause__ = exc
    return error


def _map_group(group: ExceptionGroup[Exception]) -> UpstreamError | None:
    failures = [error for member in _members(group) if (error := map_exception(member))]
    if not failures:
        return None
    error = copy(min(failures, key=_severity))  # a copy, because the group contains the original
    error.__cause__ = group
    return error


def _members(exc: Exception) -> Iterator[Exception]:
    """Yield the exceptions in a group and in its nested groups, or an exception itself."""
    if _is_group(exc):
        for member in exc.exceptions:
            yield from _members(member)
    else:
        yield exc


def _is_group(exc: BaseException) -> TypeGuard[ExceptionGroup[Exception]]:
    return isinstance(exc, ExceptionGroup)


def _severity(error: UpstreamError) -> int:
    return next(i for i, cls in enumerate(_MOST_SEVERE_FIRST) if isinstance(error, cls))


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


def _log_member(exc: Exception) -> None:
    """Log an exception that `upstream_errors` replaces, unless it was logged as it was mapped."""
    if isinstance(exc, HTTPException):
        return
    error = map_exception(exc)
    if error is None:
        logger.error("an exception besides an upstream failure in a group", exc_info=exc)
        return
    try:
        log_failure(error, getattr(exc, "request", None))
    except RuntimeError:  # the code that raised it did not set its request
        log_failure(error, None)


def describe_exception(exc: BaseException) -> str:
    """Return an exception's class and text on one line for a log, without URLs and secrets."""
    text = str(exc)
    if is_httpx_error(exc, httpx.HTTPStatusError):  # its text contains the whole URL
        text = f"status {exc.response.status_code}"
    elif is_httpx_error(exc, httpx.LocalProtocolError):
        text = _QUOTED_BYTES.split(text, 1)[0]  # it quotes a header value, which may be a secret
    elif _is_group(exc):
        text = ", ".join(map(describe_exception, _members(exc)))
    elif isinstance(exc, UpstreamError):  # its text starts with the status
        text = "; ".join(getattr(exc, "__notes__", ())) or exc.detail
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


class upstream_errors:
    """Context manager and decorator that raises httpx's exceptions as `UpstreamError`s.

        with upstream_errors():
            answer = (await client.get("/item")).raise_for_status()

    Decorates `async def` and plain `def` functions. `httpx.HTTPStatusError`, which only
    `raise_for_status()` raises, becomes a plain `UpstreamError`.

    If an exception group, for example from `asyncio.TaskGroup`, contains an upstream failure, it
    becomes the most severe `UpstreamError` of its members. The group is the `__cause__`. Put the
    block around the task group. All other exceptions and groups pass unchanged.

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
        for member in _members(exc):
            _log_member(member)
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
