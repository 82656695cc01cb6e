"""Finds response bodies that are cut off under TLS, as in a truncation attack (RFC 9112 9.8)."""

import ssl
from collections.abc import AsyncIterator
from typing import Any, Self

import httpx

from .._httpx.interfaces import HTTPXModule
from .response_head import has_no_content

_DELIMITING_HEADERS = ("content-length", "transfer-encoding")


def check_end(
    upstream: httpx.Response, body: AsyncIterator[bytes], library: HTTPXModule
) -> AsyncIterator[bytes]:
    """Return the body, or one that fails if only the end of TLS delimits it and is not confirmed.

    httpcore 1.0.9 takes every end of a connection for the end of such a body. Delete this module
    when it raises for a missing close_notify, and does not use such a connection again.
    """
    ssl_object = find_delimiting_tls(upstream)
    return body if ssl_object is None else _UndelimitedBody(body, ssl_object, library)


def find_delimiting_tls(upstream: httpx.Response) -> ssl.SSLObject | None:
    """Return the TLS object of httpx's transport if only its end delimits the body."""
    stream: Any = upstream.extensions.get("network_stream")
    if (
        stream is None
        or upstream.request.url.scheme != "https"
        or "connection_reused" in upstream.extensions  # AsyncioTransport has checked it
        or any(name in upstream.headers for name in _DELIMITING_HEADERS)
        or upstream.http_version == "HTTP/2"
        or has_no_content(upstream.request.method, upstream.status_code)
    ):
        return None
    # The streams of other transports need not have all methods of httpcore's.
    get_extra_info = getattr(stream, "get_extra_info", None)
    ssl_object: ssl.SSLObject | None = get_extra_info and get_extra_info("ssl_object")
    return ssl_object


class _UndelimitedBody(AsyncIterator[bytes]):
    """A body that ends with its TLS connection.

    Raises:
        httpx.RemoteProtocolError: If TLS did not confirm the end, so that bytes may be missing.
    """

    def __init__(
        self, body: AsyncIterator[bytes], ssl_object: ssl.SSLObject, library: HTTPXModule
    ) -> None:
        self._source = body
        self._ssl_object = ssl_object
        self._library = library

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._source)
        except StopAsyncIteration:
            if not _ended_without_close_notify(self._ssl_object):
                raise
        raise self._library.RemoteProtocolError(
            "peer closed connection without sending complete message body"
        )


def _ended_without_close_notify(ssl_object: ssl.SSLObject) -> bool:
    """Return whether the connection under TLS has ended, and no close_notify came before."""
    try:
        return ssl_object.read(1) != b""
    except (ssl.SSLZeroReturnError, ssl.SSLWantReadError):  # closed properly, or still open
        return False
    except ssl.SSLError:
        return True
