"""Failures of an upstream, as HTTP errors that an app answers without a handler of its own.

docs/errors.md has the cause and the fix of each message of the package.
"""

import errno
import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeGuard, TypeVar

import httpx
from starlette.exceptions import HTTPException

from ._httpx.flavors import is_httpx_error
from ._logging import logger

_QUOTED = re.compile(r" b['\"]")

P = ParamSpec("P")
T = TypeVar("T")


class UpstreamError(HTTPException):
    """The upstream failed: 502 Bad Gateway (RFC 9110 15.6.3). The base of all the others.

    `status_code` and `detail` can be read from the class, for FastAPI's `responses=`. The detail
    is for callers, and names no host, port or URL; httpx's exception is the `__cause__`.
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
    """No connection to the upstream: refused, unresolvable, a TLS or proxy failure. 502.

    Cause and fix: [docs/errors.md][the-upstream-cannot-be-reached].
    """

    detail = "The upstream cannot be reached"


class UpstreamProtocolError(UpstreamError):
    """The upstream broke off, or what it sent is not the HTTP it should be. 502.

    Cause and fix: [docs/errors.md][the-upstream-sent-an-invalid-response].
    """

    detail = "The upstream sent an invalid response"


class UpstreamBodyTooLarge(UpstreamError):
    """The body is longer than the `max_bytes` of a `BufferedResponse`. 502.

    Cause and fix: [docs/errors.md][the-upstreams-response-is-too-large].
    """

    detail = "The upstream's response is too large"


class UpstreamTimeout(UpstreamError):
    """A connect, read or write timeout, or the deadline, passed. 504 (RFC 9110 15.6.5).

    Cause and fix: [docs/errors.md][the-upstream-did-not-answer-in-time].
    """

    status_code = 504
    detail = "The upstream did not answer in time"


class PoolExhausted(UpstreamError):
    """No connection of the pool came free in time. 503 with `retry-after` (RFC 9110 15.6.4).

    Cause and fix: [docs/errors.md][too-many-concurrent-requests-to-the-upstream].
    """

    status_code = 503
    detail = "Too many concurrent requests to the upstream"
    headers: Mapping[str, str] | None = {"retry-after": "1"}


class ExchangeCancelled(UpstreamError):
    """The server, as it stops, or a middleware cancelled the exchange in the middle of its body.

    It is not raised: the cancellation is. `on_stream_error` gets it, to tell the caller to come
    again. See [docs/errors.md][the-server-ended-the-response].
    """

    status_code = 503
    detail = "The server ended the response"


_ERROR_MAP: dict[type[Exception], type[UpstreamError]] = {  # the first that fits decides
    httpx.PoolTimeout: PoolExhausted,
    httpx.TimeoutException: UpstreamTimeout,
    httpx.ConnectError: UpstreamConnectError,
    httpx.ProxyError: UpstreamConnectError,
    httpx.RequestError: UpstreamProtocolError,
    httpx.HTTPStatusError: UpstreamError,
}


def map_exception(exc: Exception) -> UpstreamError | None:
    """One of the errors above for one of httpx's, its `__cause__`; None for any other."""
    if _is_unmapped_connect_error(exc):
        error: UpstreamError = UpstreamConnectError()
        error.__cause__ = exc
        return error
    for httpx_type, upstream_type in _ERROR_MAP.items():
        if is_httpx_error(exc, httpx_type):
            error = upstream_type()
            error.__cause__ = exc
            return error
    return exc if isinstance(exc, UpstreamError) else None


def _is_unmapped_connect_error(exc: BaseException | None) -> TypeGuard[Exception]:
    """What httpx's own transport lets pass of a failure to connect.

    On uvloop, anyio 4 asks a socket for its peer that is closed already, where the upstream resets
    as soon as it accepts. And where no descriptor is left, it may fail to import what it needs.
    """
    if isinstance(exc, AttributeError):
        return exc.obj is None and exc.name == "getpeername"
    if isinstance(exc, ValueError):
        return exc.args == ("negative file descriptor",)
    return isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE)


def deadline_error(seconds: float | None) -> UpstreamTimeout:
    """The failure of an exchange that took so many seconds; the caller is not told how many."""
    error = UpstreamTimeout()
    error.add_note(f"the deadline of {seconds} s passed")
    return error


def protocol_error(what: str) -> UpstreamProtocolError:
    """The failure of an upstream that sent this; the log is told what, and the caller is not."""
    error = UpstreamProtocolError()
    error.add_note(what)
    return error


def log_failure(
    error: UpstreamError, request: httpx.Request | None, route: str | None = None
) -> None:
    """Write the one WARNING line of an upstream failure, with the app's route where it is known."""
    host, method = (request.url.netloc.decode(), request.method) if request else ("(unknown)", None)
    asked = " ".join(filter(None, (method, route)))
    what = describe_exception(error.__cause__ or error)
    logger.warning("upstream %s failed: %s", host, f"{what} ({asked})" if asked else what)


def describe_exception(exc: BaseException) -> str:
    """Its type, and its text if it has one, on one line, for a log."""
    text = str(exc)
    if is_httpx_error(exc, httpx.HTTPStatusError):  # its text has the whole URL, and two lines
        text = f"status {exc.response.status_code}"
    elif is_httpx_error(
        exc, httpx.LocalProtocolError
    ):  # it quotes a field's value, which may be a secret
        text = _QUOTED.split(text, 1)[0]
    elif isinstance(exc, UpstreamError):  # its text begins with the status
        text = "; ".join(getattr(exc, "__notes__", ())) or exc.detail
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


class upstream_errors:
    """Raise httpx's exceptions as `UpstreamError`s: a context manager, and a decorator.

        with upstream_errors():
            answer = (await client.get("/item")).raise_for_status()

    Decorates `async def` and plain `def` functions. `httpx.HTTPStatusError`, which comes only of
    `raise_for_status()`, becomes a plain `UpstreamError`. What is not httpx's passes unchanged.

    Raises:
        UpstreamError: one of its kinds. Causes and fixes: [docs/errors.md][what-callers-get].
        TypeError: where it decorates a generator.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        if (
            is_httpx_error(exc, httpx.RequestError)
            or is_httpx_error(exc, httpx.HTTPStatusError)
            or _is_unmapped_connect_error(exc)
        ):
            error = map_exception(exc) or UpstreamError()
            try:
                log_failure(error, getattr(exc, "request", None))
            except RuntimeError:  # it was raised by code that set no request on it
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
