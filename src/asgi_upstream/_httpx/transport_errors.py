"""Recognises failures that httpx's transport raises without mapping them to httpx's exceptions.

httpcore maps the exceptions of its network backends that it knows. These pass through it (httpcore
1.0.9, anyio 4), and would look like faults of the app:

- `ssl.SSLError` on a read, if the upstream refuses the client certificate (TLS 1.3).
- `AttributeError` for `getpeername` on uvloop, if the upstream resets a connection at once.
- `OSError` and `ValueError`, if the process is out of file descriptors.
- `ValueError` and the exceptions of h2, if an HTTP/2 upstream sends an invalid head or frame.

Delete this module when httpcore maps them.
"""

import ssl
import sys
from collections.abc import Iterator
from traceback import walk_tb
from types import FrameType
from typing import TypeGuard

import anyio

_TRANSPORTS = frozenset(("httpcore", "httpcore2"))
_USED_BY_TRANSPORTS = sys.stdlib_module_names | {
    "anyio", "h11", "h2", "hpack", "hyperframe", "idna", "outcome", "sniffio", "socksio", "trio",
    "truststore", "uvloop",
}  # fmt: skip
_CONNECTING = frozenset(("_connect", "connect_tcp", "connect_unix_socket", "start_tls"))
_EXCEPTIONS = (
    OSError,  # ssl.SSLError is one
    ValueError,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
)
_HTTP2_PACKAGES = frozenset(("h2", "hpack", "hyperframe"))


def is_unmapped_transport_error(exc: BaseException | None) -> TypeGuard[Exception]:
    """Whether httpx's transport raised this itself, and not the app's code that it called."""
    return (
        isinstance(exc, _EXCEPTIONS)
        or (isinstance(exc, AttributeError) and exc.name == "getpeername")
        or (isinstance(exc, Exception) and _package(type(exc).__module__) in _HTTP2_PACKAGES)
    ) and _was_raised_by_transport(exc)


def is_connect_failure(exc: BaseException) -> bool:
    """Whether an exception of a transport means that there was no usable connection.

    In TLS 1.3 the upstream refuses a client certificate after the handshake. The refusal is then
    an alert that is read in place of the response.
    """
    return any(
        frame.f_code.co_name in _CONNECTING and _package_of(frame) in _TRANSPORTS
        for frame in _frames(exc)
    ) or any(
        isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or "")
        for cause in _causes(exc)
    )


def _was_raised_by_transport(exc: BaseException) -> bool:
    """Whether all frames from the transport's last one to the end are of libraries it uses.

    The transport calls the app's code as well, for example to read a streamed request body.
    """
    for frame in reversed(list(_frames(exc))):
        package = _package_of(frame)
        if package in _TRANSPORTS:
            return True
        if package not in _USED_BY_TRANSPORTS:
            return False
    return False


def _frames(exc: BaseException) -> Iterator[FrameType]:
    return (frame for frame, _ in walk_tb(exc.__traceback__))


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        yield exc
        seen.add(id(exc))
        exc = exc.__cause__ or exc.__context__


def _package_of(frame: FrameType) -> str:
    return _package(str(frame.f_globals.get("__name__", "")))


def _package(module: str) -> str:
    return module.partition(".")[0]
