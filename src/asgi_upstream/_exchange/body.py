"""Reads the response body: resume, count, decode, limit.

Every iterator here is an object, not an async generator. A cancelled read ends a generator, and
then the rest of the body would be lost (`asyncio.wait_for(anext(body), 2)`).
"""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from contextlib import suppress
from typing import Any, Protocol, Self, cast

import anyio
import httpx

from .._httpx.interfaces import HTTPXModule
from ..errors import UpstreamBodyTooLarge
from .decoding import decode_chunk, make_decoders

STOP_TIMEOUT = 5.0
"""Seconds that the end of a read may take after its cancellation."""

StartTask = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


class ResumableBody(AsyncIterator[bytes]):
    """Reads a body in a task of its own, so that a cancelled read loses nothing.

    The next read continues the one that was cancelled. The task reads only on demand, and it starts
    with the first read. Use `stop` to end it.

    Arguments:
        source: The body.
        start_task: Starts a function in a task that the exchange owns.
        library: The library of the exchange.
    """

    def __init__(
        self, source: AsyncIterator[bytes], start_task: StartTask, library: HTTPXModule
    ) -> None:
        self._source = source
        self._start_task = start_task
        self._library = library
        self._scope = anyio.CancelScope()
        self._started = self._requested = self._reading = False
        self._reader: _Waiter | None = None  # the read that waits for a chunk
        self._idle: _Waiter | None = None  # the task that waits for a read
        self._stopped = anyio.Event()
        self._chunk: bytes | None = None
        self._end: Exception | None = None  # the end of the body, or its failure

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._reading:
            raise RuntimeError("another task is already reading this body")
        if self._chunk is None and self._end is None:
            self._request_chunk()
            self._reading = True
            try:
                while self._chunk is None and self._end is None:
                    self._reader = _make_waiter()
                    await self._reader
            finally:
                self._reading = False
        chunk, self._chunk, self._requested = self._chunk, None, False
        if chunk is not None:
            return chunk
        assert self._end is not None
        raise self._end

    def _request_chunk(self) -> None:
        if self._requested:
            return  # by a read that was cancelled
        self._requested = True
        if self._started:
            _wake(self._idle)
        else:
            self._started = True
            self._start_task(self._run)

    async def _run(self) -> None:
        try:
            with self._scope:
                while self._end is None:
                    try:
                        self._chunk = await anext(self._source)
                    except (StopAsyncIteration, Exception) as exc:
                        self._end = exc
                    _wake(self._reader)
                    while self._end is None and not (self._requested and self._chunk is None):
                        self._idle = _make_waiter()
                        await self._idle
        finally:
            if self._chunk is None and self._end is None:
                self._end = self._library.ReadError("the read was cancelled")
            _wake(self._reader)
            try:
                await self._close_source()
            finally:
                self._stopped.set()

    async def _close_source(self) -> None:
        """Close a generator in the task that ran it, because it may hold cancel scopes."""
        source = self._source
        if isinstance(source, AsyncGenerator):
            with anyio.move_on_after(STOP_TIMEOUT, shield=True):
                await cast("AsyncGenerator[bytes]", source).aclose()

    async def stop(self) -> None:
        """Cancel a read that is in progress, and wait for its end."""
        if self._started and not self._stopped.is_set():
            self._scope.cancel()
            with anyio.move_on_after(STOP_TIMEOUT, shield=True):
                await self._stopped.wait()
        elif not self._started:
            await self._close_source()


class _Waiter(Protocol):
    """Something to await: an `asyncio.Future`, which is cheap, or the same on trio."""

    def __await__(self) -> Generator[Any, Any, None]: ...
    def done(self) -> bool: ...
    def set_result(self, result: None, /) -> None: ...


class _EventWaiter:
    def __init__(self) -> None:
        self._event = anyio.Event()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._event.wait().__await__()

    def done(self) -> bool:
        return self._event.is_set()

    def set_result(self, result: None, /) -> None:
        self._event.set()


def _make_waiter() -> _Waiter:
    try:
        return asyncio.get_running_loop().create_future()
    except RuntimeError:  # trio
        return _EventWaiter()


