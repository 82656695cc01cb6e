"""The caller's request body as a stream for httpx, and its framing."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.types import Scope

from .._headers import RawHeaders, parse_content_length, remove
from .._httpx.flavors import ByteStreamBase, describe_type, small_cache, subclass_for
from .._httpx.interfaces import HTTPXModule
from .._methods import WITH_BODY, WITHOUT_BODY
from .read_timeout import ReadTimeout

MAX_FIRST_CHUNK_WAIT = 1.0
"""Seconds to wait for the first chunk of a request that probably has no body."""


class CallerBody(ByteStreamBase):
    """Yields the caller's body chunk by chunk as it arrives.

    Arguments:
        length: Content-Length in bytes, or None if it is unknown.
        timeout: Longest wait for a chunk in seconds, or None for no limit.
        expected: Whether there is a body. If not, a caller that sends nothing for
            `MAX_FIRST_CHUNK_WAIT` seconds has sent an empty one.
    """

    def __init__(
        self,
        library: HTTPXModule,
        request: Request,
        length: int | None,
        timeout: float | None,
        *,
        expected: bool = True,
    ) -> None:
        self._library = library
        self._request = request
        self._length = length
        self._timeout = timeout
        self._expected = expected
        self._first_chunk = b""

    async def read_first_chunk(self) -> tuple[bytes, bool]:
        """Read the first chunk. An iteration yields it again.

        Returns:
            The chunk, and whether more may follow.

        Raises:
            HTTPException: 408 if the chunk does not arrive in time.
        """
        seconds = self._timeout
        if not self._expected:
            seconds = min(MAX_FIRST_CHUNK_WAIT, seconds or MAX_FIRST_CHUNK_WAIT)
        timeout = ReadTimeout(seconds)
        async with aclosing(self._request.stream()) as stream:
            try:
                self._first_chunk = await self._read(stream, timeout)
            except HTTPException:
                if self._expected:
                    raise
                return b"", False
            finally:
                timeout.close()
        return self._first_chunk, not _is_consumed(self._request)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        remaining = self._length
        if chunk := self._first_chunk:
            self._first_chunk = b""
            yield chunk
        timeout = ReadTimeout(self._timeout)
        async with aclosing(self._request.stream()) as stream:
            try:
                while chunk := await self._read(stream, timeout):
                    if remaining is not None:
                        remaining -= len(chunk)
                        if remaining < 0:
                            break
                    yield chunk
            finally:
                timeout.close()
        if remaining:  # like an upgrade with a body, which uvicorn drops
            raise _short_body_error()

    async def _read(self, stream: AsyncGenerator[bytes], timeout: ReadTimeout) -> bytes:
        """Return the next chunk that is not empty, or b"" at the end."""
        try:
            return await timeout.limit(self._next_chunk(stream))
        except TimeoutError:
            raise HTTPException(408, "The request body did not arrive in time") from None

    async def _next_chunk(self, stream: AsyncGenerator[bytes]) -> bytes:
        try:
            async for chunk in stream:
                if chunk:
                    return chunk
        except RuntimeError as exc:  # Starlette raises it if the body was read before.
            raise self._library.StreamConsumed from exc
        except OSError as exc:  # The server's `receive` raises it if the connection is gone.
            raise ClientDisconnect from exc
        return b""


def _is_serverless(scope: Scope) -> bool:
    """Whether a serverless adapter made the scope. It names HTTP/1.1, but drops the framing."""
    return "aws.event" in scope or "azure_functions.invocation_id" in scope  # Mangum, Azure


def choose_body(
    library: HTTPXModule, request: HTTPConnection, raw: RawHeaders, timeout: float | None
) -> tuple[RawHeaders, httpx.AsyncByteStream, CallerBody | None]:
    """Return the headers, the body, and the body again if its first chunk decides the framing.

    An HTTP/1.1 request without framing headers has no body (RFC 9112 6.3). But serverless adapters
    such as Mangum drop these headers, and HTTP/2 does not need them.
    """
    scope, names = request.scope, dict(raw)
    is_framed = b"content-length" in names or b"transfer-encoding" in names
    is_http1 = scope.get("http_version", "1.1").startswith("1") and not _is_serverless(scope)
    rarely_has_body = scope["method"] in WITHOUT_BODY
    if not isinstance(request, Request):
        if is_framed:
            raise TypeError(
                f"forward_request needs the Request to forward its body, not "
                f"{describe_type(request)}: take `request: Request` in the endpoint"
            )
        return raw, _empty_body(library), None
    if (body := _get_read_body(request)) is not None:
        if is_framed or body or scope["method"] in WITH_BODY:
            return _frame_read_body(library, raw, body)
        return raw, _empty_body(library), None
    if not is_framed and is_http1 and rarely_has_body:
        return raw, _empty_body(library), None
    if _is_consumed(request):
        if names.get(b"content-length") == b"0" or (not is_framed and rarely_has_body):
            return raw, _empty_body(library), None
        raise RuntimeError(
            "the caller's body was consumed before forward_request(), by Form, File, UploadFile, "
            "request.form() or request.stream(); forward the request without them, or read the "
            "body with `await request.body()`, which keeps it"
        )
    body_class = subclass_for(CallerBody, library.AsyncByteStream)
    if is_framed:
        return raw, body_class(library, request, parse_content_length(raw), timeout), None
    expected = not (is_http1 or rarely_has_body)
    pending = body_class(library, request, None, timeout, expected=expected)
    if rarely_has_body:
        return raw, _empty_body(library), pending
    return [*raw, (b"transfer-encoding", b"chunked")], pending, pending


def _frame_read_body(
    library: HTTPXModule, raw: RawHeaders, body: bytes
) -> tuple[RawHeaders, httpx.AsyncByteStream, None]:
    """Frame a body that the endpoint has read and kept."""
    length = parse_content_length(raw)
    if length is not None and len(body) < length:
        raise _short_body_error()
    raw = remove(remove(raw, b"transfer-encoding"), b"content-length")
    raw.append((b"content-length", str(len(body)).encode()))
    return raw, library.ByteStream(body), None


@small_cache
def _empty_body(library: HTTPXModule) -> httpx.ByteStream:
    return library.ByteStream(b"")


def _short_body_error() -> HTTPException:
    """Return the error for a body that ends before its Content-Length."""
    return HTTPException(400, "Request body is shorter than its Content-Length")


def _get_read_body(request: Request) -> bytes | None:
    """Return the body that `await request.body()` has kept, or None if it was not read."""
    body: bytes | None = getattr(request, "_body", None)
    return body


def _is_consumed(request: Request) -> bool:
    """Return whether the body was read to its end."""
    return getattr(request, "_stream_consumed", False)
