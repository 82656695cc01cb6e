"""The caller's request body as a stream for httpx."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from .._httpx.flavors import ByteStreamBase, HTTPXModule

MAX_FIRST_CHUNK_WAIT = 1.0
"""Seconds to wait for the first chunk of a request that probably has no body."""


class CallerBody(ByteStreamBase):
    """Yields the caller's body chunk by chunk as it arrives.

    Arguments:
        library: httpx or httpx2.
        request: The caller's request.
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
        timeout = self._timeout
        if not self._expected:
            timeout = min(MAX_FIRST_CHUNK_WAIT, timeout or MAX_FIRST_CHUNK_WAIT)
        async with aclosing(self._request.stream()) as stream:
            try:
                self._first_chunk = await self._read(stream, timeout)
            except HTTPException:
                if self._expected:
                    raise
                return b"", False
        is_read = get_read_body(self._request) is not None or is_consumed(self._request)
        return self._first_chunk, not is_read

    async def __aiter__(self) -> AsyncIterator[bytes]:
        remaining = self._length
        if chunk := self._first_chunk:
            self._first_chunk = b""
            yield chunk
        async with aclosing(self._request.stream()) as stream:
            while chunk := await self._read(stream, self._timeout):
                if remaining is not None:
                    remaining -= len(chunk)
                    if remaining < 0:
                        break
                yield chunk
        if remaining:  # like an upgrade with a body, which uvicorn drops
            raise short_body_error()

    async def _read(self, stream: AsyncGenerator[bytes], timeout: float | None) -> bytes:
        """Return the next chunk that is not empty, or b"" at the end."""
        chunk = None
        with anyio.move_on_after(timeout):
            try:
                async for chunk in stream:
                    if chunk:
                        return chunk
            except RuntimeError as exc:  # Starlette raises it if the body was read before.
                raise self._library.StreamConsumed from exc
            except OSError as exc:  # The server's `receive` raises it if the connection is gone.
                raise ClientDisconnect from exc
            return b""
        raise HTTPException(408, "The request body did not arrive in time")


def short_body_error() -> HTTPException:
    """Return the error for a body that ends before its Content-Length."""
    return HTTPException(400, "Request body is shorter than its Content-Length")


def get_read_body(request: Request) -> bytes | None:
    """Return the body that `await request.body()` has kept, or None if it was not read."""
    body: bytes | None = getattr(request, "_body", None)
    return body


def is_consumed(request: Request) -> bool:
    """Return whether the body was read to its end and not kept, as `request.form()` does."""
    return getattr(request, "_stream_consumed", False)