def _wake(waiter: _Waiter | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class DecodedBody(AsyncIterator[bytes]):
    """Decodes a body, in pieces of at most 64 KiB.

    Raises:
        httpx.DecodingError: If the body is malformed or truncated.
        UpstreamProtocolError: At once, if a coding cannot be decoded.
    """

    def __init__(
        self, body: AsyncIterable[bytes], codings: list[str], library: HTTPXModule
    ) -> None:
        self._decoders = make_decoders(codings)
        self._errors = tuple({error for decoder in self._decoders for error in decoder.errors})
        self._source = aiter(body)
        self._library = library
        self._pieces: Iterator[bytes] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            try:
                for piece in self._pieces:
                    if piece:
                        return piece
            except self._errors as exc:
                raise self._library.DecodingError(str(exc)) from exc
            try:
                chunk = await anext(self._source)
            except StopAsyncIteration:
                if all(decoder.is_complete() for decoder in self._decoders):
                    raise
                raise self._library.DecodingError("compressed body is truncated") from None
            self._pieces = decode_chunk(self._decoders, chunk)


class CountedBody(AsyncIterator[bytes]):
    """Calls `count` with the size of each chunk."""

    def __init__(self, body: AsyncIterator[bytes], count: Callable[[int], None]) -> None:
        self._source = body
        self._count = count

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await anext(self._source)
        self._count(len(chunk))
        return chunk


class SingleChunk(AsyncIterator[bytes]):
    """A body that was read before."""

    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        content, self._content = self._content, None
        if content is None:
            raise StopAsyncIteration
        return content


def with_content(
    upstream: httpx.Response, content: bytes, library: HTTPXModule, *, decoded: bool
) -> httpx.Response:
    """Return `upstream` with its whole body, so that `.json()`, `.text` and `.content` work."""
    encoding = upstream.headers.pop("content-encoding", None)  # httpx would decode it again
    response = library.Response(
        upstream.status_code,
        headers=upstream.headers,
        content=content,
        request=upstream.request,
        extensions=upstream.extensions,
        history=upstream.history,
        default_encoding=upstream.default_encoding,
    )
    with suppress(RuntimeError):  # A response that was never streamed has no `elapsed`.
        response.elapsed = upstream.elapsed
    if encoding is not None and not decoded:
        response.headers["content-encoding"] = encoding
    return response


def ensure_bytes(chunk: object) -> bytes:
    """Return a chunk as bytes.

    Raises:
        TypeError: If `chunk` is not bytes-like.
    """
    if isinstance(chunk, bytes):
        return chunk
    if not isinstance(chunk, bytearray | memoryview):
        raise TypeError(f"transform yielded {type(chunk).__name__}, not bytes")
    return bytes(chunk)  # pyright: ignore[reportUnknownArgumentType]


class ChunkSource(Protocol):
    """A body that is read chunk by chunk, until an empty chunk.

    `read_nowait` returns None if no chunk has arrived yet. Then await `wait_readable`, and call it
    again.
    """

    def read_nowait(self) -> bytes | None: ...
    def wait_readable(self) -> Awaitable[None]: ...


class IteratorSource:
    """Reads an iterator as a `ChunkSource`.

    Arguments:
        body: The iterator. Its chunks may be empty, or another bytes-like type.
        raise_if_cancelled: Called after each chunk.
    """

    def __init__(self, body: AsyncIterator[bytes], raise_if_cancelled: Callable[[], None]) -> None:
        self._body = body
        self._raise_if_cancelled = raise_if_cancelled
        self._chunk: bytes | None = None

    def read_nowait(self) -> bytes | None:
        chunk, self._chunk = self._chunk, None
        return chunk

    async def wait_readable(self) -> None:
        """Read the next chunk that is not empty, or an empty one at the end.

        Raises:
            TypeError: If a chunk is not bytes-like. granian would send nothing for a `str`.
        """
        async for chunk in self._body:
            self._raise_if_cancelled()
            if chunk := ensure_bytes(chunk):
                self._chunk = chunk
                return
        self._chunk = b""


async def read_limited(
    body: AsyncIterator[bytes], max_bytes: int, raise_if_cancelled: Callable[[], None]
) -> bytes:
    """Return the whole body of an iterator.

    Raises:
        UpstreamBodyTooLarge: If the body is longer than `max_bytes`.
    """
    return await read_all(IteratorSource(body, raise_if_cancelled), max_bytes, None)


async def read_all(
    source: ChunkSource, max_bytes: int, count: Callable[[int], None] | None
) -> bytes:
    """Return the whole body, and call `count` with the size of each chunk.

    Raises:
        UpstreamBodyTooLarge: If the body is longer than `max_bytes`.
    """
    content: bytes | bytearray = b""
    while True:
        while (chunk := source.read_nowait()) is None:
            await source.wait_readable()
        if not chunk:
            return bytes(content)
        if count is not None:
            count(len(chunk))
        content = append_limited(content, chunk, max_bytes)


def append_limited(content: bytes | bytearray, chunk: bytes, max_bytes: int) -> bytes | bytearray:
    """Append `chunk` to `content`.

    Raises:
        UpstreamBodyTooLarge: If the result is longer than `max_bytes`.
    """
    if not content:
        content = chunk  # Usually there is only one.
    else:
        content = content if isinstance(content, bytearray) else bytearray(content)
        content += chunk
    if len(content) > max_bytes:
        raise UpstreamBodyTooLarge
    return content
